//! Which system calls each kind of thread makes, as `strace` sees them: those of the table and no others.

use std::collections::{BTreeMap, BTreeSet};

use tempfile::NamedTempFile;
use vhost_user_pmem::sandbox::{ThreadKind, calls_of};

use super::work;

/// The system calls of a thread from when its filter is in force, each with a line of it.
#[derive(Debug, Default)]
struct Thread {
    name: String,
    is_narrowed: bool,
    calls: BTreeMap<String, String>,
}

/// By number of thread.
fn threads(trace: &str) -> BTreeMap<u32, Thread> {
    let mut threads: BTreeMap<u32, Thread> = BTreeMap::new();
    for line in trace.lines() {
        // `4711<worker-0> write(7, …) = 8`.
        let (number, rest) = line.split_once('<').unwrap_or_else(|| panic!("{line}"));
        let (name, call) = rest.split_once("> ").unwrap_or_else(|| panic!("{line}"));
        let number = number.trim().parse().unwrap();
        let serves = |threads: &BTreeMap<u32, Thread>| threads.values().any(|it| it.name == "acceptor");
        if call.starts_with("exit(") && !threads[&number].is_narrowed && !serves(&threads) {
            // It has opened the disks, and ended before the sandbox was entered.
            threads.remove(&number);
            continue;
        }
        let thread = threads.entry(number).or_default();
        name.clone_into(&mut thread.name);
        let Some((call, _)) = call.split_once('(') else { continue };
        if call.starts_with("<...") || call.starts_with("+++") || call.starts_with("---") {
            continue;
        }
        // The last filter that it installs is that of its kind.
        if call == "seccomp" {
            thread.is_narrowed = true;
            thread.calls.clear();
        } else {
            thread.calls.entry(call.to_owned()).or_insert_with(|| line.to_owned());
        }
    }
    threads
}

#[test]
fn each_kind_makes_the_calls_of_the_table_and_no_others() {
    let trace = NamedTempFile::new().unwrap();
    let path = trace.path().display().to_string();
    let strace = ["strace", "-D", "-f", "-qq", "-s", "64", "--decode-pids=comm", "-o", &path];
    // Tests of the filters have what is refused end the daemon; here strace alone is to tell.
    let daemon = work::setup().env("VHOST_USER_PMEM_SANDBOX_KILLS", "0").through(&strace).start();
    work::run(&daemon);
    let tracer = crate::common::process::Process(daemon.pid()).tracer().unwrap();
    daemon.stop();
    crate::common::wait_for("the trace is written", || {
        (!std::path::Path::new(&format!("/proc/{}", tracer.as_raw_nonzero())).exists()).then_some(())
    });
    let trace = std::fs::read_to_string(trace.path()).unwrap();
    let mut seen = BTreeSet::new();
    for (number, Thread { name, is_narrowed, calls }) in threads(&trace) {
        let kind = ThreadKind::of_thread(&name).unwrap_or_else(|| panic!("{number} is called {name}"));
        assert!(is_narrowed, "{name} ({number}) has no filter");
        let allowed: BTreeSet<_> = calls_of(kind, false).iter().map(|call| call.name).collect();
        for (call, line) in &calls {
            // The C library's allocator asks whether memory may be overcommitted, and takes no for an answer.
            let is_refused = line.contains("overcommit_memory") && line.contains("EPERM");
            assert!(allowed.contains(call.as_str()) || is_refused, "{kind} is not to make this call: {line}");
        }
        assert!(!calls.is_empty(), "{name} ({number})");
        seen.insert(kind);
    }
    let missing: Vec<_> = work::KINDS.iter().filter(|kind| !seen.contains(*kind)).collect();
    assert!(missing.is_empty(), "{missing:?} did not run");
}
