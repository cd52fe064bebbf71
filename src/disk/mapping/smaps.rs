//! What the kernel says of each mapping of this process.

use std::fs::File;
use std::sync::{Mutex, OnceLock};

/// `smaps` of this process. It is opened with the first call, when the first disk is mapped.
pub(in crate::disk) fn own() -> Option<&'static Mutex<File>> {
    static SMAPS: OnceLock<Option<Mutex<File>>> = OnceLock::new();
    SMAPS.get_or_init(|| File::open("/proc/self/smaps").ok().map(Mutex::new)).as_ref()
}
