//! Disks × sessions × workers: who lives, who stops, in which order.
//!
//! ```text
//! start (what fails leaves nothing behind)            stop (asked to, dropped, or the only front-end has left)
//! 1 the descriptor checker is forked                  1 sockets close, their paths disappear
//! 2 disks are opened, sockets bound, one by one       2 connections before their first message are closed
//! 3 `confine`: nothing is looked up by a path         3 every other front-end is hung up on: its session
//!     from here on, and there is no thread yet            drains its rings and ends
//! 4 the acceptor's thread lets front-ends in;         4 each disk is flushed once more, when its last session has ended
//!     each gets a session with a thread of its own    5 workers end
//!     with its first message; workers start           6 populating stops, watchers end
//!     with the first ring                             7 the checker ends with the last of the disks
//! 5 growth, bad media and stalls are watched for
//! 6 once the server is waited for: mappings
//!     are populated
//! ```
//!
//! [`Server::start`] and [`Server::serve`] are the left side, [`Server::wait`] is the right one; steps 1 to 5 of it are
//! those of the acceptor's thread.

mod acceptor;
mod bad_media;
mod collector;
mod commands;
mod disks;
mod error;
mod farewell;
mod file_watches;
mod flush;
mod growth_watcher;
mod handshake;
mod manager;
mod open;
mod populate_thread;
mod rescan;
mod resize;
mod service;
mod stall_watcher;
mod start;
mod stopper;
mod take_down;
mod throttling;

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;

pub use collector::{Collector, DiskStats, RingStats};
pub use error::{GivenUp, ServerError};
pub use flush::FlushError;
pub use growth_watcher::RescanTrigger;
pub use manager::{Departure, Manager, Prepared, RemoveError};
pub use open::{DiskSummary, preview};
pub use resize::{ResizeError, Resized, Resizer};
pub use service::{ServeOptions, Service};
pub use stopper::Stopper;

use crate::config::{ServerConfig, ThrottlingChanges, check_postcopy};
use crate::copy::{Engine, fault};
use crate::disk::{Backing, Disk};
use crate::limits::bounds::STOP_TIMEOUT;
use crate::limits::thread;
use crate::sandbox::ThreadKind;
use crate::vhost_user::{ConfigRecord, DescriptorChecker};
use crate::virtio::blk::Counters;
use crate::worker::prepare_calls;
use acceptor::Acceptor;
use bad_media::MediaWatcher;
use commands::Commands;
use file_watches::{FileWatch, Files};
use growth_watcher::GrowthWatcher;
use manager::{Opening, Parts};
use populate_thread::PopulateThread;
use service::Means;
use stall_watcher::StallWatcher;
use start::{OpenDisks, open_all};
use throttling::set_throttling;

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct Server<D: Disk = Backing> {
    parts: Arc<Parts<D>>,
    stopper: Stopper,
    acceptor: Option<JoinHandle<Result<(), GivenUp>>>,
    populate_thread: Option<PopulateThread>,
    growth_watcher: Option<GrowthWatcher>,
    opening: Option<Arc<Opening>>,
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
        let ServerConfig { disks, workers, polling, exit_on_disconnect, stop_timeout, should_stop } = config;
        check_postcopy(disks.iter().map(|it| (it.name.as_str(), it.postcopy))).map_err(ServerError::from)?;
        let OpenDisks { mut services, summaries, created } =
            open_all(disks, &should_stop, stop_timeout.unwrap_or(STOP_TIMEOUT))?;
        let options = ServeOptions { workers, polling, exit_on_disconnect, stop_timeout };
        let means = Means::of_process(checker, services.len(), &options);
        let files = Files::new();
        let watches: Vec<_> = services
            .iter()
            .map(|it: &Service<Backing>| {
                files.as_ref()?.watch(&it.device.identity().name, it.device.disk().file())
            })
            .collect();
        ConfigRecord::outlive_privileges(services.iter_mut().map(|it| &mut it.config_record));
        confine(&summaries)?;
        let about = summaries.into_iter().map(Some).zip(watches);
        let mut server = Self::serve_with(means, services.into_iter().zip(about), &options)?;
        created.keep();
        tracing::info!("copies: {}", engine.describe());
        server.watch(files, should_stop).map_err(ServerError::Threads)?;
        Ok(server)
    }

    /// Starts what disks have that this crate has opened.
    fn watch(&mut self, files: Option<Arc<Files>>, should_stop: Arc<AtomicBool>) -> io::Result<()> {
        let disks = &self.parts.disks;
        // Unlike those of sparse ones, the holes of these are filled.
        let eager: Vec<_> = disks.all().into_iter().filter(|disk| !disk.is_sparse()).collect();
        self.populate_thread = PopulateThread::new(&eager, 0);
        let resizer = Resizer::new(disks.clone());
        self.growth_watcher = Some(GrowthWatcher::start(resizer.clone(), files.clone())?);
        let media = Arc::new(MediaWatcher::new(disks.clone()));
        media.look()?;
        let stalls = StallWatcher::new(disks.clone(), self.parts.means.pool.clone());
        stalls.look()?;
        self.opening = Some(Arc::new(Opening { should_stop, files, resizer, media, stalls }));
        Ok(())
    }

    /// What reads the sizes of disks again, from any thread. None for a server that was not
    /// [started](Self::start) from a configuration.
    pub fn resizer(&self) -> Option<Resizer> {
        self.growth_watcher.as_ref().map(GrowthWatcher::resizer)
    }

    /// What asks the server to read the sizes of its disks again, without waiting for it. None as above.
    pub fn rescan_trigger(&self) -> Option<RescanTrigger> {
        self.growth_watcher.as_ref().map(GrowthWatcher::rescan_trigger)
    }

    /// What is served, in the order in which it came.
    pub fn disks(&self) -> Vec<DiskSummary> {
        self.manager().disks()
    }

    /// What collects the metrics of the disks while they are served.
    pub fn collector(&self) -> Collector {
        Collector::new(self.parts.disks.clone(), self.parts.means.pool.clone())
    }
}

