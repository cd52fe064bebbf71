//! Opens one disk of the configuration and its socket, and describes it.

use std::io;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::error::ServerError;
use super::service::Service;
use crate::config::{self, CpuChoice, DiskConfig, SocketSource, Throttling};
use crate::disk::{
    self, Backing, BackingKind, Disk as _, Durability, Inode, Media, OpenOptions, Opened, Preview, Region,
    Storage,
};
use crate::log::kinds;
use crate::vhost_user::{
    AllowedUsers, ConfigRecord, DiskSocket, Listener, ListenerError, SocketAccess, Template,
};
use crate::virtio::blk::{Device, Identity};
use crate::worker::Cpus;

/// A disk as it is served.
#[derive(Debug, Clone)]
pub struct DiskSummary {
    /// Its name in logs and errors.
    pub name: String,
    /// The backing.
    pub path: PathBuf,
    /// The socket that front-ends connect to; none with an inherited descriptor.
    pub socket: Option<PathBuf>,
    /// Size in bytes when it was opened.
    pub capacity_bytes: u64,
    /// Logical block size in bytes.
    pub block_bytes: u32,
    /// Queues offered.
    pub queues: NonZeroU16,
    /// Writes are refused.
    pub read_only: bool,
    /// What the path is.
    pub kind: BackingKind,
    /// What it promises.
    pub durability: Durability,
    /// Why it promises that and not more.
    pub why: String,
    /// The regions of persistent memory below.
    pub regions: Vec<Region>,
    /// What FLUSH does.
    pub flush: &'static str,
    /// What it lies on, where that changes what a flush means.
    pub storage: Option<Storage>,
    /// Holes are left as they are.
    pub sparse: bool,
    /// Whether each front-end has a private disk of its own.
    pub template: config::Template,
    /// The file that keeps what is written to a private disk.
    pub overlay_file: Option<PathBuf>,
    /// Of a private disk: the most memory that what is written may take, in bytes.
    pub overlay_max_bytes: Option<u64>,
    /// What its guests may do when it is opened.
    pub throttling: Throttling,
}

/// Files that this start has created, and which inodes they are: removed if it fails, so that the next try starts afresh. What
/// their paths lead to by then may be somebody else's.
#[derive(Debug, Default)]
pub(super) struct Created(Vec<(PathBuf, Inode)>);

impl Created {
    /// The start has succeeded.
    pub(super) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        for (path, created) in &self.0 {
            // The error that brought us here is the one to report; but in the sandbox nothing can be removed any more.
            if created.remove_from(path).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
                tracing::warn!(path = %path.display(), "the file was created, and stays: remove it, or start again with it");
            }
        }
    }
}

/// Opens one disk and its socket. The socket comes last: once it exists, the disk is there.
pub(super) fn open(
    config: DiskConfig,
    files: &mut Created,
    should_stop: &Arc<AtomicBool>,
) -> Result<(Service<Backing>, DiskSummary), ServerError> {
    let (options, throttling) = (options_of(&config, should_stop), config.throttling());
    let DiskConfig { name, path, socket, serial, queues, seg_max, slow_ms, sparse, cpus, postcopy, .. } =
        config;
    let (access, allowed_users) = (config.access, config.allowed_users);
    let template = (config.template != config::Template::Off)
        .then(|| Template::new(Backing::fork, config.template == config::Template::SameSerial));
    let overlay = config.overlay.and_then(|overlay| overlay.file);
    let Opened { disk, lock, media, created } = disk::open(&path, &options)?;
    log_media(&name, &media);
    if created {
        let made = overlay.as_ref().unwrap_or(&path);
        files.0.extend(Inode::at(made).ok().map(|created| (made.clone(), created)));
    }
    let cpus = cpus_of(&name, cpus, media.numa_node())?;
    let geometry = disk.geometry();
    let summary = DiskSummary {
        name: name.clone(),
        path: path.clone(),
        socket: socket.path().map(ToOwned::to_owned),
        capacity_bytes: geometry.capacity_bytes,
        block_bytes: geometry.block_bytes,
        queues,
        read_only: geometry.read_only,
        kind: media.kind,
        durability: media.durability,
        flush: media.flush(),
        storage: media.storage,
        why: media.why,
        regions: media.regions,
        sparse,
        template: config.template,
        overlay_file: overlay,
        overlay_max_bytes: disk.overlay_bytes().map(|(_, max_bytes)| max_bytes),
        throttling,
    };
    let socket = open_socket(socket, &access, allowed_users)
        .map_err(|error| ServerError::listener(name.clone(), error))?;
    let identity = Identity { name, serial: *serial.as_bytes() };
    let config_record = ConfigRecord::load(disk.record_file(), media.durability);
    let device = Device::new(disk, identity, queues.get()).with_seg_max(seg_max);
    device.slow().set_threshold_ms(slow_ms);
    Ok((Service { device, lock, socket, cpus, postcopy, config_record, template }, summary))
}

