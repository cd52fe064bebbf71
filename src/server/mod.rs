//! Disks × sessions × workers: who lives, who stops, in which order.
//!
//! Start: open the disks, bind the sockets, accept. Stop: accept no more, hang up on every front-end (whose
//! rings drain then), end the workers, remove the sockets. Workers start with the first ring.

mod acceptor;
mod bad_media;
mod collector;
mod error;
mod growth_watcher;
mod handshake;
mod populate_thread;
mod resize;

use std::io;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub use acceptor::Stopper;
pub use collector::{Collector, DiskStats};
pub use error::ServerError;
pub use growth_watcher::Rescan;
pub use resize::{ResizeError, Resized, Resizer};

use crate::config::{CpuChoice, DiskConfig, ServerConfig, SocketSource, check_postcopy};
use crate::copy::{Engine, fault};
use crate::disk::{
    self, Backing, BackingKind, Disk, Durability, FileLock, Media, OpenOptions, Opened, Region,
};
use crate::limits::budget::{Budget, DiskBudget};
use crate::limits::thread;
use crate::vhost_user::{
    AllowedUsers, ConfigRecord, DescriptorChecker, DiskSocket, FrontEnds, Listener, ListenerError,
    SessionContext, SocketAccess, WriterLock, is_postcopy_possible,
};
use crate::virtio::blk::{Counters, Device, Identity};
use crate::worker::Cpus;
use crate::worker::{Polling, Pool};
use acceptor::{Acceptor, DiskListener};
use bad_media::MediaWatcher;
use growth_watcher::Watcher;
use populate_thread::PopulateThread;
use resize::Resizable;

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
    /// Holes are left as they are.
    pub sparse: bool,
}

/// A disk of any kind and the socket its front-ends connect to: what an embedder serves.
#[derive(Debug)]
pub struct Service<D: Disk> {
    /// The device.
    pub device: Device<D>,
    /// The lock on its backing; [`FileLock::none`] if there is nothing to lock.
    pub lock: FileLock,
    /// Where front-ends come from.
    pub socket: DiskSocket,
    /// Where its workers run; none for anywhere.
    pub cpus: Option<Cpus>,
    /// Offer postcopy migration: as [`DiskConfig::postcopy`], for all that the process has in memory.
    pub postcopy: bool,
    /// What its front-end knows of the configuration from before.
    pub config_record: ConfigRecord,
}

/// How disks are served.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServeOptions {
    /// Most worker threads for each choice of CPUs; by default one a CPU.
    pub workers: Option<NonZeroU16>,
    /// How long a worker without requests waits for the next one awake.
    pub polling: Polling,
    /// Stop when the first front-end has left.
    pub exit_on_disconnect: bool,
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct Server<D: Disk = Backing> {
    disks: Vec<DiskSummary>,
    contexts: Vec<Arc<SessionContext<D>>>,
    pool: Arc<Pool<D>>,
    stopper: Stopper,
    acceptor: Option<JoinHandle<()>>,
    populate_thread: Option<PopulateThread>,
    growth: Option<Growth>,
    media_watcher: Option<MediaWatcher>,
}

/// What has files that grow served as they are.
#[derive(Debug)]
struct Growth {
    /// Dropped first: it uses the other.
    watcher: Watcher,
    resizer: Resizer,
}

impl Server<Backing> {
    /// Opens disks, binds sockets, and accepts front-ends from then on. What makes first touches quick is done once
    /// the server is [waited](Self::wait) for: whatever is to be told or started before does not wait for it.
    ///
    /// # Errors
    /// [`ServerError`]; nothing is left behind then.
    pub fn start(config: ServerConfig) -> Result<Self, ServerError> {
        Self::start_confined(config, |_| Ok(()))
    }

