//! What needs another kernel, or one of its own: User-Mode Linux, with the root of this machine.

// Tests may not be silent about what they could not do.
#![allow(clippy::print_stderr)]

use std::path::Path;
use std::process::{Command, Stdio};

/// The longest that it may take, on a busy machine.
const LIMIT: &str = "240";

/// Where Debian's package has it; `ci/lab/kernel` fetches the same without its modules.
const INSTALLED: &str = "/usr/bin/linux.uml";

/// The lines with `case ` that a script says as the first process there; none where that is not possible, and says so.
/// `packages` are files that it needs, and Debian's packages that have them.
fn cases(script: &str, packages: &[(&str, &str)]) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kernels = [Path::new(INSTALLED).to_owned(), root.join(".cache/lab/kernel-user-mode/vmlinuz")];
    let kernel = kernels.iter().find(|kernel| kernel.exists());
    let missing = packages.iter().find(|(file, _)| !Path::new(file).exists());
    if kernel.is_none() || missing.is_some() {
        let (file, package) = missing.unwrap_or(&(INSTALLED, "user-mode-linux"));
        eprintln!("skipped: no {file} (Debian's package {package})");
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return None;
    }
    let script = root.join("tests/cli").join(script);
    let mut linux = Command::new("timeout");
    // Its own processes would outlive it: the first process of a name space takes all others along.
    linux
        .args(["-k", "1", LIMIT, "unshare", "--pid", "--fork", "--kill-child"])
        .args(kernel)
        .args([
            "mem=384M",
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
            "noreboot",
            "panic=-1",
        ])
        .args(["con=null", "con0=null,fd:1", "ssl=null"])
        .arg(format!("init={}", script.display()))
        .arg(format!("daemon={}", env!("CARGO_BIN_EXE_vhost-user-pmem")))
        .env("TMPDIR", "/dev/shm")
        .stdin(Stdio::null());
    super::ends_with_us(&mut linux);
    let output = linux.output().unwrap();
    let text = format!("{}{}", super::stdout(&output), super::stderr(&output));
    if !text.contains("as init process") {
        eprintln!("skipped: User-Mode Linux does not come up here: {text}");
        return None;
    }
    Some(text)
}

#[track_caller]
fn assert_cases(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|it| it.trim_end() == *line), "no line {line:?} in:\n{text}");
    }
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
    assert_cases(&text, &lines);
}

#[test]
fn more_memory_than_a_control_group_of_version_2_has_is_7() {
    let Some(text) = cases("cgroup2.sh", &[]) else { return };
    assert_cases(&text, &["case memory 7 0 1", "case end"]);
}
