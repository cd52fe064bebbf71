//! One line for each check, and the closing count.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

/// What the panic hook was told last: the message and where it comes from.
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

/// Counts and prints; a check is a closure that returns what was seen, or panics.
#[derive(Debug)]
pub struct Report {
    filter: Option<String>,
    passed: u32,
    failed: u32,
}

impl Report {
    /// Only the checks whose name contains `filter` are run.
    pub fn new(filter: Option<String>) -> Self {
        std::panic::set_hook(Box::new(|panic| {
            if let Ok(mut last) = LAST_PANIC.lock() {
                *last = panic.to_string();
            }
        }));
        Self { filter, passed: 0, failed: 0 }
    }

    /// Whether a check of this name is run.
    pub fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|part| name.contains(part))
    }

    /// Runs a check, unless it is filtered out.
    pub fn check(&mut self, name: &str, check: impl FnOnce() -> String) {
        if self.wants(name) {
            self.produce(name, || ((), check()));
        }
    }

    /// Runs a check, filter or not, that yields something that others need.
    pub fn produce<T>(&mut self, name: &str, check: impl FnOnce() -> (T, String)) -> Option<T> {
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(check));
        let seconds = start.elapsed().as_secs_f32();
        match outcome {
            Ok((value, seen)) => {
                println!("ok     {name}: {seen} ({seconds:.1} s)");
                self.passed += 1;
                Some(value)
            }
            Err(_) => {
                let why = LAST_PANIC.lock().map(|last| last.replace('\n', "\n       ")).unwrap_or_default();
                println!("FAILED {name}: {why}");
                self.failed += 1;
                None
            }
        }
    }

    /// Prints the closing line; the exit code says whether every check passed.
    pub fn close(self) -> ExitCode {
        println!("\n{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 && self.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
