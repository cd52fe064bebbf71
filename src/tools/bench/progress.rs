//! How far it is, for a person who waits: one line on a terminal, over and over; a line a round elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Back to the line's begin, and clear what is behind.
const CLEAR: &str = "\r\x1b[K";

/// Writes to standard error.
#[derive(Debug)]
pub(super) struct Progress {
    shown: bool,
    is_terminal: bool,
    rounds: usize,
    round: usize,
    what: String,
}

impl Progress {
    /// So many rounds are to come. One that is not `shown` writes nothing.
    pub(super) fn new(rounds: usize, shown: bool) -> Self {
        let is_terminal = shown && io::stderr().is_terminal();
        Self { shown, is_terminal, rounds, round: 0, what: String::new() }
    }

    /// A round begins.
    pub(super) fn begin(&mut self, what: String) {
        self.round += 1;
        self.what = what;
        if self.is_terminal {
            self.write(format_args!("{CLEAR}{} · warming up", self.head()));
        }
    }

    /// It goes on, with so many requests done in so much time.
    pub(super) fn tick(&self, done: u64, time: Duration, runtime: Duration) {
        if self.is_terminal {
            let left = runtime.saturating_sub(time).as_secs_f64();
            self.write(format_args!("{CLEAR}{} · {left:.0} s left", self.line(done, time)));
        }
    }

    /// It is over.
    pub(super) fn end(&self, requests: u64, time: Duration) {
        if self.shown && !self.is_terminal {
            self.write(format_args!("{}\n", self.line(requests, time)));
        }
    }

    fn line(&self, done: u64, time: Duration) -> String {
        let seconds = time.as_secs_f64();
        let iops = if seconds > 0.0 { done as f64 / seconds } else { 0.0 };
        format!("{} · {iops:.0} IOPS", self.head())
    }

    fn head(&self) -> String {
        format!("round {} of {} · {}", self.round, self.rounds, self.what)
    }

    fn write(&self, text: std::fmt::Arguments<'_>) {
        let mut err = io::stderr().lock();
        // Ignored: where standard error is closed nobody waits.
        let _ = err.write_fmt(text).and_then(|()| err.flush());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_terminal {
            self.write(format_args!("{CLEAR}"));
        }
    }
}
