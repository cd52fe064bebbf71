//! Limits of the process (setrlimit(2)) that it needs no more of: no core is dumped, and no limit can be raised again.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A limit that could not be set.
#[derive(Debug, thiserror::Error)]
#[error("cannot limit {what} ({source})")]
pub struct LimitsError {
    what: &'static str,
    source: io::Error,
}

/// Sets them for the whole process.
///
/// # Errors
/// The kernel refused.
pub(super) fn set() -> Result<(), LimitsError> {
    let nothing = Rlimit { current: Some(0), maximum: Some(0) };
    let descriptors = getrlimit(Resource::Nofile);
    let descriptors = Rlimit { current: descriptors.current, maximum: descriptors.current };
    for (what, resource, limit) in
        [("cores", Resource::Core, nothing), ("descriptors", Resource::Nofile, descriptors)]
    {
        setrlimit(resource, limit).map_err(|errno| LimitsError { what, source: errno.into() })?;
    }
    Ok(())
}
