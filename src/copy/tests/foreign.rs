//! What is not ours goes where it would have gone: each case in a process of its own, since it may end there.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicI32, Ordering};

use super::super::can_read;
use super::super::fault::{self, WatchedRange};
use super::super::testing::announce_bad_page;
use super::guarded::{Guarded, PAGE};

/// Tells the child which case it is.
const CASE: &str = "VHOST_USER_PMEM_TEST_FOREIGN";

/// Runs [`the_child`] in a new process.
fn child(case: &str) -> Output {
    let test = format!("{}::the_child", module_path!().split_once("::").unwrap().1);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([&test, "--exact", "--ignored", "--nocapture"]).env(CASE, case);
    command.output().unwrap()
}

/// Not a test by itself: what the other ones run.
#[test]
#[ignore = "run by the other tests, in a process of its own"]
fn the_child() {
    let Ok(case) = std::env::var(CASE) else { return };
    // No core files.
    // SAFETY: a valid limit.
    unsafe { libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 }) };
    let (setup, action) = case.split_once('+').unwrap();
    match setup {
        "default" => former(libc::SIG_DFL, 0),
        "ignore" => former(libc::SIG_IGN, 0),
        "three" => former(three as *const () as usize, libc::SA_SIGINFO),
        "one" => former(one as *const () as usize, 0),
        // What the standard library has put there.
        _ => assert_eq!(setup, "library"),
    }
    fault::install().unwrap();
    fault::install().unwrap();
    act(action);
    println_survived();
}

#[allow(clippy::print_stdout)]
fn println_survived() {
    println!("survived, heard {}", HEARD.load(Ordering::Relaxed));
}

fn act(action: &str) {
    let memory = Guarded::of_file(1);
    let disk = WatchedRange::media(memory.at(0), PAGE).unwrap();
    match action {
        "bus" => {
            memory.truncate(0);
            // SAFETY: mapped; that it faults is the purpose.
            unsafe { memory.at(0).read_volatile() };
        }
        "segv" => {
            // SAFETY: mapped; that it faults is the purpose.
            unsafe { memory.at(PAGE).read_volatile() };
        }
        "raise-and-fault" => {
            send("raise", &memory);
            memory.truncate(0);
            // SAFETY: mapped; that nothing is behind it is the purpose.
            assert!(!unsafe { can_read(memory.at(0)) });
        }
        // Twice: the library's handler restores the default action, for a fault to come again.
        _ => {
            send(action, &memory);
            send(action, &memory);
        }
    }
    drop(disk);
}

fn send(action: &str, memory: &Guarded) {
    match action {
        // SAFETY: no memory is involved.
        "raise" => assert_eq!(unsafe { libc::raise(libc::SIGBUS) }, 0),
        "bad-page-here" => announce_bad_page(memory.at(100).addr()),
        "bad-page-elsewhere" => announce_bad_page(memory.at(PAGE).addr()),
        _ => unreachable!("{action}"),
    }
}

static HEARD: AtomicI32 = AtomicI32::new(0);

fn former(handler: usize, flags: libc::c_int) {
    for signal in [libc::SIGBUS, libc::SIGSEGV] {
        // SAFETY: all zeroes is a sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        (action.sa_sigaction, action.sa_flags) = (handler, flags);
        // SAFETY: a valid action; the former one is not asked for.
        assert_eq!(unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) }, 0);
    }
}

/// Ends the process with a code that says what arrived, if it was a fault.
fn heard(signal: libc::c_int, is_fault: bool) {
    HEARD.store(signal, Ordering::Relaxed);
    if is_fault {
        // SAFETY: nothing more is to be done.
        unsafe { libc::_exit(100 + signal) };
    }
}

extern "C" fn three(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel's, passed on.
    let code = unsafe { (*info).si_code };
    heard(signal, code == 1 || code == 2);
}

extern "C" fn one(signal: libc::c_int) {
    heard(signal, true);
}

fn survived(output: &Output, heard: i32) -> bool {
    let said = String::from_utf8_lossy(&output.stdout).contains(&format!("survived, heard {heard}\n"));
    output.status.success() && said
}

#[test]
fn without_a_handler_before_the_signal_ends_the_process() {
    for setup in ["default", "library"] {
        for (action, signal) in [
            ("bus", libc::SIGBUS),
            ("segv", libc::SIGSEGV),
            ("raise", libc::SIGBUS),
            ("bad-page-elsewhere", libc::SIGBUS),
        ] {
            // The library's handler takes what somebody sends for a fault, which does not come again.
            if setup == "library" && !["bus", "segv"].contains(&action) {
                continue;
            }
            let output = child(&format!("{setup}+{action}"));
            assert_eq!(output.status.signal(), Some(signal), "{setup} {action}: {output:?}");
        }
    }
}

/// Faults are contained after it as before.
#[test]
fn what_somebody_sends_does_not_disarm() {
    for action in ["raise", "bad-page-elsewhere", "raise-and-fault"] {
        let output = child(&format!("library+{action}"));
        assert!(survived(&output, 0), "{action}: {output:?}");
    }
}

#[test]
fn a_handler_before_hears_it() {
    for setup in ["three", "one"] {
        for (action, signal) in [("bus", libc::SIGBUS), ("segv", libc::SIGSEGV)] {
            let output = child(&format!("{setup}+{action}"));
            assert_eq!(output.status.code(), Some(100 + signal), "{setup} {action}: {output:?}");
        }
    }
    let output = child("three+raise");
    assert!(survived(&output, libc::SIGBUS), "{output:?}");
}

#[test]
fn what_was_ignored_is_ignored_but_for_faults() {
    let output = child("ignore+raise");
    assert!(survived(&output, 0), "{output:?}");
    let output = child("ignore+bus");
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
}

/// Memory errors that nobody has met yet: of the media they wait, of anything else they are foreign.
#[test]
fn a_bad_page_of_the_media_waits_until_it_is_touched() {
    for setup in ["default", "library", "three"] {
        let output = child(&format!("{setup}+bad-page-here"));
        assert!(survived(&output, 0), "{setup}: {output:?}");
    }
    let output = child("three+bad-page-elsewhere");
    assert!(survived(&output, libc::SIGBUS), "{output:?}");
}
