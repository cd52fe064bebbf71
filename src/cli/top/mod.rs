//! `vhost-user-pmem top`: what the disks and rings of a server do, as it goes on.
//!
//! | module | subject |
//! | --- | --- |
//! | `source`, `sample` | asks the server; what it shows at one moment |
//! | `rates` | what happened between two samples |
//! | `view` | what is looked at, and what keys change of it |
//! | `cells` | columns, and numbers as people read them |
//! | `draw` | the live view, in characters |
//! | `screen` | the terminal |
//! | `document` | the same for programs |
//! | `failure` | why there is no view |

mod cells;
mod document;
mod draw;
mod failure;
mod rates;
mod sample;
mod screen;
mod source;
mod view;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use clap::Args;

use crate::cli::ctl_client::CtlError;
use crate::cli::exit::{self, Failure};
pub(super) use failure::TopError;
use rates::{Picture, picture};
use source::Source;
use view::{Sort, View};

/// What the live view takes for an interval.
const MIN_INTERVAL_SECONDS: f64 = 0.1;
const MAX_INTERVAL_SECONDS: f64 = 3600.0;

/// Show what the disks and rings of a server do, as it goes on
///
/// The server was started with --control. Shown are requests and megabytes a second, the time that they take, how many wait, how
/// many bytes the media take for each that guests write, and the state of each disk: of the ring that is worst off. `-` is what is
/// not known: before the second sample, or because the server does not tell. Whoever may connect to the socket may look.
///
/// Keys: q or Ctrl-C ends it; up and down choose a disk, Enter shows its rings, Esc goes back; s sorts by the next key, r the other
/// way round; / shows the disks whose name contains a text; p pauses; ? explains the columns. A server that goes away is waited for.
#[derive(Debug, Args)]
#[command(after_long_help = exit::help())]
pub(super) struct TopArgs {
    /// The control socket of the server
    #[arg(long, value_name = "SOCKET", env = "VHOST_USER_PMEM_CONTROL", alias = "socket")]
    control: Option<PathBuf>,

    /// Print one table, of one interval, and end
    #[arg(long)]
    once: bool,

    /// Print JSON: a line for each interval, or one with --once
    #[arg(long)]
    json: bool,

    /// Seconds between two looks, from 0.1 to 3600
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    interval: f64,

    /// What to sort by, the largest first
    #[arg(long, value_name = "KEY", value_enum, default_value = "iops")]
    sort: Sort,

    /// Show disks whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    filter: String,

    /// Show the rings of this disk
    #[arg(long, value_name = "DISK")]
    rings: Option<String>,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok();
    let is_possible = |seconds: &f64| (MIN_INTERVAL_SECONDS..=MAX_INTERVAL_SECONDS).contains(seconds);
    seconds.filter(is_possible).ok_or_else(|| "write seconds, from 0.1 to 3600".to_owned())
}

pub(super) fn run(args: TopArgs) -> Result<(), Failure> {
    let source = Source(args.control.ok_or(CtlError::NoControl)?);
    let interval = Duration::from_secs_f64(args.interval);
    let view = View::new(args.sort, args.filter, args.rings);
    match (args.once, args.json) {
        (true, json) => once(&source, interval, &view, json),
        (false, true) => stream(&source, interval, &view),
        (false, false) => {
            check_terminal()?;
            screen::run(source, interval, view).map_err(|error| TopError::Terminal(error).into())
        }
    }
}

fn check_terminal() -> Result<(), TopError> {
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        return Err(TopError::NotATerminal);
    }
    let term = std::env::var("TERM").unwrap_or_default();
    if matches!(term.as_str(), "" | "dumb") { Err(TopError::Dumb(term)) } else { Ok(()) }
}

fn once(source: &Source, interval: Duration, view: &View, json: bool) -> Result<(), Failure> {
    let before = source.sample()?;
    sleep(interval);
    let picture = picture(Some(&before), &source.sample()?);
    let text = if json { document::line(&picture, view) } else { table(&picture, view) };
    print(&text).map_err(Failure::Output)
}

/// A line for each interval, until nobody reads them.
fn stream(source: &Source, interval: Duration, view: &View) -> Result<(), Failure> {
    // A server that is not there at the start is a mistake; one that goes away is waited for.
    let mut last = source.sample()?;
    loop {
        sleep(interval);
        let line = match source.sample() {
            Ok(sample) => {
                let line = document::line(&picture(Some(&last), &sample), view);
                last = sample;
                line
            }
            Err(error) => document::away(&error.to_string()),
        };
        match print(&line) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            printed => printed.map_err(Failure::Output)?,
        }
    }
}

fn table(picture: &Picture, view: &View) -> String {
    match view.rings_of {
        Some(_) => cells::table(&cells::RINGS, &view.rings(picture)),
        None => cells::table(&cells::DISKS, &view.disks(picture)),
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush())
}
