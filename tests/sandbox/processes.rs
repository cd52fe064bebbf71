//! Processes that receive descriptors, and die.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::work;
use crate::common::daemon::Daemon;
use crate::common::process::Process;
use crate::common::wait_for;

fn checker(daemon: &Daemon) -> Option<u32> {
    let name = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Process(daemon.pid()).descendants().into_iter().find(|pid| name(pid) == "descriptors\n")
}

/// Whatever kills them all at once does not have the machine make processes as fast as it can.
#[test]
fn checkers_that_die_at_once_are_made_more_and_more_slowly() {
    let daemon = work::setup().start();
    let mut killed = 0;
    let begin = Instant::now();
    for _ in 0..9 {
        let checker = wait_for("there is another", || checker(&daemon).filter(|it| *it != killed));
        kill_process(Pid::from_raw(checker as i32).unwrap(), Signal::KILL).unwrap();
        killed = checker;
    }
    wait_for("there is another", || checker(&daemon).filter(|it| *it != killed));
    // 10 ms, and twice as long each time, up to a second.
    let least = Duration::from_millis(10 + 20 + 40 + 80 + 160 + 320 + 640 + 1000 + 1000);
    assert!(begin.elapsed() >= least, "{:?}", begin.elapsed());
    work::run(&daemon);
    daemon.stop();
}
