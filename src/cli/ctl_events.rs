//! `vhost-user-pmem ctl events`: what happens to disks and front-ends, as it happens.

use std::io::{self, Write as _};
use std::path::Path;

use clap::Args;
use serde_json::Value;

use super::ctl_client::Client;
use super::exit::Failure;
use super::printable::{printable, printable_json};

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Show what happens from now on, until the server ends
    #[arg(long, short)]
    follow: bool,

    /// Begin behind the event of this number; with --follow alone, with what comes from now on
    #[arg(long, value_name = "SEQ")]
    since: Option<u64>,
}

impl EventsArgs {
    fn path(&self) -> String {
        match (self.follow, self.since) {
            (true, None) => "/v1/events".to_owned(),
            (true, Some(since)) => format!("/v1/events?since={since}"),
            (false, since) => format!("/v1/events?since={}&once", since.unwrap_or(0)),
        }
    }
}

/// Members that have a column of their own.
const COLUMNS: [&str; 5] = ["seq", "time", "event", "disk", "message"];

/// Prints each event as it comes: as JSON, or for people.
pub(super) fn run(socket: &Path, args: &EventsArgs, is_json: bool) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    Client(socket).follow(&args.path(), |event| {
        let line = if is_json { printable_json(event) } else { line(event) };
        writeln!(out, "{line}").and_then(|()| out.flush()).map_err(Failure::Output)
    })
}

/// An event for people.
fn line(event: &Value) -> String {
    let of = |name: &str| plain(event.get(name).unwrap_or(&Value::Null));
    // Of a fraction of a second, milliseconds.
    let time = of("time").chars().take("2026-11-30T19:00:00.000".len()).collect::<String>();
    let others = event.as_object().into_iter().flatten();
    let others = others.filter(|(name, _)| !COLUMNS.contains(&name.as_str()));
    let others: String =
        others.map(|(name, value)| format!(" {}={}", printable(name), plain(value))).collect();
    let message = event.get("message").map(|_| format!("  {}", of("message"))).unwrap_or_default();
    format!("{:>6}  {time:23}  {:17}  {:12}{message}{others}", of("seq"), of("event"), of("disk"))
        .trim_end()
        .to_owned()
}

/// A value in a table.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => printable(text),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => printable_json(other),
    }
}
