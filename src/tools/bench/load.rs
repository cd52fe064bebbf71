//! The load on one queue: so many requests under way, each of which is timed and counted.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::tools::bench::client::{Kind, Queue};
use crate::tools::bench::verify::{self, Blocks};
use crate::tools::bench::{BenchError, Waiting, Work, cpu};

/// Polls without a completion after which a poller checks whether it should give up.
const SPINS: u32 = 4096;

/// Digits of a latency that are kept.
const DIGITS: u8 = 3;

/// The longest latency that the histogram distinguishes: an hour, in nanoseconds.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// What was counted of a queue in a round.
#[derive(Debug, Clone)]
pub(super) struct Counts {
    pub(super) reads: u64,
    pub(super) writes: u64,
    /// From the first request's begin to the last one's end.
    pub(super) time: Duration,
    /// What this thread used of a CPU.
    pub(super) cpu: Duration,
    /// In nanoseconds.
    pub(super) latency: Histogram<u64>,
    pub(super) kicks: u64,
    pub(super) calls: u64,
}

/// An empty histogram of latencies.
pub(super) fn histogram() -> Histogram<u64> {
    // It cannot fail: the bounds are valid constants.
    Histogram::new_with_bounds(1, LONGEST_NS, DIGITS)
        .unwrap_or_else(|_| Histogram::new(DIGITS).unwrap_or_else(|_| unreachable!()))
}

/// What the threads of a round have in common.
#[derive(Debug)]
pub(super) struct Shared {
    /// Set when the round has failed: nobody waits for completions any longer.
    pub(super) give_up: AtomicBool,
    done: Vec<Count>,
}

/// Requests of a queue that are done, in cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Count(AtomicU64);

impl Shared {
    pub(super) fn new(queues: usize) -> Self {
        Self { give_up: AtomicBool::new(false), done: (0..queues).map(|_| Count::default()).collect() }
    }

    /// Requests of all queues that are done, for whoever watches.
    pub(super) fn done(&self) -> u64 {
        self.done.iter().map(|count| count.0.load(Ordering::Relaxed)).sum()
    }

    fn add_done(&self, queue: usize, count: u64) {
        if let Some(place) = self.done.get(queue) {
            place.0.fetch_add(count, Ordering::Relaxed);
        }
    }
}

/// The part of the disk that a queue works on, in blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockRange {
    pub(super) first: u64,
    pub(super) count: u64,
}

/// A request under way.
#[derive(Debug, Clone, Copy)]
struct InFlight {
    start: Instant,
    block: u64,
    kind: Kind,
}

/// What a queue's thread works with.
pub(super) struct Load<'a> {
    queue: &'a mut Queue,
    socket: &'a Path,
    work: &'a Work,
    range: BlockRange,
    /// Where blocks are verified.
    blocks: Option<&'a mut Blocks>,
    slots: Vec<Option<InFlight>>,
    free: Vec<u16>,
    done: Vec<(u16, i32)>,
    scratch: Vec<u8>,
    random: u64,
    /// The next block where they are in order.
    next: u64,
    /// Writes since the last flush.
    unflushed: u32,
    reads_back: bool,
}

impl<'a> Load<'a> {
    pub(super) fn new(
        queue: &'a mut Queue,
        socket: &'a Path,
        work: &'a Work,
        range: BlockRange,
        blocks: Option<&'a mut Blocks>,
    ) -> Self {
        let depth = work.depth.get();
        let block_bytes = usize::try_from(work.block_bytes).unwrap_or(usize::MAX);
        Self {
            queue,
            socket,
            work,
            range,
            blocks,
            slots: vec![None; usize::from(depth)],
            free: (0..depth).rev().collect(),
            done: Vec::with_capacity(usize::from(depth)),
            scratch: vec![0; block_bytes],
            random: verify::mix(range.first ^ u64::from(std::process::id())),
            next: 0,
            unflushed: 0,
            reads_back: false,
        }
    }

