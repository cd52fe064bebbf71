//! Disks that come and go while the server runs.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::bad_media::MediaWatcher;
use super::commands::{Closing, Command, Commands, DiskListener, Stopped};
use super::disks::{Claim, DiskNumber, Disks, Served, path_of};
use super::error::ServerError;
use super::file_watches::{FileWatch, Files};
use super::open::{Created, DiskSummary, open};
use super::resize::Resizer;
use super::service::{Means, Service};
use super::stall_watcher::StallWatcher;
use super::throttling::{check_throttling, set_throttling};
use crate::config::{ConfigError, DiskConfig, Throttling, ThrottlingChanges};
use crate::disk::{Backing, Disk};
use crate::limits::bounds::{CLOSE_TIMEOUT, COLLECT_TIMEOUT};
use crate::limits::thread;
use crate::log::kinds;
use crate::sandbox::ThreadKind;
use crate::vhost_user::{ClosedByChecker, SessionContext};

/// How often it is looked whether a disk is used any more.
const POLL: Duration = Duration::from_millis(1);

/// Adds and removes disks, from any thread. It keeps the disks of now open for as long as it lives.
#[derive(Debug)]
pub struct Manager<D: Disk = Backing> {
    parts: Arc<Parts<D>>,
    /// What only disks have that this crate has opened.
    opening: Option<Arc<Opening>>,
}

impl<D: Disk> Clone for Manager<D> {
    fn clone(&self) -> Self {
        Self { parts: self.parts.clone(), opening: self.opening.clone() }
    }
}

/// What it takes to serve a disk.
#[derive(Debug)]
pub(super) struct Parts<D: Disk> {
    pub(super) disks: Arc<Disks<D>>,
    pub(super) means: Means<D>,
    pub(super) commands: Commands<D>,
}

/// What it takes to open one, and to watch it.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) should_stop: Arc<AtomicBool>,
    pub(super) files: Option<Arc<Files>>,
    pub(super) resizer: Resizer,
    pub(super) media: Arc<MediaWatcher>,
    pub(super) stalls: StallWatcher,
}

/// What becomes of the front-ends of a disk that is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// There must be none, or the disk stays.
    Unused,
    /// No other is let in; those that have not left by themselves after this time are hung up on.
    Within(Duration),
}

/// Why a disk was not removed, or not quite.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// No disk has this name.
    #[error("disk {0:?}: no disk has this name")]
    NoSuchDisk(String),
    /// Somebody else removes it.
    #[error("disk {0:?}: it is being removed already")]
    Leaving(String),
    /// Front-ends are connected.
    #[error(
        "disk {disk:?}: {front_ends} of its front-ends are connected; detach it from its guests first, or have them hung up on"
    )]
    Connected {
        /// The disk's name.
        disk: String,
        /// How many.
        front_ends: usize,
    },
    /// It is served no longer, and its file is closed once what uses it has come to an end.
    #[error(
        "disk {0:?}: it is removed, and its file will be closed later: something with it is still under way (slow media?)"
    )]
    Lingers(String),
    /// The server stops, and the disk with it.
    #[error("disk {0:?}: the server is stopping")]
    Stopped(String),
}

impl<D: Disk> Manager<D> {
    pub(super) const fn new(parts: Arc<Parts<D>>, opening: Option<Arc<Opening>>) -> Self {
        Self { parts, opening }
    }

    /// The disk of this name.
    pub(super) fn named(&self, disk: &str) -> Option<Arc<Served<D>>> {
        self.parts.disks.named(disk)
    }

    /// Serves one more disk.
    ///
    /// # Errors
    /// [`ServerError::Config`] where another disk has its name; [`ServerError::Threads`], [`ServerError::Stopped`].
    pub fn serve(&self, service: Service<D>) -> Result<(), ServerError> {
        let name = &service.device.identity().name;
        let claim = self.parts.disks.claim(name, None, service.postcopy)?;
        let (listener, context) = self.parts.listener(service);
        let served = self.parts.disks.add(context, None, None, claim);
        self.parts.let_in(&served, listener)
    }

    /// Removes a disk: it is flushed once more, and when this returns its socket, file, locks and mapping are closed.
    ///
    /// # Errors
    /// [`RemoveError`].
    pub fn remove(&self, disk: &str, departure: Departure) -> Result<(), RemoveError> {
        self.remove_all(&[disk], departure)
    }

