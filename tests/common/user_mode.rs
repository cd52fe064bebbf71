//! User-Mode Linux on the root of this machine, read-only: for what needs another kernel, or one of its own.

// Tests may not be silent about what they could not do.
#![allow(clippy::print_stderr)]

use std::path::Path;
use std::process::{Command, Stdio};

use super::process::ends_with_us;

/// The longest that it may take, on a busy machine.
const LIMIT: &str = "600";

/// Where Debian's package has it; `ci/lab/kernel` fetches the same without its modules.
pub const INSTALLED: &str = "/usr/bin/linux.uml";

/// Runs a script as the first process there, with these words in the kernel's command line; what it and the kernel said. None
/// where that is not possible, and says so. `packages` are files that it needs, and Debian's packages that have them.
pub fn run(script: &Path, words: &[String], packages: &[(&str, &str)]) -> Option<String> {
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
    let mut linux = Command::new("timeout");
    // Its own processes would outlive it: the first process of a name space takes all others along.
    linux
        .args(["-k", "1", LIMIT, "unshare", "--pid", "--fork", "--kill-child"])
        .args(kernel)
        .args([
            "mem=512M",
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
            "noreboot",
            "panic=-1",
        ])
        .args(["con=null", "con0=null,fd:1", "ssl=null"])
        .arg(format!("init={}", root.join(script).display()))
        .args(words)
        .env("TMPDIR", "/dev/shm")
        .stdin(Stdio::null());
    ends_with_us(&mut linux);
    let output = linux.output().unwrap();
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if !text.contains("as init process") {
        eprintln!("skipped: User-Mode Linux does not come up here: {text}");
        return None;
    }
    Some(text)
}

/// What it said has each of these lines.
#[track_caller]
pub fn assert_lines(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|it| it.trim_end() == *line), "no line {line:?} in:\n{text}");
    }
}
