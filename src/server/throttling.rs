//! The limits of disks that are served: each disk's own, or those of its group.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use super::disks::{Disks, Served};
use crate::config::{ConfigError, ThrottlingChanges, check_groups};
use crate::disk::Disk;
use crate::throttle::Throttle;

/// Whether disks may be limited so, some of which need not be here yet, when others have gone.
///
/// # Errors
/// [`ConfigError::GroupDisagrees`].
pub(super) fn check_throttling<D: Disk>(
    disks: &Disks<D>,
    changes: &ThrottlingChanges,
    gone: &[String],
) -> Result<(), ConfigError> {
    if changes.values().all(|to| to.group.is_none()) {
        // Those that stay agree with each other.
        return Ok(());
    }
    let stays = |disk: &Arc<Served<D>>| {
        !changes.contains_key(disk.name()) && !gone.iter().any(|name| name == disk.name())
    };
    let stay: Vec<_> =
        disks.all().into_iter().filter(stays).map(|it| (it.name().to_owned(), it.throttling())).collect();
    let all = stay.iter().map(|(name, it)| (name, it)).chain(changes);
    Ok(check_groups(all.map(|(name, it)| (name.as_str(), it.group.as_deref(), &it.limits)))?)
}

/// Limits disks from now on, as soon as their rings' workers are told. All of them or none. Buckets of disks and groups that
/// stay as they are, are not emptied.
///
/// # Errors
/// As above.
pub(super) fn set_throttling<D: Disk>(
    all: &Disks<D>,
    changes: &ThrottlingChanges,
) -> Result<(), ConfigError> {
    let _alone = all.throttling.lock().unwrap_or_else(PoisonError::into_inner);
    check_throttling(all, changes, &[])?;
    let disks = all.all();
    let changed = |disk: &Served<D>| changes.get(disk.name()).filter(|to| **to != disk.throttling());
    let mut groups: HashMap<&str, Option<Arc<Throttle>>> = HashMap::new();
    // Of these only groups matter.
    let has_groups = changes.values().any(|to| to.group.is_some());
    let staying = disks.iter().filter(|disk| has_groups && changed(disk).is_none());
    let staying: Vec<_> = staying.map(|it| (it, it.throttling())).collect();
    for (disk, throttling) in &staying {
        if let Some(group) = &throttling.group {
            groups.entry(group).or_insert_with(|| disk.context.device.throttle());
        }
    }
    for disk in &disks {
        let Some(to) = changed(disk) else { continue };
        let new = || (!to.limits.is_empty()).then(|| Arc::new(Throttle::new(to.limits)));
        let throttle = match &to.group {
            None => new(),
            Some(group) => groups.entry(group).or_insert_with(new).clone(),
        };
        disk.context.device.set_throttle(throttle);
        *disk.lock_throttling() = to.clone();
    }
    Ok(())
}