    /// Removes several disks, all of them or none.
    ///
    /// # Errors
    /// [`RemoveError`], of the first that stays; or of the first whose file is closed later, with
    /// [`Lingers`](RemoveError::Lingers).
    pub fn remove_all(&self, disks: &[&str], departure: Departure) -> Result<(), RemoveError> {
        let leaving = self.leave(disks)?;
        if let Err(error) = self.parts.close(&leaving, departure) {
            leaving.iter().for_each(|disk| disk.stays());
            return Err(error);
        }
        let mut first = Ok(());
        for served in leaving {
            let name = served.name().to_owned();
            match self.end(served) {
                Ok(()) => tracing::info!(name: kinds::DISK_REMOVED, disk = name, "removed"),
                Err(Lingers) => first = first.and(Err(RemoveError::Lingers(name))),
            }
        }
        first
    }

    /// Flushes a disk once more and closes it, on a thread: media may not answer. It is waited for no longer than
    /// [`CLOSE_TIMEOUT`], and goes on then.
    fn end(&self, served: Arc<Served<D>>) -> Result<(), Lingers> {
        self.parts.disks.remove(served.number);
        served.watch.iter().for_each(FileWatch::end);
        let (sender, ended) = channel();
        let end = move || {
            // What guests were told to be durable is; this is for what they have not flushed.
            if let Err(error) = served.context.device.disk().flush() {
                tracing::error!(disk = served.name(), %error, "the last flush failed");
            }
            // Who asked may have given up.
            let _ = sender.send(drop_last(served));
        };
        // Where there is none, it is closed without that.
        thread::spawn(ThreadKind::Rescan, ThreadKind::Rescan.name(), end).map_err(|_| Lingers)?;
        ended.recv_timeout(CLOSE_TIMEOUT).unwrap_or(Err(Lingers))
    }

    /// Marks disks as leaving, so that nobody else removes them.
    fn leave(&self, disks: &[&str]) -> Result<Vec<Arc<Served<D>>>, RemoveError> {
        let mut leaving: Vec<Arc<Served<D>>> = Vec::new();
        for disk in disks {
            let error = match self.parts.disks.named(disk) {
                Some(served) if served.leaves() => {
                    leaving.push(served);
                    continue;
                }
                Some(_) => RemoveError::Leaving((*disk).to_owned()),
                None => RemoveError::NoSuchDisk((*disk).to_owned()),
            };
            leaving.iter().for_each(|disk| disk.stays());
            return Err(error);
        }
        Ok(leaving)
    }

    /// Hangs up on all front-ends of a disk, which may come back; returns on how many.
    ///
    /// # Errors
    /// [`RemoveError::NoSuchDisk`], [`RemoveError::Stopped`].
    pub fn disconnect(&self, disk: &str) -> Result<usize, RemoveError> {
        let Some(served) = self.parts.disks.named(disk) else {
            return Err(RemoveError::NoSuchDisk(disk.to_owned()));
        };
        let number = served.number;
        let answered = self.parts.commands.send(|answer| Command::HangUp { number, answer });
        let count = answered.and_then(|answered| answered.recv().map_err(|_| Stopped));
        count.map_err(|Stopped| RemoveError::Stopped(disk.to_owned()))
    }
}

impl Manager<Backing> {
    /// Opens one more disk and serves it.
    ///
    /// # Errors
    /// [`ServerError`]; nothing is left behind then.
    pub fn add(&self, config: DiskConfig) -> Result<DiskSummary, ServerError> {
        let limited = ThrottlingChanges::from([(config.name.clone(), config.throttling())]);
        self.check_throttling(&limited, &[])?;
        self.prepare(config)?.serve()
    }

    /// Opens one more disk and its socket, and serves nobody yet: several can be added as one step.
    ///
    /// # Errors
    /// [`ServerError`]; nothing is left behind then.
    pub fn prepare(&self, config: DiskConfig) -> Result<Prepared, ServerError> {
        let Some(opening) = &self.opening else { return Err(ServerError::Stopped) };
        config.check()?;
        let claim = self.parts.disks.claim(&config.name, path_of(&config.socket), config.postcopy)?;
        let mut created = Created::default();
        let (service, summary) = open(config, &mut created, &opening.should_stop)?;
        let (parts, opening) = (self.parts.clone(), opening.clone());
        Ok(Prepared { service, summary, created, claim, parts, opening })
    }

