//! Kernels without a part: it is said, and who requires it is not served without.
//!
//! The kernel is asked through a filter that answers as such a kernel would.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use super::work;
use crate::common::daemon::Setup;
use crate::common::frontend::Session;
use crate::common::frontend::request::{OK, Request};
use crate::common::wait_for;

/// What a kernel lacks, with its words for that.
const MISSING: [(i64, i32, &str); 3] = [
    (libc::SYS_landlock_create_ruleset, libc::ENOSYS, "landlock: the kernel has no Landlock"),
    (libc::SYS_landlock_create_ruleset, libc::EOPNOTSUPP, "landlock: the kernel has no Landlock"),
    (libc::SYS_seccomp, libc::EINVAL, "seccomp: the kernel takes no filter"),
];

/// Has this system call fail.
#[allow(unsafe_code)]
fn without(mut command: Command, call: i64, error: i32) -> Command {
    let rules = BTreeMap::from([(call, Vec::new())]);
    let answer = SeccompAction::Errno(error as u32);
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, answer, architecture).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    let apply = move || apply_filter(&program).map_err(std::io::Error::other);
    // SAFETY: between fork and exec the closure makes two system calls; it neither allocates nor locks.
    unsafe { command.pre_exec(apply) };
    command
}

fn run(setup: &Setup, call: i64, error: i32) -> (Output, String) {
    let output = without(setup.command(), call, error).output().unwrap();
    let log = String::from_utf8(output.stderr.clone()).unwrap();
    (output, log)
}

#[test]
fn what_is_required_and_missing_is_an_error() {
    for (call, error, words) in MISSING {
        let part = words.split(':').next().unwrap();
        for arg in ["--sandbox=require", &format!("--sandbox={part}")] {
            let setup = work::setup().arg(arg);
            let (output, log) = run(&setup, call, error);
            assert_eq!(output.status.code(), Some(14), "{arg}: {log}");
            assert!(log.contains(words) && log.contains("--sandbox="), "{arg}: {log}");
            assert!(!setup.socket(0).exists() && !setup.metrics_socket().exists(), "{arg}");
        }
    }
}

#[test]
fn what_is_not_required_and_missing_is_said() {
    for (call, error, words) in MISSING {
        let (output, log) = run(&work::setup().arg("--sandbox-check"), call, error);
        assert_eq!(output.status.code(), Some(14), "{log}");
        let said = format!("a part is missing, and --sandbox=require would not start without it: {words}");
        assert!(log.contains(&said), "{log}");
    }
    let (call, error, _) = MISSING[0];
    let setup = work::setup();
    let mut daemon = without(setup.command(), call, error).spawn().unwrap();
    wait_for("it listens", || std::os::unix::net::UnixStream::connect(setup.socket(0)).ok());
    let session = Session::connect(&setup.socket(0));
    assert_eq!(session.ring(0, 64).run(&Request::write(0, &[1; 512])).status, OK);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[test]
fn a_word_that_is_no_part_is_an_error() {
    let output = work::setup().arg("--sandbox=seccomp,apparmor").run();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("a list of privileges, landlock, seccomp and rlimits"), "{error}");
}
