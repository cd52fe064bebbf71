//! What a server serves, and how.

use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use crate::disk::{Disk, FileLock};
use crate::limits::budget::{Budget, DiskBudget};
use crate::vhost_user::{
    ConfigRecord, DescriptorChecker, DiskSocket, FrontEnds, SessionContext, Template, WriterLock,
    is_postcopy_possible,
};
use crate::virtio::blk::Device;
use crate::worker::{Cpus, HoldUps, Polling, Pool};

/// A disk of any kind and the socket its front-ends connect to: what an embedder serves.
#[derive(Debug)]
pub struct Service<D: Disk> {
    /// The device.
    pub device: Device<D>,
    /// The lock on its backing; [`FileLock::none`] if there is nothing to lock.
    pub lock: FileLock,
    /// The socket.
    pub socket: DiskSocket,
    /// Where its workers run; none for anywhere.
    pub cpus: Option<Cpus>,
    /// Offer postcopy migration: as [`DiskConfig::postcopy`](crate::config::DiskConfig::postcopy), for all that the process has in memory.
    pub postcopy: bool,
    /// What its front-end knows of the configuration from before.
    pub config_record: ConfigRecord,
    /// Each front-end gets a disk of its own, which is made of the device's.
    pub template: Option<Template<D>>,
}

impl<D: Disk> Service<D> {
    /// The socket, and what all of the disk's front-ends have in common.
    pub(super) fn into_parts(
        self,
        pool: Arc<Pool<D>>,
        checker: Arc<DescriptorChecker>,
        budget: DiskBudget,
    ) -> (DiskSocket, Arc<SessionContext<D>>) {
        let Self { device, lock, socket, cpus, postcopy, config_record, template } = self;
        let is_exclusive = !device.disk().geometry().read_only;
        let log_limit = device.log_limit().clone();
        let hold_ups = HoldUps::of(device.identity().name.clone(), log_limit.clone());
        let device = Arc::new(device);
        let disk = Arc::clone(&device);
        let writer_lock = WriterLock::new(is_exclusive, lock, move || disk.disk().forget_cached());
        let context = Arc::new(SessionContext {
            device,
            pool,
            cpus: cpus.map(Arc::new),
            writer_lock,
            totals: Arc::default(),
            offers_postcopy: postcopy && is_postcopy_possible(),
            is_in_postcopy: Arc::default(),
            config_record: is_exclusive.then(|| Arc::new(config_record)),
            checker,
            hold_ups,
            budget,
            front_ends: FrontEnds::default(),
            template,
            log_limit,
        });
        context.move_by_itself();
        let weak = Arc::downgrade(&context);
        context.device.after_first_flush(move || {
            if let Some(context) = weak.upgrade()
                && let Some(record) = &context.config_record
            {
                record.media_is_written();
            }
        });
        (socket, context)
    }
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
    /// How long the end waits for media; by default [`STOP_TIMEOUT`](crate::limits::bounds::STOP_TIMEOUT).
    pub stop_timeout: Option<Duration>,
}

/// What all disks are served with: the descriptor checker, the workers, and what the process has to share among them.
#[derive(Debug)]
pub(super) struct Means<D: Disk> {
    pub(super) checker: Arc<DescriptorChecker>,
    pub(super) pool: Arc<Pool<D>>,
    pub(super) budget: Arc<Budget>,
}

impl<D: Disk> Means<D> {
    pub(super) fn of_process(checker: Arc<DescriptorChecker>, disks: usize, options: &ServeOptions) -> Self {
        let pool = Arc::new(Pool::new(options.workers, options.polling));
        Self { checker, pool, budget: Budget::of_process(disks) }
    }
}
