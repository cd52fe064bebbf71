//! One round on one back-end.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::tools::bench::client::{Client, Disk, Monitor, Queue};
use crate::tools::bench::load::{BlockRange, Counts, Load, Shared};
use crate::tools::bench::verify::Blocks;
use crate::tools::bench::{BenchError, Peer, Work, cpu};

/// Part of the runtime that goes before it to warm up caches, mappings and branch predictors, but no more than
/// [`MOST_WARM_UP`].
const WARM_UP_DIVISOR: u32 = 5;
const MOST_WARM_UP: Duration = Duration::from_secs(1);

/// Pause between two reports of the progress.
const TICK: Duration = Duration::from_millis(200);

/// Time without a completion after which the back-end is asked whether it is still there, and again after so
/// many more.
const PROBE_AFTER: Duration = Duration::from_secs(2);

/// Time without a completion that is too long even for a back-end that is there.
const STALLED_AFTER: Duration = Duration::from_secs(30);

/// Most blocks that are verified, five bytes of memory each.
const MOST_BLOCKS: u64 = 1 << 28;

/// A back-end under test, from one round to the next.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) peer: Peer,
    pub(super) disk: Disk,
    ranges: Vec<BlockRange>,
    /// What each queue has written; empty where nothing is verified.
    blocks: Vec<Blocks>,
}

/// What a round has found.
#[derive(Debug)]
pub(super) struct Round {
    /// One for each queue.
    pub(super) counts: Vec<Counts>,
    /// The back-end's CPU time, where its process is known.
    pub(super) server_cpu: Option<Duration>,
}

impl Target {
    /// Connects to the back-end, and refuses what it cannot do before anything is written.
    pub(super) fn inspect(peer: &Peer, work: &Work, run: u32) -> Result<Self, BenchError> {
        let disk = Client::inspect(&peer.socket, work.packed)?;
        let socket = || peer.socket.clone();
        if let Some(pid) = peer.pid {
            cpu::of_process(pid)?;
        }
        if disk.read_only && work.rw.writes() {
            return Err(BenchError::ReadOnly { socket: socket(), rw: work.rw.word() });
        }
        if disk.queues < usize::from(work.queues.get()) {
            return Err(BenchError::Queues { socket: socket(), offered: disk.queues, wanted: work.queues });
        }
        if !work.block_bytes.is_multiple_of(disk.block_bytes) {
            return Err(BenchError::DiskBlock { socket: socket(), block_bytes: disk.block_bytes });
        }
        let bytes = work.span_bytes.unwrap_or(disk.capacity_bytes);
        let count = bytes / u64::from(work.block_bytes) / u64::from(work.queues.get());
        let too_large = bytes > disk.capacity_bytes || (work.verify && count > MOST_BLOCKS);
        // A block that is verified is in no two requests at once.
        let fewest = if work.verify { 2 * u64::from(work.depth.get()) } else { 1 };
        if too_large || count < fewest {
            return Err(BenchError::Span { socket: socket(), bytes, too_large });
        }
        let queues = u64::from(work.queues.get());
        let ranges: Vec<_> = (0..queues).map(|queue| BlockRange { first: queue * count, count }).collect();
        let table = |_: &BlockRange| Blocks::new(run, usize::try_from(count).unwrap_or(usize::MAX));
        let blocks = if work.verify { ranges.iter().map(table).collect() } else { Vec::new() };
        Ok(Self { peer: peer.clone(), disk, ranges, blocks })
    }

    /// Warms up, and measures for `runtime`; `watch` is told now and then how many requests are done and since when.
    ///
    /// A round is a connection of its own, so that the other back-end has no ring to poll meanwhile.
    pub(super) fn measure(
        &mut self,
        work: &Work,
        runtime: Duration,
        watch: &mut dyn FnMut(u64, Duration),
    ) -> Result<Round, BenchError> {
        let Client { mut queues, monitor } = Client::connect(&self.peer.socket, work)?;
        let pid = self.peer.pid;
        let mut loads = self.loads(&mut queues, work);
        let warm_up = (runtime / WARM_UP_DIVISOR).min(MOST_WARM_UP);
        run_all(&mut loads, &monitor, &mut |_, _| {}, |load, shared| load.run(warm_up, shared))?;
        let before = pid.map(cpu::of_process).transpose()?;
        let counts = run_all(&mut loads, &monitor, watch, |load, shared| load.run(runtime, shared))?;
        let after = pid.map(cpu::of_process).transpose()?;
        let server_cpu = after.zip(before).map(|(after, before)| after.saturating_sub(before));
        Ok(Round { counts, server_cpu })
    }

    /// Reads back what was written; how many blocks that were.
    pub(super) fn read_back(&mut self, work: &Work) -> Result<u64, BenchError> {
        let Client { mut queues, monitor } = Client::connect(&self.peer.socket, work)?;
        let mut loads = self.loads(&mut queues, work);
        let counts = run_all(&mut loads, &monitor, &mut |_, _| {}, Load::read_back)?;
        Ok(counts.into_iter().sum())
    }

    fn loads<'a>(&'a mut self, queues: &'a mut [Queue], work: &'a Work) -> Vec<Load<'a>> {
        self.blocks.iter_mut().for_each(Blocks::settle);
        let mut blocks = self.blocks.iter_mut();
        let socket = self.peer.socket.as_path();
        let queues = queues.iter_mut().zip(&self.ranges);
        queues.map(|(queue, range)| Load::new(queue, socket, work, *range, blocks.next())).collect()
    }
}

/// Runs an action on every load at once, each on a thread, and watches whether the back-end still answers.
fn run_all<'a, T: Send>(
    loads: &mut [Load<'a>],
    monitor: &Monitor,
    watch: &mut dyn FnMut(u64, Duration),
    action: impl Fn(&mut Load<'a>, &Shared) -> Result<T, BenchError> + Sync,
) -> Result<Vec<T>, BenchError> {
    let shared = Shared::new(loads.len());
    let (shared, action) = (&shared, &action);
    let (sender, receiver) = mpsc::channel();
    let count = loads.len();
    std::thread::scope(|scope| {
        for load in loads.iter_mut() {
            let sender = sender.clone();
            scope.spawn(move || {
                // Ignored: it fails only when the round has failed already.
                let _ = sender.send(action(load, shared));
            });
        }
        drop(sender);
        let outcome = collect(&receiver, count, shared, monitor, watch);
        if outcome.is_err() {
            shared.give_up.store(true, Ordering::Relaxed);
            monitor.wake_all();
        }
        outcome
    })
}

fn collect<T>(
    receiver: &mpsc::Receiver<Result<T, BenchError>>,
    count: usize,
    shared: &Shared,
    monitor: &Monitor,
    watch: &mut dyn FnMut(u64, Duration),
) -> Result<Vec<T>, BenchError> {
    let begin = Instant::now();
    let (mut seen, mut changed, mut probed) = (0, begin, begin);
    let mut results = Vec::with_capacity(count);
    while results.len() < count {
        match receiver.recv_timeout(TICK) {
            Ok(result) => results.push(result?),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let (done, now) = (shared.done(), Instant::now());
                watch(done, now.duration_since(begin));
                if done != seen {
                    (seen, changed) = (done, now);
                } else if now.duration_since(changed.max(probed)) > PROBE_AFTER {
                    monitor.probe()?;
                    probed = now;
                } else if now.duration_since(changed) > STALLED_AFTER {
                    return Err(monitor.stalled(STALLED_AFTER));
                }
            }
        }
    }
    Ok(results)
}