impl<D: Disk> Server<D> {
    /// Serves disks of any kind.
    ///
    /// # Errors
    /// [`ServerError::Config`], [`ServerError::Threads`], [`ServerError::Copy`].
    pub fn serve(services: Vec<Service<D>>, options: ServeOptions) -> Result<Self, ServerError> {
        let postcopy = services.iter().map(|it| (it.device.identity().name.as_str(), it.postcopy));
        check_postcopy(postcopy)?;
        let checker = DescriptorChecker::start().map_err(ServerError::Threads)?;
        let means = Means::of_process(checker, services.len(), &options);
        let services = services.into_iter().map(|service| (service, (None, None)));
        Self::serve_with(means, services, &options)
    }

    fn serve_with(
        means: Means<D>,
        services: impl Iterator<Item = (Service<D>, (Option<DiskSummary>, Option<FileWatch>))>,
        options: &ServeOptions,
    ) -> Result<Self, ServerError> {
        prepare()?;
        let (sender, receiver) = channel();
        let stop_timeout = options.stop_timeout.unwrap_or(STOP_TIMEOUT);
        let acceptor = Acceptor::new(means.pool.clone(), options.exit_on_disconnect, stop_timeout, receiver);
        let mut acceptor = acceptor.map_err(ServerError::Threads)?;
        let stopper = acceptor.stopper();
        let commands = Commands::new(sender, stopper.clone());
        let parts = Arc::new(Parts { disks: Arc::default(), means, commands });
        let mut limited = ThrottlingChanges::new();
        for (service, (summary, watch)) in services {
            let name = service.device.identity().name.clone();
            let socket = summary.as_ref().and_then(|summary| summary.socket.clone());
            let claim = parts.disks.claim(&name, socket, service.postcopy)?;
            let (listener, context) = parts.listener(service);
            let served = parts.disks.add(context, summary, watch, claim);
            limited.extend(served.summary.as_ref().map(|it| (it.name.clone(), it.throttling.clone())));
            acceptor.add(served.number, listener).map_err(ServerError::Threads)?;
        }
        set_throttling(&parts.disks, &limited)?;
        let thread = thread::spawn(ThreadKind::Acceptor, "acceptor", || acceptor.run());
        let acceptor = Some(thread.map_err(ServerError::Threads)?);
        let (populate_thread, growth_watcher, opening) = (None, None, None);
        Ok(Self { parts, stopper, acceptor, populate_thread, growth_watcher, opening })
    }

    /// What adds and removes disks, from any thread.
    pub fn manager(&self) -> Manager<D> {
        Manager::new(self.parts.clone(), self.opening.clone())
    }

    /// What asks the server to stop, from any thread.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// What the rings of a disk that have stopped did, by the disk's name.
    pub fn totals(&self, disk: &str) -> Option<Counters> {
        let served = self.parts.disks.named(disk)?;
        Some(served.context.totals.lock().unwrap_or_else(PoisonError::into_inner).sum())
    }

    /// Waits until the server has stopped: asked to, or because its only front-end has left. Every request
    /// that was begun is answered by then.
    ///
    /// # Errors
    /// [`ServerError::Threads`] when the accepting thread died; [`ServerError::GivenUp`] when that was not so in time: what
    /// hangs is left to itself then, with its threads, until the process ends.
    pub fn wait(mut self) -> Result<(), ServerError> {
        self.populate_thread.iter_mut().for_each(PopulateThread::begin);
        self.join()
    }

    fn join(&mut self) -> Result<(), ServerError> {
        let joined = self.acceptor.take().map_or(Ok(Ok(())), JoinHandle::join);
        let opening = self.opening.take();
        opening.iter().for_each(|opening| opening.stalls.end());
        if let Ok(Err(given_up)) = joined {
            // Whatever waits for a thread that hangs is not dropped.
            std::mem::forget((self.parts.clone(), opening, self.growth_watcher.take()));
            return Err(ServerError::GivenUp(given_up));
        }
        // Each ends when it is dropped. What they are at is not needed any more, and would only delay the end.
        self.populate_thread = None;
        opening.iter().for_each(|opening| opening.media.end());
        self.growth_watcher = None;
        joined.map(drop).map_err(|_| ServerError::Threads(io::Error::other("the accepting thread panicked")))
    }
}

impl<D: Disk> Drop for Server<D> {
    fn drop(&mut self) {
        if self.acceptor.is_some() {
            self.stopper.stop();
            // The only error is a panic of the acceptor's thread, which the panic hook has reported.
            let _ = self.join();
        }
    }
}

/// Chooses how bytes are copied and contains the faults of that, once in a process, and what drivers are called with: before there
/// are sockets.
fn prepare() -> Result<&'static Engine, ServerError> {
    let engine = Engine::choose()?;
    fault::install().map_err(ServerError::Faults)?;
    prepare_calls();
    Ok(engine)
}
