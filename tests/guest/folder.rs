//! Folders that vanish, also when the test is interrupted (disks on tmpfs hold memory).

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A new folder on the file system where cargo builds.
pub fn temporary() -> TempDir {
    let folder = tempfile::Builder::new().prefix("guest-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    remove_on_interrupt(folder.path());
    folder
}

/// Has `folder`, which normally vanishes with its owner, removed when the test is interrupted, too.
pub fn remove_on_interrupt(folder: &Path) {
    FOLDERS.lock().unwrap().push(folder.to_owned());
}

/// The opposite: `folder` stays, whatever comes.
pub fn keep_on_interrupt(folder: &Path) {
    FOLDERS.lock().unwrap().retain(|known| known != folder);
}

/// From now on SIGINT and SIGTERM remove the folders and end the test.
#[allow(clippy::exit, reason = "no other way to end all threads")]
pub fn remove_all_on_interrupt() {
    let mut signals = Signals::new([SIGINT, SIGTERM]).unwrap();
    std::thread::spawn(move || {
        let signal = signals.forever().next().unwrap_or_default();
        for folder in FOLDERS.lock().unwrap().iter() {
            let _ = std::fs::remove_dir_all(folder);
        }
        std::process::exit(128 + signal);
    });
}
