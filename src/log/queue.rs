//! The queue of lines of the log. A thread of its own writes them: logging never waits for whoever reads the log.
//!
//! Lines that do not fit are dropped and counted; where they are missing, the log says how many. (The crate
//! `tracing-appender` drops them too, but says nothing, and panics where its thread cannot be started.)

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::limits::bounds::{LAST_OUTPUT_TIMEOUT, MAX_WAITING_LOG_BYTES, MAX_WAITING_LOG_LINES};
use crate::limits::thread;
use crate::sandbox::ThreadKind;

/// Lines dropped since the process started.
static DROPPED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// This is the thread that writes the log.
    static IS_WRITER: Cell<bool> = const { Cell::new(false) };
}

/// Lines of the log that were dropped since the process started, since nobody read it.
pub(crate) fn dropped_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Where lines go; they are written in the order they came.
#[derive(Debug, Clone)]
pub(crate) struct LogQueue {
    /// None where there is no thread: whoever logs writes.
    shared: Option<Arc<Shared>>,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Signalled when a line is pushed.
    came: Condvar,
    /// Signalled when a line is written.
    written: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: VecDeque<Line>,
    bytes: usize,
    is_writing: bool,
}

#[derive(Debug)]
struct Line {
    text: Vec<u8>,
    /// How many had been dropped when it came.
    dropped: u64,
}

impl LogQueue {
    /// Writes what comes to `out`, on a thread. `tell` is called there, to log that so many lines were dropped.
    pub(crate) fn start(out: impl Write + Send + 'static, tell: fn(u64)) -> Self {
        let shared =
            Arc::new(Shared { waiting: Mutex::default(), came: Condvar::new(), written: Condvar::new() });
        let ours = shared.clone();
        // Not on the thread: it may begin when lines have been dropped already.
        let told = dropped_lines();
        let thread = thread::spawn(ThreadKind::Log, "log", move || ours.write_all(out, tell, told));
        // It is not joined: it may wait for a reader for ever.
        Self { shared: thread.is_ok().then_some(shared) }
    }

    /// Has a line written, or drops it.
    pub(crate) fn push(&self, text: &[u8]) {
        match &self.shared {
            Some(shared) if !IS_WRITER.get() => shared.push(text),
            _ => write(&mut io::stderr(), text),
        }
    }

    /// Waits until all lines are written, but not for long.
    pub(crate) fn finish(&self) {
        let Some(shared) = &self.shared else { return };
        let deadline = Instant::now() + LAST_OUTPUT_TIMEOUT;
        let mut waiting = shared.lock();
        while waiting.is_writing || !waiting.lines.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            waiting = shared.written.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Write for &LogQueue {
    /// One call is one line.
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.push(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn push(&self, text: &[u8]) {
        let mut waiting = self.lock();
        let bytes = waiting.bytes.saturating_add(text.len());
        if waiting.lines.len() >= MAX_WAITING_LOG_LINES || bytes > MAX_WAITING_LOG_BYTES {
            DROPPED.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.bytes = bytes;
        waiting.lines.push_back(Line { text: text.to_vec(), dropped: dropped_lines() });
        self.came.notify_one();
    }

    /// Until the process ends. Of `told` lines that were dropped nothing has to be said.
    fn write_all(&self, mut out: impl Write, tell: fn(u64), mut told: u64) {
        IS_WRITER.set(true);
        let mut tell_up_to = |dropped: u64| {
            if dropped > told {
                tell(dropped - told);
                told = dropped;
            }
        };
        loop {
            let line = self.next();
            tell_up_to(line.dropped);
            write(&mut out, &line.text);
            let is_last = self.lock().lines.is_empty();
            if is_last {
                tell_up_to(dropped_lines());
            }
            self.lock().is_writing = false;
            self.written.notify_all();
        }
    }

    fn next(&self) -> Line {
        let mut waiting = self.lock();
        loop {
            if let Some(line) = waiting.lines.pop_front() {
                waiting.bytes = waiting.bytes.saturating_sub(line.text.len());
                waiting.is_writing = true;
                return line;
            }
            waiting = self.came.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody can be told where the log cannot be written.
fn write(out: &mut impl Write, text: &[u8]) {
    let _ = out.write_all(text);
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    /// Nothing is taken before it is let through.
    struct Gate {
        opened: Receiver<()>,
        taken: Sender<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            let _ = self.opened.recv();
            self.taken.send(text.to_vec()).unwrap();
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_reader_and_what_is_dropped_is_counted() {
        static TOLD: AtomicU64 = AtomicU64::new(0);
        let ((open, opened), (taken, lines)) = (channel(), channel());
        let tell = |dropped| {
            TOLD.fetch_add(dropped, Ordering::Relaxed);
        };
        let queue = LogQueue::start(Gate { opened, taken }, tell);
        let before = dropped_lines();
        for number in 0..MAX_WAITING_LOG_LINES + 100 {
            queue.push(number.to_string().as_bytes());
        }
        let dropped = dropped_lines() - before;
        assert!((99..=100).contains(&dropped), "{dropped}: one may be under way");
        queue.finish();
        drop(open);
        queue.push(b"last");
        let mut taken = Vec::new();
        while taken.last().is_none_or(|line| line != b"last") {
            taken.push(lines.recv().unwrap());
            queue.push(b"last");
        }
        // On a machine that is busy one is not enough.
        (0..60).for_each(|_| queue.finish());
        let count = MAX_WAITING_LOG_LINES + 100 - usize::try_from(dropped).unwrap();
        let expected = (0..count).map(|number| number.to_string().into_bytes());
        assert!(taken.iter().take(count).cloned().eq(expected), "in their order");
        assert_eq!(TOLD.load(Ordering::Relaxed), dropped_lines() - before, "each is told once");
    }
}