fn options_of(config: &DiskConfig, should_stop: &Arc<AtomicBool>) -> OpenOptions {
    OpenOptions {
        name: config.name.clone(),
        size_bytes: config.size_bytes,
        block_bytes: config.block_bytes,
        read_only: config.read_only,
        sparse: config.sparse,
        overlay: config.overlay.clone(),
        lock: config.lock,
        require_durable: config.require_durable,
        discard: config.discard,
        deep_flush: config.deep_flush,
        should_stop: should_stop.clone(),
        symlinks: config.symlinks,
    }
}

/// What a disk of the configuration would be, without a change to anything: [`disk::preview`], and whether its socket and its
/// workers could be had.
///
/// # Errors
/// What a start would fail with.
pub fn preview(config: &DiskConfig) -> Result<Preview, ServerError> {
    let preview = disk::preview(&config.path, &options_of(config, &Arc::default()))?;
    let numa_node = preview.media.as_ref().and_then(Media::numa_node);
    cpus_of(&config.name, config.cpus.clone(), numa_node)?;
    if let Some(path) = config.socket.path() {
        Listener::preview(path, &config.access)
            .map_err(|error| ServerError::listener(config.name.clone(), error))?;
    }
    Ok(preview)
}

/// Logs what a disk promises, and what is wrong with its media.
fn log_media(disk: &str, media: &Media) {
    let Media { kind, durability, why, .. } = media;
    let domains: Vec<_> =
        media.regions.iter().map(|it| it.persistence_domain.as_deref().unwrap_or("unknown")).collect();
    tracing::info!(
        disk,
        backing = %kind,
        durability = durability.word(),
        why,
        flush = media.flush(),
        storage = media.storage.as_ref().map(tracing::field::display),
        persistence_domain = (!domains.is_empty()).then(|| domains.join(",")),
        numa_node = media.numa_node(),
        "opened"
    );
    let dirty_shutdowns: u64 = media.regions.iter().filter_map(|it| it.dirty_shutdowns).sum();
    if dirty_shutdowns != 0 {
        tracing::warn!(
            disk,
            dirty_shutdowns,
            "persistent memory has lost power uncleanly before; check the data"
        );
    }
    if !media.bad_blocks.is_empty() {
        let ranges = &media.bad_blocks;
        tracing::warn!(name: kinds::MEDIA_BAD, disk, ?ranges, "bad media: reads of these ranges fail until they are written");
    }
}

fn open_socket(
    socket: SocketSource,
    access: &SocketAccess,
    allowed: AllowedUsers,
) -> Result<DiskSocket, ListenerError> {
    let socket = match socket {
        SocketSource::Path(path) => Listener::bind(&path, access).map(DiskSocket::Listening),
        SocketSource::Fd(socket) => Listener::inherit(socket),
    };
    Ok(match socket? {
        DiskSocket::Listening(listener) => DiskSocket::Listening(listener.allowing(allowed)),
        connected @ DiskSocket::Connected(_) => connected,
    })
}

/// The CPUs that the workers of a disk run on; none for any.
fn cpus_of(disk: &str, choice: CpuChoice, numa_node: Option<u32>) -> Result<Option<Cpus>, ServerError> {
    match choice {
        CpuChoice::Any => Ok(None),
        CpuChoice::Set(cpus) => match cpus.allowed() {
            None => Err(ServerError::NoCpu { disk: disk.to_owned(), cpus }),
            allowed => Ok(allowed),
        },
        CpuChoice::NearBacking => {
            let cpus = numa_node.and_then(Cpus::of_node);
            match &cpus {
                Some(cpus) => tracing::info!(disk, numa_node, %cpus, "workers run near the backing"),
                None => tracing::info!(
                    disk,
                    numa_node,
                    "no CPUs are known to be near the backing: workers run on any"
                ),
            }
            Ok(cpus)
        }
    }
}
