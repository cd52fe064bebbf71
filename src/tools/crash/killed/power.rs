//! The power fails with many requests under way, on media that end writes and syncs in any order: what a flush promised is
//! there. A sync keeps what had finished when it began, and nothing else: above all no write that was under way.

use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Instant;

use super::guest::{self, GuestRequest, Size};
use super::pending::{Gate, PATIENCE, Verdict};
use super::{Machine, SECTOR_BYTES};
use crate::copy::{PrefetchHint, Segments};
use crate::disk::{Disk, DiskError, Durability, Geometry, MappedDisk};
use crate::failpoint;
use crate::tools::crash::workload::Random;
use crate::virtio::queue::RingKind;

/// What is done wrong, to see that it is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// A ring has a flush begun while writes before it are under way.
    FlushAmongWrites,
    /// A flush is answered by a sync that began before it was asked for.
    SyncShared,
    /// A write is said to be done when it has only been begun.
    WriteBehind,
}

/// What outlives a power failure, and what would if a sync that runs were over.
#[derive(Debug, Default)]
struct Kept {
    durable: Vec<u8>,
    /// What the sync before has found.
    last_found: Vec<u8>,
    /// Writes that were said to be done before they are.
    behind: Vec<(u64, Vec<u8>)>,
}

/// A disk with a cache that forgets.
#[derive(Debug)]
struct CachedDisk {
    disk: MappedDisk,
    gate: Arc<Gate>,
    kept: Arc<Mutex<Kept>>,
    mistake: Mistake,
}

impl CachedDisk {
    fn image(&self) -> Vec<u8> {
        let mut image = vec![0; self.disk.geometry().capacity_bytes as usize];
        let into = crate::copy::testing::Memory::new(&image);
        self.disk.read(0, into.segments(), PrefetchHint::NONE).unwrap();
        image.copy_from_slice(&into.bytes());
        image
    }
}

impl Disk for CachedDisk {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }
    fn durability(&self) -> Durability {
        Durability::Page
    }
    fn may_wait(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        self.gate.pass();
        self.disk.read(offset, into, next)
    }
    fn write(&self, offset: u64, from: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        if self.mistake == Mistake::WriteBehind {
            let mut bytes = vec![0; from.total_bytes()];
            crate::copy::load_slice(from, &mut bytes);
            self.kept.lock().unwrap().behind.push((offset, bytes));
            return Ok(());
        }
        match self.gate.pass() {
            Verdict::Done => self.disk.write(offset, from, next),
            Verdict::Half | Verdict::Nothing => Err(DiskError::Unsupported),
        }
    }
    fn fence(&self) {
        self.disk.fence();
    }
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        None
    }
    fn flush(&self) -> Result<(), DiskError> {
        let found = self.image();
        self.gate.pass();
        let mut kept = self.kept.lock().unwrap();
        let before = std::mem::replace(&mut kept.last_found, found.clone());
        kept.durable = if self.mistake == Mistake::SyncShared { before } else { found };
        for (offset, bytes) in std::mem::take(&mut kept.behind) {
            let from = crate::copy::testing::Memory::new(&bytes);
            self.disk.write(offset, from.segments(), PrefetchHint::NONE)?;
        }
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.disk.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<u64, DiskError> {
        self.disk.write_zeroes(offset, len, unmap)
    }
}

/// Lets everything through when it is dropped.
struct OpenOnDrop(Arc<Gate>);

impl Drop for OpenOnDrop {
    fn drop(&mut self) {
        self.0.die();
    }
}

/// What is promised to outlive a power failure now: all requests before this one.
fn promised(machine: &Machine, writeback: bool) -> usize {
    let seen = machine.guest.requests.get(..machine.guest.seen).unwrap_or_default();
    match writeback {
        true => seen.iter().rposition(|request| *request == GuestRequest::Flush).unwrap_or(0),
        false => seen.len(),
    }
}

