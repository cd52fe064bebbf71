//! Which system calls a daemon makes: `strace` on its workers.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use tempfile::NamedTempFile;

use super::daemon::Daemon;
use super::process::Process;

/// A trace of a daemon's workers, from its start to its end.
#[derive(Debug)]
pub struct Trace {
    strace: Child,
    output: NamedTempFile,
}

impl Trace {
    /// Follows the workers; they are held until it has begun.
    pub fn start(daemon: &Daemon) -> Self {
        let workers = Process(daemon.pid()).threads_named("worker");
        assert!(!workers.is_empty(), "no thread of the daemon is called a worker");
        let output = NamedTempFile::new().unwrap();
        let mut strace = Command::new("strace")
            .args(workers.iter().flat_map(|thread| ["-p".to_owned(), thread.to_string()]))
            .arg("-o")
            .arg(output.path())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace cannot be run; ci/lab/install installs it");
        // It says so of each thread.
        let said = BufReader::new(strace.stderr.take().unwrap()).lines().take(workers.len());
        for line in said {
            let line = line.unwrap();
            assert!(line.contains("attached"), "{line}");
        }
        Self { strace, output }
    }

    /// Ends it; answers how often each system call was made.
    pub fn end(mut self) -> BTreeMap<String, usize> {
        let pid = rustix::process::Pid::from_child(&self.strace);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.strace.wait().unwrap();
        let mut calls = BTreeMap::new();
        for line in std::fs::read_to_string(self.output.path()).unwrap().lines() {
            // With more than one thread their numbers come first.
            let call = line.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == ' ');
            let Some((name, _)) = call.split_once('(') else { continue };
            *calls.entry(name.to_owned()).or_default() += 1;
        }
        calls
    }
}
