//! The log: to standard error, as text for people or as JSON lines for collectors.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::panic::PanicHookInfo;
use std::sync::{Arc, OnceLock};

use clap::{Args, ValueEnum};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt};

use crate::log::{EventLog, LogQueue, recorder};

const DEFAULT_FILTER: &str = "info";
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub(super) struct LogArgs {
    /// What to log to standard error: off, error, warn, info, debug, trace, or a filter such as warn,vhost=debug
    #[arg(
        long = "log",
        value_name = "LEVEL",
        env = "VHOST_USER_PMEM_LOG",
        default_value = DEFAULT_FILTER,
        value_parser = check_filter,
        global = true
    )]
    filter: String,

    /// Format of the log: lines for people (text), or one JSON object a line (json)
    #[arg(long = "log-format", value_name = "FORMAT", default_value = "text", global = true)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people: one line for each event
    Text,
    /// For log collectors: one JSON object a line
    Json,
}

/// The log while it is written. Dropping it has the last lines written.
#[derive(Debug)]
pub(super) struct Log(LogQueue);

impl Log {
    /// Writes a line as it is.
    pub(super) fn line(&self, text: &str) {
        self.0.push(format!("{text}\n").as_bytes());
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.0.finish();
    }
}

impl<'a> MakeWriter<'a> for LogQueue {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl LogArgs {
    pub(super) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Sends the process's events to standard error, and what a thread says that panics.
    pub(super) fn init(&self) -> Log {
        let tell = |lines| {
            tracing::warn!(
                lines,
                "lines of this log were dropped here, because nobody has read it for a while"
            )
        };
        let queue = LogQueue::start(std::io::stderr(), tell);
        self.subscribe(queue.clone());
        let last_output = queue.clone();
        // The default one would wait for whoever reads standard error.
        std::panic::set_hook(Box::new(move |panic| log_panic(panic, &last_output)));
        Log(queue)
    }

    fn subscribe(&self, queue: LogQueue) {
        // The filter was checked as an argument.
        let filter = EnvFilter::try_new(&self.filter).unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
        let (filter, handle) = reload::Layer::new(filter);
        keep(handle);
        // Its complaint about a closed standard error would go there too, and end the thread.
        let lines = fmt::layer().log_internal_errors(false).with_writer(queue);
        let lines = match self.format {
            Format::Text => lines.with_target(false).with_ansi(wants_colour()).with_filter(filter).boxed(),
            Format::Json => lines.json().with_filter(filter).boxed(),
        };
        // It fails only where a log is set up already, which then gets the events.
        let _ = Registry::default().with(lines).with(recorder(&events())).try_init();
    }
}

/// What gives the log another filter.
type Change = dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync;

static CHANGE: OnceLock<Box<Change>> = OnceLock::new();

static EVENTS: OnceLock<Arc<EventLog>> = OnceLock::new();

/// The events of this process.
pub(super) fn events() -> Arc<EventLog> {
    EVENTS.get_or_init(Arc::default).clone()
}

fn keep<S: 'static>(handle: Handle<EnvFilter, S>) {
    let change = move |filter| handle.reload(filter).map_err(|error| error.to_string());
    // A second log is none.
    let _ = CHANGE.set(Box::new(change));
}

/// Logs what this filter says from now on, which is as `--log` takes it.
///
/// # Errors
/// What is wrong with it.
pub(super) fn change(text: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(check_filter(text)?).map_err(|error| error.to_string())?;
    CHANGE.get().map_or(Ok(()), |change| change(filter))
}

fn log_panic(panic: &PanicHookInfo<'_>, queue: &LogQueue) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let trace = Backtrace::capture();
    let trace =
        if trace.status() == BacktraceStatus::Captured { format!("\n{trace}") } else { String::new() };
    let text = format!("thread {name:?} {panic}; this is a bug in the program{trace}");
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!("{text}");
    } else {
        queue.push(format!("{text}\n").as_bytes());
    }
}

fn wants_colour() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stderr().is_terminal() && !refused
}

/// A filter as `tracing-subscriber` reads it; nothing at all stands for the default.
fn check_filter(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Ok(DEFAULT_FILTER.to_owned());
    }
    // A lone word that is no level would be taken for a module and silence the whole log.
    let is_word = |part: &&str| part.chars().all(|c| c.is_ascii_alphabetic());
    let is_level = |part: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(part));
    if let Some(word) = text.split(',').map(str::trim).find(|part| is_word(part) && !is_level(part)) {
        return Err(format!("{word:?} is no level; the levels are {}", LEVELS.join(", ")));
    }
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked() {
        for good in ["info", "INFO", "off", "warn,vhost_user_pmem=debug", "vhost_user_pmem::worker=trace"] {
            assert_eq!(check_filter(good), Ok(good.to_owned()));
        }
        assert_eq!(check_filter(" "), Ok("info".to_owned()));
        for bad in ["debgu", "info,verbose", "vhost_user_pmem=loud", "a=b=c"] {
            assert!(check_filter(bad).is_err(), "{bad}");
        }
    }
}