/// Whether all that was promised is there, and nothing that nobody has written.
fn is_kept(machine: &Machine, durable: &[u8], promised: usize) -> bool {
    let mut sectors = vec![vec![0]; machine.guest.size.sectors];
    for (number, request) in machine.guest.requests.iter().enumerate() {
        if let GuestRequest::Write { sector, count, word } = *request {
            for allowed in sectors.iter_mut().skip(sector).take(count) {
                if number < promised {
                    allowed.clear();
                }
                allowed.push(word);
            }
        }
    }
    durable.chunks(SECTOR_BYTES).zip(&sectors).all(|(bytes, allowed)| {
        bytes.as_chunks::<8>().0.iter().all(|word| allowed.contains(&u64::from_le_bytes(*word)))
    })
}

/// Runs requests, and looks after each step what a power failure would leave. Returns whether all of it was right, and how many
/// requests were begun at once.
fn run(kind: RingKind, writeback: bool, size: Size, mistake: Mistake, seed: u64) -> (bool, usize) {
    let mut random = Random::new(seed);
    let mut machine = Machine::new(kind, size);
    machine.is_write_through = !writeback;
    let (gate, kept) = (Arc::<Gate>::default(), Arc::<Mutex<Kept>>::default());
    let empty = vec![0; size.disk_bytes() as usize];
    *kept.lock().unwrap() = Kept { durable: empty.clone(), last_found: empty, behind: Vec::new() };
    let disk = CachedDisk { disk: machine.mapped_disk(), gate: gate.clone(), kept: kept.clone(), mistake };
    let mut ring = machine.start_on(disk, 0);
    // Dropped first: if this fails, its threads must not wait.
    let gate = OpenOnDrop(gate);
    let (mut is_right, mut most, mut looked_at) = (true, 0, 0);
    for _ in 0..3 {
        for _ in 0..size.most {
            machine.guest.offer(match guest::any_request(&mut random, size) {
                // It would see by itself that a write is not there.
                GuestRequest::Read { .. } if mistake == Mistake::WriteBehind => GuestRequest::Flush,
                request => request,
            });
        }
        let since = Instant::now();
        while machine.guest.seen < machine.guest.requests.len() {
            assert!(
                since.elapsed() < PATIENCE,
                "{} requests were done, and then no more",
                machine.guest.seen
            );
            if random.below(4) != 0 {
                gate.0.grant(&mut random);
            }
            if ring.has_work() {
                let mut serve = || {
                    ring.serve(Waker::noop());
                };
                match mistake {
                    Mistake::FlushAmongWrites => failpoint::with_hasty_flushes(serve),
                    _ => serve(),
                }
            }
            std::thread::yield_now();
            most = most.max(ring.device().unfinished().0);
            machine.maybe_executed = machine.guest.requests.len();
            if machine.reap() > 0 && promised(&machine, writeback) != looked_at {
                looked_at = promised(&machine, writeback);
                is_right &= is_kept(&machine, &kept.lock().unwrap().durable, looked_at);
            }
        }
    }
    (is_right, most)
}

#[test]
fn what_a_flush_promised_outlives_a_power_failure_with_any_number_under_way() {
    for kind in [RingKind::Split, RingKind::Packed] {
        for writeback in [true, false] {
            for (size, seeds, least) in [(Size::SMALL, 20, 5), (Size::LARGE, 2, 80)] {
                let runs: Vec<_> =
                    (0..seeds).map(|seed| run(kind, writeback, size, Mistake::None, seed)).collect();
                assert!(runs.iter().all(|run| run.0), "{kind:?}, writeback {writeback}: lost");
                let most = runs.iter().map(|run| run.1).max();
                assert!(most >= Some(least), "{kind:?}, writeback {writeback}: only {most:?} at once");
            }
        }
    }
}

/// So that the one above can fail.
#[test]
fn mistakes_about_flushes_are_noticed() {
    for mistake in [Mistake::FlushAmongWrites, Mistake::SyncShared, Mistake::WriteBehind] {
        for kind in [RingKind::Split, RingKind::Packed] {
            let is_noticed = (0..20).any(|seed| !run(kind, true, Size::SMALL, mistake, seed).0);
            assert!(is_noticed, "{kind:?}: {mistake:?} is not noticed");
        }
    }
}
