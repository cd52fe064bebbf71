//! `vhost-user-pmem info`: what a path is and how it would be served.

use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::cli::exit::{self, Failure};
use crate::config::size::Size;
use crate::disk::{self, Description, Durability, Media, Region, Storage, StorageLayer};

/// Show what a path is and how it would be served, and change nothing
#[derive(Debug, Args)]
#[command(after_long_help = exit::help())]
pub(super) struct InfoArgs {
    /// File or device to examine
    path: PathBuf,

    /// Print one JSON object instead of text
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
    let mut line = |name, value: String| writeln!(out, "  {name:<16}{value}");
    let size = |bytes| format!("{} ({bytes} bytes)", Size(bytes));
    line("path", path.display().to_string())?;
    line("type", it.file_kind.to_string())?;
    if let Some(media) = &it.media {
        line("backing", media.kind.to_string())?;
        line("size", size(it.length_bytes))?;
        if !media.kind.is_device() {
            line("allocated", size(it.allocated_bytes))?;
        }
    }
    line("writable", if it.writable { "yes" } else { "no" }.to_owned())?;
    if let Some(holder) = &it.holder {
        line("in use", format!("locked by {holder}"))?;
    }
    if let Some(data_path) = it.data_path() {
        line("served by", data_path.to_owned())?;
    }
    if let Some(media) = &it.media {
        line("durability", media.durability.to_string())?;
        line("because", media.why.clone())?;
        line("a flush is", media.flush().to_owned())?;
        if let Some(storage) = &media.storage {
            line("it lies on", storage.to_string())?;
            line("a flush there", storage.flush().to_owned())?;
        }
        if let Some(writeback) = it.initial_writeback() {
            line("cache at first", if writeback { "write back" } else { "write through" }.to_owned())?;
        }
        line("page size", size(it.page_bytes))?;
        if let Some(huge_bytes) = it.huge_bytes {
            line("huge pages", format!("{} of it", size(huge_bytes)))?;
        }
        if let Some(discard) = it.discard() {
            line("discards", discard.to_string())?;
        }
        for region in &media.regions {
            line("region", region_line(region))?;
        }
        for range in &media.bad_blocks {
            line("bad media", format!("{} bytes at {}", range.end - range.start, range.start))?;
        }
    }
    match &it.refusal {
        Some(refusal) => line("not servable", refusal.to_string()),
        None => Ok(()),
    }
}

fn region_line(region: &Region) -> String {
    let mut text = format!(
        "{} of {}, persistence_domain {}",
        region.name,
        region.provider.as_deref().unwrap_or("an unknown bus"),
        region.persistence_domain.as_deref().unwrap_or("unknown"),
    );
    if let Some(node) = region.numa_node {
        text += &format!(", NUMA node {node}");
    }
    if let Some(count) = region.dirty_shutdowns {
        text += &format!(", dirty shutdowns {count}");
    }
    text
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
    holder_command: Option<&'a str>,
    data_path: Option<&'static str>,
    durability: Option<&'static str>,
    durability_reason: Option<&'a str>,
    flush: Option<&'static str>,
    storage: Vec<LayerReport<'a>>,
    storage_flush: Option<&'static str>,
    initial_writeback: Option<bool>,
    page_bytes: u64,
    huge_bytes: Option<u64>,
    discard: Option<String>,
    numa_node: Option<u32>,
    regions: Vec<RegionReport<'a>>,
    bad_blocks: Vec<RangeReport>,
    refusal: Option<String>,
}

#[derive(Debug, Serialize)]
struct LayerReport<'a> {
    kind: String,
    name: &'a str,
    detail: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct RegionReport<'a> {
    name: &'a str,
    provider: Option<&'a str>,
    persistence_domain: Option<&'a str>,
    flush_hints: bool,
    numa_node: Option<u32>,
    dirty_shutdowns: Option<u64>,
}

#[derive(Debug, Serialize)]
struct RangeReport {
    offset_bytes: u64,
    length_bytes: u64,
}

fn write_json(out: &mut impl Write, path: &Path, it: &Description) -> io::Result<()> {
    let media = it.media.as_ref();
    let (regions, bad_blocks) =
        media.map_or((&[][..], &[][..]), |media| (&media.regions[..], &media.bad_blocks[..]));
    let storage = media.and_then(|media| media.storage.as_ref());
    let report = Report {
        path: path.to_string_lossy(),
        r#type: it.file_kind.to_string(),
        backing: it.kind().map(|kind| kind.to_string()),
        size_bytes: it.length_bytes,
        allocated_bytes: it.allocated_bytes,
        writable: it.writable,
        holder_pid: it.holder.as_ref().and_then(|holder| holder.pid),
        holder_command: it.holder.as_ref().and_then(|holder| holder.command.as_deref()),
        data_path: it.data_path(),
        durability: it.durability().map(Durability::word),
        durability_reason: media.map(|media| media.why.as_str()),
        flush: media.map(Media::flush),
        storage: storage.map_or(&[][..], Storage::layers).iter().map(layer_report).collect(),
        storage_flush: storage.map(Storage::flush),
        initial_writeback: it.initial_writeback(),
        page_bytes: it.page_bytes,
        huge_bytes: it.huge_bytes,
        discard: it.discard().map(|discard| discard.to_string()),
        numa_node: media.and_then(Media::numa_node),
        regions: regions.iter().map(region_report).collect(),
        bad_blocks: bad_blocks.iter().map(range_report).collect(),
        refusal: it.refusal.as_ref().map(ToString::to_string),
    };
    serde_json::to_writer_pretty(&mut *out, &report)?;
    writeln!(out)
}

fn layer_report(layer: &StorageLayer) -> LayerReport<'_> {
    LayerReport { kind: layer.kind.to_string(), name: &layer.name, detail: layer.detail.as_deref() }
}

fn region_report(region: &Region) -> RegionReport<'_> {
    RegionReport {
        name: &region.name,
        provider: region.provider.as_deref(),
        persistence_domain: region.persistence_domain.as_deref(),
        flush_hints: region.has_flush_hints,
        numa_node: region.numa_node,
        dirty_shutdowns: region.dirty_shutdowns,
    }
}

const fn range_report(range: &Range<u64>) -> RangeReport {
    RangeReport { offset_bytes: range.start, length_bytes: range.end - range.start }
}
