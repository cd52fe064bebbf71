//! What needs another kernel, or one of its own: User-Mode Linux, with the root of this machine.

use std::path::Path;

use crate::common::user_mode::{self, INSTALLED, assert_lines};

/// The lines with `case ` that a script says as the first process there.
fn cases(script: &str, packages: &[(&str, &str)]) -> Option<String> {
    let daemon = format!("daemon={}", env!("CARGO_BIN_EXE_vhost-user-pmem"));
    user_mode::run(&Path::new("tests/cli").join(script), &[daemon], packages)
}

/// A file that a client of NFS serves, and the server itself, or another client: their locks meet at the server.
#[test]
fn clients_of_nfs_and_their_server_exclude_each_other() {
    let packages = [
        (INSTALLED, "user-mode-linux"),
        ("/usr/sbin/rpc.nfsd", "nfs-kernel-server"),
        ("/usr/sbin/modinfo", "kmod"),
    ];
    let Some(text) = cases("nfs.sh", &packages) else { return };
    let lines = [
        "case client-first 9 9",
        "case server-first 9 9",
        "case readers -",
        "case writer-beside-readers 9",
        "case storage nfs4 (NFS, 127.0.0.1:/)",
        "case growth 16 0",
        "case end",
    ];
    assert_lines(&text, &lines);
}

#[test]
fn more_memory_than_a_control_group_of_version_2_has_is_7() {
    let Some(text) = cases("cgroup2.sh", &[]) else { return };
    assert_lines(&text, &["case memory 7 0 1", "case end"]);
}
