//! A test that is interrupted leaves no folders behind (disks on tmpfs hold memory).

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::common::folder;

/// From now on SIGINT and SIGTERM remove the folders and end the test.
#[allow(clippy::exit, reason = "no other way to end all threads")]
pub fn removes_all_folders() {
    let mut signals = Signals::new([SIGINT, SIGTERM]).unwrap();
    std::thread::spawn(move || {
        let signal = signals.forever().next().unwrap_or_default();
        folder::remove_all();
        std::process::exit(128 + signal);
    });
}