    /// As [`start`](Self::start), and calls `confine` when all is opened that is looked up by a path, and before there is
    /// a thread of the server: what it forbids this thread (`crate::sandbox`), it forbids all of them.
    ///
    /// # Errors
    /// [`ServerError`], or that of `confine`.
    pub fn start_confined<E: From<ServerError>>(
        config: ServerConfig,
        confine: impl FnOnce(&[DiskSummary]) -> Result<(), E>,
    ) -> Result<Self, E> {
        // First: it keeps a copy of what memory there is, and no disk is mapped yet.
        let checker = DescriptorChecker::start().map_err(ServerError::Threads)?;
        let engine = prepare()?;
        let ServerConfig { disks, workers, polling, exit_on_disconnect, should_stop } = config;
        let (mut services, mut summaries, mut created) = (Vec::new(), Vec::new(), Created::default());
        for disk in disks {
            let should_stop_now = || should_stop.load(Ordering::Relaxed);
            if should_stop_now() {
                return Err(ServerError::Stopped.into());
            }
            let opened = open(disk, &mut created, &should_stop);
            let (service, summary) = opened.map_err(|error| match should_stop_now() {
                // That was why, or it does not matter any more.
                true => ServerError::Stopped,
                false => error,
            })?;
            services.push(service);
            summaries.push(summary);
        }
        let options = ServeOptions { workers, polling, exit_on_disconnect };
        let means = Means::of_process(checker, services.len(), &options);
        let files = growth_watcher::Files::of(
            services.iter().map(|it| (it.device.identity().name.as_str(), it.device.disk().file())),
        );
        confine(&summaries)?;
        let mut server = Self::serve_with(means, services, exit_on_disconnect)?;
        created.keep();
        server.disks = summaries;
        tracing::info!("copies: {}", engine.describe());
        let eager = server.disks.iter().zip(&server.contexts).filter(|(disk, _)| !disk.sparse);
        let eager = eager.map(|(_, context)| context.device.clone()).collect();
        server.populate_thread = PopulateThread::new(eager, 0);
        let all = server.disks.iter().zip(&server.contexts);
        let resizable = |(disk, context): (&DiskSummary, &Arc<_>)| Resizable {
            context: Arc::clone(context),
            sparse: disk.sparse,
        };
        let resizer = Resizer::new(all.map(resizable).collect());
        let watcher = Watcher::start(resizer.clone(), files).map_err(ServerError::Threads)?;
        server.growth = Some(Growth { watcher, resizer });
        let devices = server.contexts.iter().map(|context| context.device.clone());
        server.media_watcher = MediaWatcher::start(devices).map_err(ServerError::Threads)?;
        Ok(server)
    }

    /// What reads the sizes of disks again, from any thread. None for a server that was not
    /// [started](Self::start) from a configuration.
    pub fn resizer(&self) -> Option<Resizer> {
        self.growth.as_ref().map(|growth| growth.resizer.clone())
    }

    /// What asks the server to read the sizes of its disks again, without waiting for it. None as above.
    pub fn rescan(&self) -> Option<Rescan> {
        self.growth.as_ref().map(|growth| growth.watcher.rescan())
    }

    /// What is served, in the order of the configuration.
    pub fn disks(&self) -> &[DiskSummary] {
        &self.disks
    }

    /// What collects the metrics of the disks while they are served.
    pub fn collector(&self) -> Collector {
        let media = self.disks.iter().map(|disk| (disk.kind, disk.regions.clone()));
        Collector::new(self.contexts.iter().cloned().zip(media), self.pool.clone())
    }
}

impl<D: Disk> Server<D> {
    /// Serves disks of any kind.
    ///
    /// # Errors
    /// [`ServerError::Config`], [`ServerError::Threads`], [`ServerError::Copy`].
    pub fn serve(services: Vec<Service<D>>, options: ServeOptions) -> Result<Self, ServerError> {
        let checker = DescriptorChecker::start().map_err(ServerError::Threads)?;
        let means = Means::of_process(checker, services.len(), &options);
        Self::serve_with(means, services, options.exit_on_disconnect)
    }

    fn serve_with(
        means: Means<D>,
        services: Vec<Service<D>>,
        exit_on_disconnect: bool,
    ) -> Result<Self, ServerError> {
        check_postcopy(services.iter().map(|it| (it.device.identity().name.as_str(), it.postcopy)))?;
        prepare()?;
        let Means { checker, pool, budgets } = means;
        let (mut listeners, mut contexts) = (Vec::new(), Vec::new());
        for (Service { device, lock, socket, cpus, postcopy, config_record }, budget) in
            services.into_iter().zip(budgets)
        {
            let is_exclusive = !device.disk().geometry().read_only;
            let log_limit = device.log_limit().clone();
            let context = Arc::new(SessionContext {
                device: Arc::new(device),
                pool: pool.clone(),
                cpus: cpus.map(Arc::new),
                writer_lock: WriterLock::new(is_exclusive, lock),
                totals: Mutex::new(Counters::default()),
                offers_postcopy: postcopy && is_postcopy_possible(),
                is_in_postcopy: Arc::default(),
                config_record: is_exclusive.then(|| Arc::new(config_record)),
                checker: checker.clone(),
                budget,
                front_ends: FrontEnds::default(),
                log_limit,
            });
            let weak = Arc::downgrade(&context);
            context.device.after_first_flush(move || {
                if let Some(context) = weak.upgrade()
                    && let Some(record) = &context.config_record
                {
                    record.media_is_written();
                }
            });
            contexts.push(context.clone());
            listeners.push(DiskListener { socket, context });
        }
        let acceptor =
            Acceptor::new(listeners, pool.clone(), exit_on_disconnect).map_err(ServerError::Threads)?;
        let stopper = acceptor.stopper();
        let thread = thread::spawn("acceptor", || acceptor.run());
        let acceptor = Some(thread.map_err(ServerError::Threads)?);
        let disks = Vec::new();
        let (populate_thread, growth, media_watcher) = (None, None, None);
        Ok(Self { disks, contexts, pool, stopper, acceptor, populate_thread, growth, media_watcher })
    }

