//! `vhost-user-pmem ctl`: what the control socket of a server takes, for people and scripts.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use crate::cli::ctl_client::{Client, CtlError};
use crate::cli::ctl_events::{self, EventsArgs, plain};
use crate::cli::exit::{self, Failure};
use crate::cli::printable::{printable, printable_json};
use crate::config::disk_text;
use crate::config::keys::Key;
use crate::config::options::default_name;
use crate::config::size::Size;

/// Show, add, change and remove disks of a server that runs
///
/// The server was started with --control. What is added here is not in the configuration: it is gone after a restart.
#[derive(Debug, Args)]
#[command(after_long_help = exit::help())]
pub(super) struct CtlArgs {
    /// The control socket of the server
    #[arg(long, value_name = "SOCKET", env = "VHOST_USER_PMEM_CONTROL", alias = "socket", global = true)]
    control: Option<PathBuf>,

    /// Print JSON, as the server answers it
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = true)]
enum Task {
    /// List all disks
    List,
    /// Show a disk: its options, and its state at this moment
    Show {
        /// The disk
        name: String,
    },
    /// Show the rings of a disk that run, or were broken by their driver: where each stands, and what it has done
    Rings {
        /// The disk
        name: String,
    },
    /// Open a disk and serve it; one that is served with the same options already is left as it is
    Add {
        /// The keys of `serve --disk`; without name= it is called as its file is
        #[arg(value_name = "KEY=VALUE,...")]
        disk: OsString,
    },
    /// Remove a disk that no front-end is connected to; its file stays
    Remove {
        /// The disk
        name: String,
        /// Let no other front-end in, and hang up on those that have not left after this time: 10s, 500ms, 2m
        #[arg(long, value_name = "TIME", conflicts_with = "force")]
        drain: Option<String>,
        /// Hang up on front-ends at once; what they were answered is done
        #[arg(long)]
        force: bool,
    },
    /// Make a disk and its file larger; without a size, serve what the file or device has by now
    Resize {
        /// The disk
        name: String,
        /// Bytes, also with K, M, G, T or P
        size: Option<String>,
    },
    /// Show what limits a disk, or limit it and its group; 0 or none: no longer
    Limit {
        /// The disk
        name: String,
        /// Limits of `serve --disk`: iops=1000, bps-wr=100M, iops-max=none; also slow-ms=100
        #[arg(value_name = "KEY=VALUE")]
        limits: Vec<String>,
    },
    /// Make durable what was written
    Flush {
        /// The disk
        name: String,
    },
    /// Hang up on all front-ends of a disk, which may come back
    Disconnect {
        /// The disk
        name: String,
    },
    /// Show what happens to disks and front-ends: those events that are kept, or as they come
    Events(EventsArgs),
    /// Log what this says from now on, until the server ends
    Log {
        /// As `serve --log` takes it: off, error, warn, info, debug, trace, or a filter
        level: String,
    },
    /// Read the configuration file again, and apply what has changed as one step
    Reload,
}

/// A request of the control socket.
struct Request {
    method: &'static str,
    path: String,
    body: Option<Value>,
}

pub(super) fn run(args: &CtlArgs) -> Result<(), Failure> {
    let socket = args.control.as_deref().ok_or(CtlError::NoControl)?;
    if let Task::Events(events) = &args.command {
        return ctl_events::run(socket, events, args.json);
    }
    let Request { method, path, body } = request(&args.command)?;
    let answer = Client(socket).ask(method, &path, body.as_ref())?;
    let text = match (args.json, &answer) {
        (_, Value::Null) => String::new(),
        (true, answer) => printable_json(answer) + "\n",
        (false, answer) => text(&args.command, answer),
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)
}

fn request(task: &Task) -> Result<Request, Failure> {
    let of = |method, path: &str, body| Ok(Request { method, path: path.to_owned(), body });
    let disk = |name: &str| format!("/v1/disks/{}", encoded(name));
    match task {
        Task::List => of("GET", "/v1/disks", None),
        Task::Show { name } => of("GET", &disk(name), None),
        Task::Rings { name } => of("GET", &(disk(name) + "/rings"), None),
        Task::Add { disk: text } => {
            let options = options(text)?;
            let name = options.get(Key::Name.name()).and_then(Value::as_str).unwrap_or_default().to_owned();
            of("PUT", &disk(&name), Some(Value::Object(options)))
        }
        Task::Remove { name, drain, force } => {
            let query = match (drain, force) {
                (Some(time), _) => format!("?drain={}", encoded(time)),
                (None, true) => "?force".to_owned(),
                (None, false) => String::new(),
            };
            of("DELETE", &(disk(name) + &query), None)
        }
        Task::Resize { name, size } => {
            of("POST", &(disk(name) + "/resize"), size.as_ref().map(|size| json!({"size": size})))
        }
        Task::Limit { name, limits } if limits.is_empty() => of("GET", &disk(name), None),
        Task::Limit { name, limits } => of("PATCH", &disk(name), Some(Value::Object(patch(limits)?))),
        Task::Flush { name } => of("POST", &(disk(name) + "/flush"), None),
        Task::Disconnect { name } => of("POST", &(disk(name) + "/disconnect"), None),
        // It is not one request and its answer.
        Task::Events(_) => of("GET", "/v1/events", None),
        Task::Log { level } => of("PUT", "/v1/log", Some(json!({"level": level}))),
        Task::Reload => of("POST", "/v1/reload", None),
    }
}

