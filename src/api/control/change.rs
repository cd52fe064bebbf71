//! What can change of a disk that is served.

use serde_json::Value;

use super::problem::{Code, Problem};
use crate::config::json::{self, Object};
use crate::config::keys::Key;

/// The remedy is for what was denied.
pub(super) fn with_remedy(problem: Problem, remedy: Option<String>) -> Problem {
    match remedy {
        Some(remedy) if problem.code == "permission" => problem.with(&remedy),
        _ => problem,
    }
}

/// The size that a disk has to become when its options are to be these, if that is all that differs.
pub(super) fn growth(name: &str, before: &Object, after: &Object) -> Result<Option<u64>, Problem> {
    let differences = json::differences(before, after);
    let fixed: Vec<_> = differences.iter().copied().filter(|key| !key.is_changeable()).collect();
    if !fixed.is_empty() {
        let text = format!(
            "disk {name:?}: {} cannot be changed while it is served; remove it, and add it again",
            names(&fixed)
        );
        return Err(Problem::new(Code::Fixed, text));
    }
    if differences.is_empty() {
        return Ok(None);
    }
    let size = after.get(Key::Size.name()).and_then(Value::as_u64);
    size.map(Some).ok_or_else(|| {
        let text = format!("disk {name:?}: its size cannot be left to the file while it is served; remove it, and add it again");
        Problem::new(Code::Fixed, text)
    })
}

/// In a sentence.
pub(super) fn names(keys: &[Key]) -> String {
    keys.iter().map(|key| key.name()).collect::<Vec<_>>().join(", ")
}
