//! `serve --check`: what would be served, and the exit code of a start, without one.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::io::{self, Write as _};

use crate::cli::control::Control;
use crate::cli::exit::Failure;
use crate::cli::metrics::MetricsArgs;
use crate::cli::start_message::OverlayLine;
use crate::cli::{activation, limits};
use crate::config::size::Size;
use crate::config::{DiskConfig, ServerConfig};
use crate::disk::{BackingPath, Durability, Holder, Inode, LockMode, OpenError, Preview, Symlinks};
use crate::server::{self, ServerError};

/// Checks everything, prints what would be served, and fails as a start would; other failures follow the first.
pub(super) fn run(
    mut config: ServerConfig,
    metrics: &MetricsArgs,
    control: &Control,
    symlinks: Symlinks,
) -> Result<(), Failure> {
    config.check()?;
    limits::raise_open_files(config.disks.len())?;
    activation::take_passed(&mut config.disks)?;
    let mut failures: Vec<_> = metrics.check(symlinks).map(Failure::from).collect();
    failures.extend(control.check(symlinks).map(Failure::from));
    let (mut text, mut files) = (String::new(), Files::default());
    for disk in &config.disks {
        match server::preview(disk).map_err(Failure::from).and_then(|it| files.add(disk).map(|()| it)) {
            Ok(preview) => {
                // Writing to a string cannot fail.
                let _ = write!(text, "{}", Line { disk, preview: &preview });
            }
            Err(failure) => failures.push(failure),
        }
    }
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)?;
    match failures.len() {
        0 => Ok(()),
        1 => failures.pop().map_or(Ok(()), Err),
        _ => Err(Failure::Several(failures)),
    }
}

/// The files of the disks that were checked: two disks cannot write to the same one.
#[derive(Debug, Default)]
struct Files(HashMap<Inode, bool>);

impl Files {
    fn add(&mut self, disk: &DiskConfig) -> Result<(), Failure> {
        let Ok(metadata) = std::fs::metadata(&disk.path) else { return Ok(()) };
        if !metadata.is_file() || disk.lock != LockMode::On {
            return Ok(());
        }
        match self.0.insert(Inode::from(&metadata), disk.only_reads()) {
            Some(others_reads) if !(others_reads && disk.only_reads()) => {
                let holder = Holder { pid: Some(std::process::id()), command: None };
                let backing = BackingPath::of_disk(&disk.name, &disk.path);
                Err(ServerError::from(OpenError::Locked { backing, holder }).into())
            }
            _ => Ok(()),
        }
    }
}

/// What is said of a disk.
struct Line<'a> {
    disk: &'a DiskConfig,
    preview: &'a Preview,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { disk, preview } = self;
        let access = if disk.read_only { "read-only" } else { "read-write" };
        let bytes = preview.capacity_bytes;
        writeln!(f, "disk {:?}", disk.name)?;
        write!(f, "  file        {}", disk.path.display())?;
        match &preview.media {
            Some(media) => writeln!(f, ": {}", media.kind)?,
            None => writeln!(f)?,
        }
        write!(f, "  size        {} ({bytes} bytes), ", Size(bytes))?;
        writeln!(f, "{}-byte blocks, {access}", preview.block_bytes)?;
        if let Some(overlay) = &disk.overlay {
            let max_bytes = overlay.max_bytes.or_else(|| overlay.file.is_none().then_some(bytes));
            writeln!(
                f,
                "{}",
                OverlayLine { file: overlay.file.as_deref(), max_bytes, template: disk.template }
            )?;
        }
        let is_in_memory = disk.overlay.as_ref().is_some_and(|overlay| overlay.file.is_none());
        match &preview.media {
            Some(_) if is_in_memory => writeln!(f, "  durability  {}", Durability::Volatile)?,
            Some(media) => writeln!(f, "  durability  {}", media.durability)?,
            None => writeln!(f, "  durability  known once the file is there: its file system has DAX")?,
        }
        writeln!(f, "  queues      {}", disk.queues)?;
        if !disk.limits.is_empty() {
            writeln!(f, "  limits      {}", disk.limits)?;
        }
        match disk.socket.path() {
            Some(socket) => writeln!(f, "  socket      {}", socket.display())?,
            None => writeln!(f, "  socket      passed by the service manager")?,
        }
        match (preview.creates, is_in_memory || disk.overlay.is_none()) {
            (true, true) => writeln!(f, "  a start creates the file\n"),
            (true, false) => writeln!(f, "  a start creates the overlay's file\n"),
            (false, _) => writeln!(f),
        }
    }
}
