//! What all front-ends of one disk have in common.

use std::fmt;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::checker::DescriptorChecker;
use super::config_record::ConfigRecord;
use super::front_ends::FrontEnds;
use super::writer_lock::{SessionId, WriterLock};
use crate::disk::executor::Unfinished;
use crate::disk::{Disk, FileLock};
use crate::limits::bounds::{MAX_FRONT_ENDS, MAX_PRIVATE_FRONT_ENDS};
use crate::limits::budget::{Amounts, DiskBudget};
use crate::log::LogLimit;
use crate::virtio::blk::{Device, RingCounters};
use crate::worker::{Cpus, HoldUps, Pool};

/// What the sessions of one disk share.
#[derive(Debug)]
pub struct SessionContext<D: Disk> {
    /// The device they serve.
    pub device: Arc<Device<D>>,
    /// Who drives the rings.
    pub pool: Arc<Pool<D>>,
    /// Where; none for anywhere.
    pub cpus: Option<Arc<Cpus>>,
    /// Whose rings may run.
    pub writer_lock: WriterLock,
    /// What rings that have stopped did.
    pub totals: Arc<Mutex<RingCounters>>,
    /// Whether postcopy migration is offered.
    pub offers_postcopy: bool,
    /// Set while one of them is in a postcopy migration.
    pub is_in_postcopy: Arc<AtomicBool>,
    /// What the front-end knows whose rings ran last; none for a disk that serves several at once.
    pub config_record: Option<Arc<ConfigRecord>>,
    /// What receives descriptors.
    pub checker: Arc<DescriptorChecker>,
    /// What they hold up.
    pub hold_ups: Arc<HoldUps>,
    /// What they may take of the process.
    pub budget: DiskBudget,
    /// Who is connected.
    pub front_ends: FrontEnds<D>,
    /// Each front-end is served a disk of its own that is made of this one.
    pub template: Option<Template<D>>,
    /// For lines that a front-end or its guest can cause.
    pub log_limit: Arc<LogLimit>,
}

/// How private disks are made, and those that there are. Each lasts as long as its front-end is connected.
pub struct Template<D: Disk> {
    make: fn(&D) -> io::Result<D>,
    has_one_serial: bool,
    private: Mutex<Vec<Weak<SessionContext<D>>>>,
}

impl<D: Disk> fmt::Debug for Template<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").field("has_one_serial", &self.has_one_serial).finish_non_exhaustive()
    }
}

impl<D: Disk> Template<D> {
    /// Disks that are made by `make` of the one that is served; unless all have one serial number, each has its session's
    /// number behind it.
    pub fn new(make: fn(&D) -> io::Result<D>, has_one_serial: bool) -> Self {
        Self { make, has_one_serial, private: Mutex::default() }
    }

    fn private(&self) -> MutexGuard<'_, Vec<Weak<SessionContext<D>>>> {
        self.private.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Disk> SessionContext<D> {
    /// What a new session serves: this, or of a [template](Template) a disk of its own.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn of_session(self: &Arc<Self>, session: SessionId) -> io::Result<Arc<Self>> {
        let Some(template) = &self.template else { return Ok(Arc::clone(self)) };
        let disk = (template.make)(self.device.disk())?;
        let serial = self.device.identity().serial;
        let serial = if template.has_one_serial { serial } else { with_number(serial, session) };
        let context = Arc::new(Self {
            device: Arc::new(self.device.another(disk, serial)),
            pool: Arc::clone(&self.pool),
            cpus: self.cpus.clone(),
            // Nobody else has it.
            writer_lock: WriterLock::new(true, FileLock::none(), || ()),
            totals: Arc::clone(&self.totals),
            // Other guests are in the same process.
            offers_postcopy: false,
            is_in_postcopy: Arc::clone(&self.is_in_postcopy),
            config_record: None,
            checker: Arc::clone(&self.checker),
            hold_ups: self.hold_ups.of_another(),
            budget: self.budget.clone(),
            front_ends: self.front_ends.of_another(),
            template: None,
            log_limit: Arc::clone(&self.log_limit),
        });
        context.move_by_itself();
        let mut private = template.private();
        private.retain(|context| context.strong_count() != 0);
        private.push(Arc::downgrade(&context));
        Ok(context)
    }

    /// The rings of its sessions are moved when they hold up their worker.
    pub fn move_by_itself(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        self.hold_ups.move_by(move || {
            if let Some(context) = weak.upgrade() {
                context.front_ends.move_rings();
            }
        });
    }

    /// The private disks of a template.
    pub fn private(&self) -> Vec<Arc<Self>> {
        let template = self.template.iter();
        template.flat_map(|it| it.private().iter().filter_map(Weak::upgrade).collect::<Vec<_>>()).collect()
    }

    /// How many front-ends there may be at the same time.
    pub const fn most_front_ends(&self) -> usize {
        if self.template.is_some() { MAX_PRIVATE_FRONT_ENDS } else { MAX_FRONT_ENDS }
    }

    /// What a session takes of the disk's budget.
    pub fn session_amounts(&self) -> Amounts {
        if self.template.is_some() { Amounts::PRIVATE_SESSION } else { Amounts::SESSION }
    }

    /// Front-ends that are connected.
    pub fn count_front_ends(&self) -> usize {
        self.front_ends.count() + self.private().iter().map(|it| it.front_ends.count()).sum::<usize>()
    }

    /// As [`Device::unfinished`](crate::virtio::blk::Device::unfinished), of private disks as well.
    pub fn unfinished(&self) -> (usize, Option<Unfinished>) {
        let of_private = self.private().into_iter().map(|it| it.device.unfinished());
        of_private.fold(self.device.unfinished(), |(sum, oldest), (count, other)| {
            let oldest = [oldest, other].into_iter().flatten().min_by_key(|it| it.since);
            (sum.saturating_add(count), oldest)
        })
    }
}

/// A serial number with a number at its end, of which the last digits are there in any case.
fn with_number(serial: [u8; 20], number: SessionId) -> [u8; 20] {
    let suffix = format!("-{number}");
    let len = serial.iter().position(|byte| *byte == 0).unwrap_or(serial.len());
    let kept = len.min(serial.len().saturating_sub(suffix.len()));
    let bytes = serial.iter().take(kept).copied().chain(suffix.bytes());
    let mut numbered = [0; 20];
    numbered.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    numbered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_differ_and_fit() {
        let serial = |text: &str| {
            let mut bytes = [0; 20];
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            bytes
        };
        assert_eq!(with_number(serial("db0"), 7), serial("db0-7"));
        assert_eq!(with_number(serial(""), 12), serial("-12"));
        assert_eq!(with_number(serial("0123456789abcdefghij"), 345), serial("0123456789abcdef-345"));
        assert_eq!(with_number(serial("x"), u64::MAX), serial("-1844674407370955161"));
    }
}
