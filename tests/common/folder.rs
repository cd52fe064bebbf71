//! Where tests put their files. What is made there is called so that whatever stays behind is known by its name:
//! `ci/leftovers` looks for it.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tempfile::TempDir;

/// A file system in memory.
const MEMORY: &str = "/dev/shm";

/// How the names begin of all that a test makes outside of its own folders: `ci/test` has a name of its own for each run.
pub fn run_name() -> String {
    std::env::var("VHOST_USER_PMEM_TEST_RUN").unwrap_or_else(|_| "pmem-test".to_owned())
}

/// A folder in memory that vanishes when it is dropped.
pub fn in_memory() -> TempDir {
    new(Path::new(MEMORY))
}

/// The same on the file system where cargo builds: an ordinary one.
pub fn on_files() -> TempDir {
    new(Path::new(env!("CARGO_TARGET_TMPDIR")))
}

/// The same for sockets: the path of one has at most 107 bytes.
pub fn for_sockets() -> TempDir {
    new(&std::env::temp_dir())
}

fn new(parent: &Path) -> TempDir {
    let folder = tempfile::Builder::new().prefix(&(run_name() + "-")).tempdir_in(parent).unwrap();
    remove_on_interrupt(folder.path());
    folder
}

static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Has `folder` removed by [`remove_all`], too.
pub fn remove_on_interrupt(folder: &Path) {
    FOLDERS.lock().unwrap().push(folder.to_owned());
}

/// The opposite: `folder` stays, whatever comes.
pub fn keep_on_interrupt(folder: &Path) {
    FOLDERS.lock().unwrap().retain(|known| known != folder);
}

/// Removes all folders, for a process that ends without dropping them.
pub fn remove_all() {
    for folder in FOLDERS.lock().unwrap().iter() {
        let _ = std::fs::remove_dir_all(folder);
    }
}