/// The options of a disk as `--disk` has them, with a name. A relative path begins here, and not where the server is.
fn options(text: &std::ffi::OsStr) -> Result<Map<String, Value>, Failure> {
    let mut options = Map::new();
    let mut default = String::new();
    for (key, value) in disk_text::items(text)? {
        let value = match key.is_path(&value) {
            // It only fails where this folder is gone: then the server says what is wrong.
            true => std::path::absolute(&value).map_or(value, Into::into),
            false => value,
        };
        if key == Key::Path {
            default = default_name(value.as_ref());
        }
        options.insert(key.name().to_owned(), value.to_string_lossy().into());
    }
    if let Some(key) = Key::all().find(|key| key.is_required() && !options.contains_key(key.name())) {
        return Err(CtlError::Missing(key.name(), key.form()).into());
    }
    options.entry(Key::Name.name()).or_insert_with(|| default.into());
    Ok(options)
}

/// Limits as a patch: what is `none` is taken out.
fn patch(limits: &[String]) -> Result<Map<String, Value>, Failure> {
    let mut patch = Map::new();
    for limit in limits {
        for (key, value) in disk_text::items(limit.as_ref())? {
            if !Key::tunable().any(|limit| limit == key) {
                return Err(CtlError::NoLimit(key.name()).into());
            }
            let value = value.to_string_lossy();
            let is_none = ["0", "none"].contains(&&*value);
            patch.insert(key.name().to_owned(), if is_none { Value::Null } else { value.into() });
        }
    }
    Ok(patch)
}

/// What limits a disk, in the order of the table.
fn limits(disk: &Value) -> String {
    let of = |key: Key| Some((key.name(), disk.pointer("/options")?.get(key.name())?));
    let text: String =
        Key::tunable().filter_map(of).map(|(name, value)| format!("{name:<24}{}\n", plain(value))).collect();
    if text.is_empty() { "none\n".to_owned() } else { text }
}

/// As a part of an address (RFC 3986).
fn encoded(name: &str) -> String {
    let part = |byte: u8| match byte {
        byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    name.bytes().map(part).collect()
}

fn text(task: &Task, answer: &Value) -> String {
    match (task, answer) {
        (Task::List, Value::Array(disks)) => table(&DISKS, disks),
        (Task::Rings { .. }, Value::Array(rings)) => table(&RINGS, rings),
        (Task::Resize { .. }, _) => {
            let size = |name: &str| Size(answer.get(name).and_then(Value::as_u64).unwrap_or(0));
            format!("from {} to {}\n", size("from_bytes"), size("to_bytes"))
        }
        (Task::Limit { .. }, disk) => limits(disk),
        (_, Value::Object(object)) => lines(&without_histograms(object), 0),
        _ => printable_json(answer) + "\n",
    }
}

/// Of the histograms of a disk no more than people read: how many requests there were, and their quantiles.
fn without_histograms(disk: &Map<String, Value>) -> Map<String, Value> {
    let mut disk = disk.clone();
    let operations = disk.get_mut("state").and_then(|state| state.get_mut("latency")?.as_object_mut());
    for operation in operations.into_iter().flat_map(Map::values_mut).filter_map(Value::as_object_mut) {
        let all = operation.remove("count").and_then(|counts| counts.as_array()?.last().cloned());
        operation.remove("le");
        operation.extend(all.map(|all| ("requests".to_owned(), all)));
    }
    disk
}

/// What stands in a column.
type Column = (&'static str, fn(&Value) -> String);

const DISKS: [Column; 7] = [
    ("NAME", |disk| plain(at(disk, "/name"))),
    ("SIZE", |disk| Size(at(disk, "/state/capacity_bytes").as_u64().unwrap_or(0)).to_string()),
    ("ACCESS", |disk| match at(disk, "/state/read_only").as_bool() {
        Some(true) => "read-only".to_owned(),
        _ => "read-write".to_owned(),
    }),
    ("DURABILITY", |disk| plain(at(disk, "/state/durability"))),
    ("FRONT-ENDS", |disk| plain(at(disk, "/state/front_ends"))),
    ("OVERLAY", |disk| {
        at(disk, "/state/overlay_bytes").as_u64().map_or("-".to_owned(), |bytes| Size(bytes).to_string())
    }),
    ("SOCKET", |disk| plain(at(disk, "/options/socket"))),
];

const RINGS: [Column; 13] = [
    ("FRONT-END", |ring| plain(at(ring, "/front_end"))),
    ("RING", |ring| plain(at(ring, "/ring"))),
    ("FORMAT", |ring| plain(at(ring, "/format"))),
    ("SIZE", |ring| plain(at(ring, "/size"))),
    ("STATE", |ring| plain(at(ring, "/state"))),
    ("AVAIL", |ring| plain(at(ring, "/available"))),
    ("TAKEN", |ring| plain(at(ring, "/taken"))),
    ("USED", |ring| plain(at(ring, "/used"))),
    ("SHOWN", |ring| plain(at(ring, "/shown"))),
    ("UNDER-WAY", |ring| plain(at(ring, "/under_way"))),
    ("READS", |ring| plain(at(ring, "/reads"))),
    ("WRITES", |ring| plain(at(ring, "/writes"))),
    ("FAILURES", |ring| plain(at(ring, "/failures"))),
];

/// A member of a member; null where there is none.
fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

/// A table, as wide as what is in it.
fn table(columns: &[Column], items: &[Value]) -> String {
    let head = columns.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>();
    let rows = items.iter().map(|item| columns.iter().map(|(_, cell)| cell(item)).collect::<Vec<_>>());
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// A line for each member, and those of members below it.
fn lines(object: &Map<String, Value>, depth: usize) -> String {
    let mut text = String::new();
    for (name, value) in object {
        let (indent, name) = (depth * 2, printable(name));
        // Writing to a string cannot fail.
        let _ = match value {
            Value::Object(object) => write!(text, "{:indent$}{name}\n{}", "", lines(object, depth + 1)),
            value => writeln!(text, "{:indent$}{name:<24}{}", "", plain(value)),
        };
    }
    text
}