    /// Whether disks may be limited so, some of which need not be here yet, when others have gone.
    ///
    /// # Errors
    /// [`ConfigError::GroupDisagrees`].
    pub fn check_throttling(&self, changes: &ThrottlingChanges, gone: &[String]) -> Result<(), ConfigError> {
        check_throttling(&self.parts.disks, changes, gone)
    }

    /// Limits disks from now on, all of these or none. Requests that were taken are not affected.
    ///
    /// # Errors
    /// As above.
    pub fn set_throttling(&self, changes: &ThrottlingChanges) -> Result<(), ConfigError> {
        set_throttling(&self.parts.disks, changes)?;
        self.parts.means.pool.renew_limits(COLLECT_TIMEOUT);
        for (disk, Throttling { group, limits }) in changes {
            tracing::info!(name: kinds::LIMITS_CHANGED, disk, group, %limits, "limits changed");
        }
        Ok(())
    }

    /// Has requests of a disk that take longer named by the log from now on; `None`: no request.
    ///
    /// # Errors
    /// [`RemoveError::NoSuchDisk`].
    pub fn set_slow_ms(&self, disk: &str, slow_ms: Option<NonZeroU16>) -> Result<(), RemoveError> {
        let Some(served) = self.parts.disks.named(disk) else {
            return Err(RemoveError::NoSuchDisk(disk.to_owned()));
        };
        served.context.device.slow().set_threshold_ms(slow_ms);
        self.parts.means.pool.renew_limits(COLLECT_TIMEOUT);
        if let Some(opening) = &self.opening
            && let Err(error) = opening.stalls.look()
        {
            tracing::warn!(disk, %error, "its slow requests are named when they have ended");
        }
        tracing::info!(disk, slow_ms, "other requests are slow from now on");
        Ok(())
    }

    /// What is served by this name.
    pub fn disk(&self, name: &str) -> Option<DiskSummary> {
        self.named(name)?.summary.clone()
    }

    /// What is served now, in the order in which it came.
    pub fn disks(&self) -> Vec<DiskSummary> {
        self.parts.disks.all().iter().filter_map(|disk| disk.summary.clone()).collect()
    }
}

/// A disk that is open and not served. If it is dropped, nothing is left of it.
#[derive(Debug)]
pub struct Prepared {
    service: Service<Backing>,
    summary: DiskSummary,
    created: Created,
    claim: Claim,
    parts: Arc<Parts<Backing>>,
    opening: Arc<Opening>,
}

impl Prepared {
    /// Serves it.
    ///
    /// # Errors
    /// [`ServerError`]; nothing is left behind then.
    pub fn serve(self) -> Result<DiskSummary, ServerError> {
        let Self { service, summary, created, claim, parts, opening } = self;
        let (listener, context) = parts.listener(service);
        let file = context.device.disk().file();
        let watch = opening.files.as_ref().and_then(|files| files.watch(&summary.name, file));
        let served = parts.disks.add(context, Some(summary.clone()), watch, claim);
        let limited = ThrottlingChanges::from([(summary.name.clone(), summary.throttling.clone())]);
        if let Err(error) = set_throttling(&parts.disks, &limited) {
            served.watch.iter().for_each(FileWatch::end);
            parts.disks.remove(served.number);
            return Err(error.into());
        }
        parts.let_in(&served, listener).inspect_err(|_| served.watch.iter().for_each(FileWatch::end))?;
        created.keep();
        if let Err(error) = opening.media.look() {
            tracing::warn!(disk = summary.name, %error, "its bad media is only noticed when a request fails");
        }
        if let Err(error) = opening.stalls.look() {
            tracing::warn!(disk = summary.name, %error, "the log does not say when its media hangs");
        }
        if !summary.sparse {
            opening.resizer.populate(&served, 0);
        }
        Ok(summary)
    }
}