    /// Begins requests for `time`, and waits until all are done.
    pub(super) fn run(&mut self, time: Duration, shared: &Shared) -> Result<Counts, BenchError> {
        self.queue.drain_calls().map_err(|source| self.local("read the call's eventfd", source))?;
        (self.queue.kicks, self.queue.calls) = (0, 0);
        let mut counts = Counts {
            reads: 0,
            writes: 0,
            time: Duration::ZERO,
            cpu: Duration::ZERO,
            latency: histogram(),
            kicks: 0,
            calls: 0,
        };
        let (begin, cpu) = (Instant::now(), cpu::of_this_thread());
        let mut now = begin;
        loop {
            if now.duration_since(begin) < time {
                self.submit_all()?;
            }
            if self.free.len() == self.slots.len() {
                break;
            }
            now = self.await_completions(&mut counts, shared)?;
        }
        self.queue.drain_calls().map_err(|source| self.local("read the call's eventfd", source))?;
        counts.time = now.duration_since(begin);
        counts.cpu = cpu::of_this_thread().saturating_sub(cpu);
        (counts.kicks, counts.calls) = (self.queue.kicks, self.queue.calls);
        Ok(counts)
    }

    /// Reads every block that was written, once, and checks it.
    pub(super) fn read_back(&mut self, shared: &Shared) -> Result<u64, BenchError> {
        (self.reads_back, self.next) = (true, 0);
        let counts = self.run(Duration::MAX, shared)?;
        Ok(counts.reads)
    }

    /// Has a request in each free slot, and tells the back-end once.
    fn submit_all(&mut self) -> Result<(), BenchError> {
        let (start, before) = (Instant::now(), self.free.len());
        while let Some(slot) = self.free.pop() {
            let Some((kind, block)) = self.next_request() else {
                self.free.push(slot);
                break;
            };
            self.submit(slot, InFlight { start, block, kind })
                .map_err(|source| self.local("put a request into the ring", source))?;
        }
        if self.free.len() < before {
            self.queue.kick().map_err(|source| self.local("write the kick's eventfd", source))?;
        }
        Ok(())
    }

    fn submit(&mut self, number: u16, slot: InFlight) -> io::Result<()> {
        let offset = self.offset(slot.block);
        if let Some(blocks) = &mut self.blocks
            && slot.kind != Kind::Flush
        {
            let block = index(slot.block);
            blocks.set_busy(block, true);
            if slot.kind == Kind::Write {
                verify::fill(&mut self.scratch, offset, blocks.next_stamp(block));
                self.queue.put(number, &self.scratch)?;
            }
        }
        self.queue.submit(slot.kind, offset, number)?;
        if let Some(place) = self.slots.get_mut(usize::from(number)) {
            *place = Some(slot);
        }
        Ok(())
    }

    /// Kind and block of the next request; nothing when there is nothing more to be read back.
    fn next_request(&mut self) -> Option<(Kind, u64)> {
        if self.reads_back {
            let block = self.blocks.as_ref()?.next_written(index(self.next))? as u64;
            self.next = block + 1;
            return Some((Kind::Read, block));
        }
        if self.work.flush_every.is_some_and(|writes| self.unflushed >= writes.get()) {
            self.unflushed = 0;
            return Some((Kind::Flush, 0));
        }
        let is_write = match self.work.rw {
            crate::tools::bench::Rw::RandRw => self.draw() % 100 >= u64::from(self.work.read_percent),
            rw => rw.writes(),
        };
        loop {
            let block = if self.work.rw.is_random() {
                // The high bits of a product are as even as a remainder, and cheaper.
                ((u128::from(self.draw()) * u128::from(self.range.count)) >> 64) as u64
            } else {
                let next = self.next;
                self.next = (next + 1) % self.range.count;
                next
            };
            if !self.blocks.as_ref().is_some_and(|blocks| blocks.is_busy(index(block))) {
                self.unflushed = self.unflushed.saturating_add(u32::from(is_write));
                return Some((if is_write { Kind::Write } else { Kind::Read }, block));
            }
        }
    }

