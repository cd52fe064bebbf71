//! What can change of a disk that is served.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use serde_json::Value;

use super::known::Known;
use super::problem::{Code, Problem};
use crate::config::json::{self, Object};
use crate::config::keys::Key;
use crate::config::{DiskConfig, Throttling, ThrottlingChanges};

/// The remedy is for what was denied.
pub(super) fn with_remedy(problem: Problem, remedy: Option<String>) -> Problem {
    match remedy {
        Some(remedy) if problem.code == "permission" => problem.with(&remedy),
        _ => problem,
    }
}

/// What is to change of a disk.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// The size that it has to become.
    pub(super) to_bytes: Option<u64>,
    /// Its limits.
    pub(super) throttling: Option<Throttling>,
    /// Which of its requests are slow.
    pub(super) slow_ms: Option<Option<NonZeroU16>>,
}

/// What has to change when a disk with these options is to become this one, if it can.
pub(super) fn change(name: &str, before: &Object, config: &DiskConfig) -> Result<Change, Problem> {
    let after = &json::of(config);
    let differences = json::differences(before, after);
    let fixed: Vec<_> = differences.iter().copied().filter(|key| !key.is_changeable()).collect();
    if !fixed.is_empty() {
        let text = format!(
            "disk {name:?}: {} cannot be changed while it is served; remove it, and add it again",
            names(&fixed)
        );
        return Err(Problem::new(Code::Fixed, text));
    }
    let is_limited_anew = Key::limits().any(|key| differences.contains(&key));
    let throttling = is_limited_anew.then(|| config.throttling());
    let slow_ms = differences.contains(&Key::SlowMs).then_some(config.slow_ms);
    if !differences.contains(&Key::Size) {
        return Ok(Change { to_bytes: None, throttling, slow_ms });
    }
    let size = after.get(Key::Size.name()).and_then(Value::as_u64);
    size.map(|to_bytes| Change { to_bytes: Some(to_bytes), throttling, slow_ms }).ok_or_else(|| {
        let text = format!("disk {name:?}: its size cannot be left to the file while it is served; remove it, and add it again");
        Problem::new(Code::Fixed, text)
    })
}

/// A change of the limits of one disk is one of all disks of its group, unless it comes to the group or leaves it.
pub(super) fn of_group(
    name: &str,
    throttling: Throttling,
    known: &BTreeMap<String, Known>,
) -> ThrottlingChanges {
    let group_of = |known: &Known| {
        known.options.get(Key::ThrottleGroup.name()).and_then(Value::as_str).map(ToOwned::to_owned)
    };
    let before = known.get(name).and_then(group_of);
    let is_of_it =
        |known: &Known| before == throttling.group && before.is_some() && group_of(known) == before;
    let others = known.iter().filter(|(_, known)| is_of_it(known));
    let mut changes: ThrottlingChanges = others.map(|(name, _)| (name.clone(), throttling.clone())).collect();
    changes.insert(name.to_owned(), throttling);
    changes
}

/// In a sentence.
pub(super) fn names(keys: &[Key]) -> String {
    keys.iter().map(|key| key.name()).collect::<Vec<_>>().join(", ")
}
