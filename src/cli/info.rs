//! `vhost-user-pmem info`: what a path is and how it would be served.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::cli::exit::{self, Failure};
use crate::cli::size::Size;
use crate::disk::{self, Description, Durability};

/// Say what a path is, its size, and how it would be served; nothing is changed
#[derive(Debug, Args)]
#[command(after_long_help = exit::help())]
pub(super) struct InfoArgs {
    /// The file to look at
    path: PathBuf,

    /// Print one JSON object instead of lines for people
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &InfoArgs) -> Result<(), Failure> {
    let description = disk::describe(&args.path)?;
    let mut out = io::stdout().lock();
    let written = match args.json {
        true => write_json(&mut out, &args.path, &description),
        false => write_lines(&mut out, &args.path, &description),
    };
    written.and_then(|()| out.flush()).map_err(Failure::Output)
}

fn write_lines(out: &mut impl Write, path: &Path, it: &Description) -> io::Result<()> {
    let mut line = |name, value: String| writeln!(out, "  {name:<14}{value}");
    line("path", path.display().to_string())?;
    line("type", it.file_kind.to_string())?;
    if let Some(kind) = it.kind {
        line("backing", kind.to_string())?;
        line("size", format!("{} ({} bytes)", Size(it.length_bytes), it.length_bytes))?;
        line("allocated", format!("{} ({} bytes)", Size(it.allocated_bytes), it.allocated_bytes))?;
    }
    line("writable", if it.writable { "yes" } else { "no" }.to_owned())?;
    if let Some(pid) = it.holder {
        line("in use", format!("served by process {pid}"))?;
    }
    if let Some(data_path) = it.data_path() {
        line("served by", data_path.to_owned())?;
    }
    if let Some(durability) = it.durability() {
        line("durability", durability.to_string())?;
    }
    match &it.refusal {
        Some(refusal) => line("not servable", refusal.to_string()),
        None => Ok(()),
    }
}

/// The same for programs. A field that does not apply is null.
#[derive(Debug, Serialize)]
struct Report<'a> {
    path: std::borrow::Cow<'a, str>,
    r#type: String,
    backing: Option<String>,
    size_bytes: u64,
    allocated_bytes: u64,
    writable: bool,
    holder_pid: Option<u32>,
    data_path: Option<&'static str>,
    durability: Option<&'static str>,
    refusal: Option<String>,
}

fn write_json(out: &mut impl Write, path: &Path, it: &Description) -> io::Result<()> {
    let report = Report {
        path: path.to_string_lossy(),
        r#type: it.file_kind.to_string(),
        backing: it.kind.map(|kind| kind.to_string()),
        size_bytes: it.length_bytes,
        allocated_bytes: it.allocated_bytes,
        writable: it.writable,
        holder_pid: it.holder,
        data_path: it.data_path(),
        durability: it.durability().map(word),
        refusal: it.refusal.as_ref().map(ToString::to_string),
    };
    serde_json::to_writer_pretty(&mut *out, &report)?;
    writeln!(out)
}

/// A durability class as one word.
const fn word(durability: Durability) -> &'static str {
    match durability {
        Durability::Volatile => "volatile",
        Durability::Page => "page",
        Durability::CacheLine => "cache-line",
        Durability::Byte => "byte",
    }
}