    /// What asks the server to stop, from any thread.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// What the rings of a disk that have stopped did, by the disk's name.
    pub fn totals(&self, disk: &str) -> Option<Counters> {
        let context = self.contexts.iter().find(|context| context.device.identity().name == disk)?;
        Some(*context.totals.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// Waits until the server has stopped: asked to, or because its only front-end has left. Every request
    /// fetched from a ring is answered by then.
    ///
    /// # Errors
    /// [`ServerError::Threads`] when the accepting thread died.
    pub fn wait(mut self) -> Result<(), ServerError> {
        self.populate_thread.iter_mut().for_each(PopulateThread::begin);
        self.join()
    }

    fn join(&mut self) -> Result<(), ServerError> {
        let joined = self.acceptor.take().map_or(Ok(()), JoinHandle::join);
        // They would only delay the end.
        self.populate_thread = None;
        self.media_watcher = None;
        if let Some(Growth { watcher, resizer }) = self.growth.take() {
            drop(watcher);
            resizer.stop_populating();
        }
        joined.map_err(|_| ServerError::Threads(io::Error::other("the accepting thread panicked")))
    }
}

impl<D: Disk> Drop for Server<D> {
    fn drop(&mut self) {
        if self.acceptor.is_some() {
            self.stopper.stop();
            let _ = self.join();
        }
    }
}

/// What disks are served with, as far as this process was asked for it.
struct Means<D: Disk> {
    checker: Arc<DescriptorChecker>,
    pool: Arc<Pool<D>>,
    budgets: Vec<DiskBudget>,
}

impl<D: Disk> Means<D> {
    fn of_process(checker: Arc<DescriptorChecker>, disks: usize, options: &ServeOptions) -> Self {
        let pool = Arc::new(Pool::new(options.workers, options.polling));
        Self { checker, pool, budgets: Budget::of_process(disks) }
    }
}

/// Files that this start has created: removed if it fails, so that the next try starts afresh.
#[derive(Debug, Default)]
struct Created(Vec<PathBuf>);

impl Created {
    /// The start has succeeded.
    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        for path in &self.0 {
            // The error that brought us here is the one to report.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Chooses how bytes are copied and contains the faults of that, once in a process.
fn prepare() -> Result<&'static Engine, ServerError> {
    let engine = Engine::choose()?;
    fault::install().map_err(ServerError::Faults)?;
    Ok(engine)
}

/// Opens one disk and its socket. The socket comes last: once it exists, the disk is there.
fn open(
    config: DiskConfig,
    files: &mut Created,
    should_stop: &Arc<AtomicBool>,
) -> Result<(Service<Backing>, DiskSummary), ServerError> {
    let options = OpenOptions {
        name: config.name.clone(),
        size_bytes: config.size_bytes,
        block_bytes: config.block_bytes,
        read_only: config.read_only,
        sparse: config.sparse,
        lock: config.lock,
        require_durable: config.require_durable,
        discard: config.discard,
        deep_flush: config.deep_flush,
        should_stop: should_stop.clone(),
        symlinks: config.symlinks,
    };
    let DiskConfig { name, path, socket, serial, queues, seg_max, sparse, cpus, postcopy, .. } = config;
    let (access, allowed_users) = (config.access, config.allowed_users);
    let Opened { disk, lock, media, created } = disk::open(&path, &options)?;
    log_media(&name, &media);
    if created {
        files.0.push(path.clone());
    }
    let cpus = place(&name, cpus, media.numa_node())?;
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
        why: media.why,
        regions: media.regions,
        sparse,
    };
    let socket = open_socket(socket, &access, allowed_users)
        .map_err(|error| ServerError::listener(name.clone(), error))?;
    let identity = Identity { name, serial: *serial.as_bytes() };
    let config_record =
        ConfigRecord::load((!geometry.read_only).then(|| disk.shared_file()), media.durability);
    let device = Device::new(disk, identity, queues.get()).with_seg_max(seg_max);
    Ok((Service { device, lock, socket, cpus, postcopy, config_record }, summary))
}

/// Says what a disk is worth, and what is wrong with its media.
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
        tracing::warn!(disk, ?ranges, "bad media: reads of these ranges fail until they are written");
    }
}

fn open_socket(
    socket: SocketSource,
    access: &SocketAccess,
    allowed: AllowedUsers,
) -> Result<DiskSocket, ListenerError> {
    let inlet = match socket {
        SocketSource::Path(path) => Listener::bind(&path, access).map(DiskSocket::Listening),
        SocketSource::Fd(socket) => Listener::inherit(socket),
    };
    Ok(match inlet? {
        DiskSocket::Listening(listener) => DiskSocket::Listening(listener.allowing(allowed)),
        connected @ DiskSocket::Connected(_) => connected,
    })
}

/// The CPUs that the workers of a disk run on; none for any.
fn place(disk: &str, choice: CpuChoice, numa_node: Option<u32>) -> Result<Option<Cpus>, ServerError> {
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