impl<D: Disk> Parts<D> {
    pub(super) fn listener(&self, service: Service<D>) -> (DiskListener<D>, Arc<SessionContext<D>>) {
        let Means { pool, checker, budget } = &self.means;
        let (socket, context) = service.into_parts(pool.clone(), checker.for_disk(), budget.add());
        (DiskListener { socket, context: context.clone() }, context)
    }

    /// Has the acceptor let front-ends in. If that fails, the disk is gone again.
    fn let_in(&self, served: &Arc<Served<D>>, listener: DiskListener<D>) -> Result<(), ServerError> {
        let number = served.number;
        let answered = self.commands.send(|answer| Command::Add { number, listener, answer });
        let added = match answered.map(|answered| answered.recv()) {
            Ok(Ok(added)) => added.map_err(ServerError::Threads),
            Ok(Err(_)) | Err(Stopped) => Err(ServerError::Stopped),
        };
        added.inspect_err(|_| self.disks.remove(number))
    }

    /// Closes the sockets of disks, and returns when all their front-ends have left.
    fn close(&self, leaving: &[Arc<Served<D>>], departure: Departure) -> Result<(), RemoveError> {
        let (patience, only_unused) = match departure {
            Departure::Unused => (Duration::ZERO, true),
            Departure::Within(patience) => (patience, false),
        };
        let numbers: Vec<_> = leaving.iter().map(|disk| disk.number).collect();
        let name_of = |number: Option<DiskNumber>| {
            let found = leaving.iter().find(|disk| number.is_none_or(|number| disk.number == number));
            found.map(|disk| disk.name().to_owned()).unwrap_or_default()
        };
        let answered = self.commands.send(|answer| Command::Close { numbers, only_unused, answer });
        let stopped = || RemoveError::Stopped(name_of(None));
        let answered = answered.map_err(|Stopped| stopped())?;
        let (mut deadline, mut left, mut is_closed) = (Instant::now().checked_add(patience), 0, false);
        while left < leaving.len() {
            let patience = deadline.map_or(Duration::MAX, |it| it.saturating_duration_since(Instant::now()));
            match answered.recv_timeout(patience) {
                Ok(Closing::Refused(number, front_ends)) => {
                    return Err(RemoveError::Connected { disk: name_of(Some(number)), front_ends });
                }
                Ok(Closing::Closed(copy)) => {
                    is_closed = true;
                    ClosedByChecker::close_all(copy.into_iter().collect());
                }
                Ok(Closing::Left) => left += 1,
                // Nobody is hung up on before the sockets are closed.
                Err(RecvTimeoutError::Timeout) if is_closed => {
                    deadline = None;
                    leaving.iter().for_each(|disk| self.hang_up(disk));
                }
                Err(RecvTimeoutError::Timeout) => deadline = Some(Instant::now() + POLL),
                // The acceptor has ended, when all front-ends had left.
                Err(RecvTimeoutError::Disconnected) if is_closed => break,
                Err(RecvTimeoutError::Disconnected) => return Err(stopped()),
            }
        }
        Ok(())
    }

    fn hang_up(&self, disk: &Served<D>) {
        let number = disk.number;
        let answered = self.commands.send(|answer| Command::HangUp { number, answer });
        if let Ok(Ok(front_ends @ 1..)) = answered.map(|answered| answered.recv()) {
            tracing::info!(
                disk = disk.name(),
                front_ends,
                "hung up on the front-ends of a disk that is removed"
            );
        }
    }
}

/// Somebody still uses it.
struct Lingers;

/// Closes a disk. Those who look at all disks may have it for a moment.
fn drop_last<D: Disk>(served: Arc<Served<D>>) -> Result<(), Lingers> {
    let deadline = Instant::now() + CLOSE_TIMEOUT;
    let Served { context, claim, .. } = last(served, deadline)?;
    let SessionContext { device, .. } = last(context, deadline)?;
    drop(last(device, deadline)?);
    // Last: from now on another disk may have its name and its socket.
    drop(claim);
    Ok(())
}

/// What is shared, once nobody else has it.
fn last<T>(mut shared: Arc<T>, deadline: Instant) -> Result<T, Lingers> {
    loop {
        shared = match Arc::try_unwrap(shared) {
            Ok(last) => return Ok(last),
            Err(_) if Instant::now() >= deadline => return Err(Lingers),
            Err(shared) => shared,
        };
        std::thread::sleep(POLL);
    }
}