    /// A step of xorshift64*, whose state must not be 0.
    fn draw(&mut self) -> u64 {
        self.random |= u64::from(self.random == 0);
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Waits for completions and counts them. Returns when they were seen.
    fn await_completions(&mut self, counts: &mut Counts, shared: &Shared) -> Result<Instant, BenchError> {
        let mut spins = 0;
        loop {
            self.queue.completions(&mut self.done);
            if !self.done.is_empty() {
                break;
            }
            match self.queue.waiting() {
                Waiting::Poll => {
                    spins += 1;
                    std::hint::spin_loop();
                }
                Waiting::Event => {
                    spins = SPINS;
                    self.queue
                        .wait_for_call()
                        .map_err(|source| self.local("read the call's eventfd", source))?;
                }
            }
            if spins >= SPINS {
                spins = 0;
                if shared.give_up.load(Ordering::Relaxed) {
                    return Err(self.local("wait any longer", io::ErrorKind::TimedOut.into()));
                }
            }
        }
        let now = Instant::now();
        shared.add_done(self.queue.index, self.done.len() as u64);
        let mut done = std::mem::take(&mut self.done);
        for (number, errno) in done.drain(..) {
            self.complete(number, errno, now, counts)?;
        }
        self.done = done;
        Ok(now)
    }

    fn complete(
        &mut self,
        number: u16,
        errno: i32,
        now: Instant,
        counts: &mut Counts,
    ) -> Result<(), BenchError> {
        let Some(slot) = self.slots.get_mut(usize::from(number)).and_then(Option::take) else {
            return Ok(());
        };
        self.free.push(number);
        if errno != 0 {
            return Err(BenchError::Request {
                socket: self.socket.to_owned(),
                operation: match slot.kind {
                    Kind::Read => "read",
                    Kind::Write => "write",
                    Kind::Flush => "flush",
                },
                offset: self.offset(slot.block),
                bytes: self.work.block_bytes,
                cause: io::Error::from_raw_os_error(errno),
            });
        }
        let count = match slot.kind {
            Kind::Read => &mut counts.reads,
            Kind::Write => &mut counts.writes,
            Kind::Flush => return Ok(()),
        };
        *count += 1;
        let elapsed = now.saturating_duration_since(slot.start).as_nanos();
        counts.latency.saturating_record(u64::try_from(elapsed).unwrap_or(LONGEST_NS));
        self.check(number, slot)
    }

    fn check(&mut self, number: u16, slot: InFlight) -> Result<(), BenchError> {
        let offset = self.offset(slot.block);
        let Some(blocks) = &mut self.blocks else { return Ok(()) };
        let block = index(slot.block);
        blocks.set_busy(block, false);
        let expected = blocks.stamp(block);
        // What this run has not written yet is unknown if it writes at all.
        if slot.kind == Kind::Write || (expected.is_none() && self.work.rw.writes()) {
            return Ok(());
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let result =
            self.queue.get(number, &mut scratch).map_err(|source| self.local("check what was read", source));
        let checked = result.and_then(|()| {
            verify::check(&scratch, offset, expected)
                .map_err(|mismatch| BenchError::Mismatch { socket: self.socket.to_owned(), mismatch })
        });
        self.scratch = scratch;
        checked
    }

    /// Where on the disk a block of the share is, in bytes.
    fn offset(&self, block: u64) -> u64 {
        (self.range.first + block) * u64::from(self.work.block_bytes)
    }

    fn local(&self, step: &'static str, source: io::Error) -> BenchError {
        BenchError::Local { socket: self.socket.to_owned(), step, source }
    }
}

/// A block's index in tables of blocks. (It always fits: the tables are in memory.)
fn index(block: u64) -> usize {
    usize::try_from(block).unwrap_or(usize::MAX)
}
