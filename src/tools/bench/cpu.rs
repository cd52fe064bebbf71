//! CPU time of this thread, and of another process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::tools::bench::BenchError;

/// What this thread has used so far.
pub(super) fn of_this_thread() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// What the living threads of a process have used so far.
///
/// `/proc/PID/stat` counts in ticks of 10 ms, and `/proc/PID/schedstat` is of the first thread only.
pub(super) fn of_process(pid: u32) -> Result<Duration, BenchError> {
    let path = PathBuf::from(format!("/proc/{pid}/task"));
    sum_of_threads(&path).map_err(|source| BenchError::Cpu { pid, path, source })
}

fn sum_of_threads(tasks: &Path) -> io::Result<Duration> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(tasks)? {
        match fs::read_to_string(task?.path().join("schedstat")) {
            Ok(text) => nanoseconds += on_cpu_ns(&text)?,
            // A thread may end while it is looked at.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The first of three numbers: time on a CPU, time in a run queue, time slices.
fn on_cpu_ns(text: &str) -> io::Result<u64> {
    let first = text.split_whitespace().next().and_then(|word| word.parse().ok());
    first.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "schedstat has no number"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Instant;

    use super::*;

    #[test]
    fn time_of_this_thread_is_counted() {
        let before = of_this_thread();
        while of_this_thread() < before + Duration::from_millis(20) {
            std::hint::spin_loop();
        }
    }

    /// Not of this process: what its threads used that end meanwhile is gone from the sum.
    #[test]
    fn time_of_a_process_is_counted() {
        let mut busy = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let limit = Instant::now() + Duration::from_secs(60);
        let mut used = Duration::ZERO;
        while used < Duration::from_millis(50) && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(10));
            used = of_process(busy.id()).unwrap();
        }
        busy.kill().unwrap();
        busy.wait().unwrap();
        assert!(used >= Duration::from_millis(50), "{used:?}");
    }

    #[test]
    fn a_process_that_is_not_there_is_named() {
        let error = of_process(u32::MAX).unwrap_err().to_string();
        assert!(error.contains("process 4294967295") && error.contains("/task"), "{error}");
    }
}
