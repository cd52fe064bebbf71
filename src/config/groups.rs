//! Disks that share limits.

use std::collections::HashMap;

use crate::throttle::Limits;

/// What a disk is limited to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Throttling {
    /// The disks that share the limits: all of them say the same.
    pub group: Option<String>,
    /// The limits.
    pub limits: Limits,
}

/// Disks by their names, and what is to limit them from now on.
pub type ThrottlingChanges = HashMap<String, Throttling>;

/// Two disks of a group that say different limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "disks {first:?} and {second:?} are of one throttle-group, {group:?}, and say different limits: {of_first}, and {of_second}; \
     say the same of each of its disks"
)]
pub struct GroupDisagrees {
    /// The group.
    pub group: String,
    /// A disk of it.
    pub first: String,
    /// Another one.
    pub second: String,
    /// What the one says.
    pub of_first: Box<Limits>,
    /// What the other one says.
    pub of_second: Box<Limits>,
}

/// The disks of a group say the same limits. Takes their names, groups and limits.
pub(crate) fn check_groups<'a>(
    disks: impl Iterator<Item = (&'a str, Option<&'a str>, &'a Limits)>,
) -> Result<(), GroupDisagrees> {
    let mut groups = HashMap::new();
    for (second, group, limits) in disks {
        let Some(group) = group else { continue };
        let (first, of_first) = *groups.entry(group).or_insert((second, limits));
        if of_first != limits {
            return Err(GroupDisagrees {
                group: group.to_owned(),
                first: first.to_owned(),
                second: second.to_owned(),
                of_first: Box::new(*of_first),
                of_second: Box::new(*limits),
            });
        }
    }
    Ok(())
}
