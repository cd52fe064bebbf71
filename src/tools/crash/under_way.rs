//! The same with requests under way at once, as rings of files and devices have them: they are done in any order, and each flush
//! is begun and over at any time among them. A flush must not be taken to cover what was done after it began.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Condvar, Mutex};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::check::{Coverage, Exploration, Violation, check};
use super::driver::{Driver, MEMORY_BYTES, RINGS, indices, indices_of};
use super::oracle::Oracle;
use super::runner::{Belief, Bug, DiskKind, RunConfig, Trace, backing, rings};
use super::scheduler::FLUSHER;
use super::states::{assert_complete, promise_of};
use super::workload::{self, Batch, Op, Random, Request, Workload, WorkloadKind};
use crate::copy::recording::{Event, Omit, Recording, Watch};
use crate::copy::testing::memfd;
use crate::copy::{PrefetchHint, Segments, load_slice};
use crate::disk::testing::pass_on;
use crate::disk::{Backing, Disk, DiskError};
use crate::worker::Ring;

/// Longer than any step takes.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Who does something: the request of this number, on a thread of the disk's; or the flusher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Request(usize),
    Flusher,
}

impl Who {
    const fn cpu(self) -> usize {
        match self {
            Self::Flusher => FLUSHER,
            Self::Request(number) => FLUSHER + 1 + number,
        }
    }

    const fn of_cpu(cpu: usize) -> Option<Self> {
        match cpu.checked_sub(FLUSHER) {
            None => None,
            Some(0) => Some(Self::Flusher),
            Some(number) => Some(Self::Request(number - 1)),
        }
    }
}

/// Where all of them wait until they are let go, one at a time.
#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    waiting: BTreeSet<Who>,
    /// A request of which a part is written: no other one goes on before it is done.
    in_midst: Option<Who>,
    may_go_on: Option<Who>,
    is_over: bool,
}

impl Gate {
    fn wait(&self, who: Who, in_midst: bool) {
        let mut state = self.state.lock().unwrap();
        state.waiting.insert(who);
        if in_midst {
            state.in_midst = Some(who);
        }
        let is_kept = |state: &mut GateState| state.may_go_on != Some(who) && !state.is_over;
        state = self.changed.wait_while(state, is_kept).unwrap();
        state.may_go_on = None;
        state.waiting.remove(&who);
    }

    fn is_done(&self, who: Who) {
        let mut state = self.state.lock().unwrap();
        state.in_midst = state.in_midst.filter(|it| *it != who);
    }

    fn let_go(&self, who: Who) {
        self.state.lock().unwrap().may_go_on = Some(who);
        self.changed.notify_all();
    }
}

/// Lets everybody go on for good when dropped.
struct OpenOnDrop(Arc<Gate>);

impl Drop for OpenOnDrop {
    fn drop(&mut self) {
        if let Ok(mut state) = self.0.state.lock() {
            state.is_over = true;
        }
        self.0.changed.notify_all();
    }
}

/// Stops whoever has done something, and sees what drivers see.
#[derive(Debug)]
struct GateWatch {
    guest: File,
    gate: Arc<Gate>,
}

impl Watch for GateWatch {
    fn seen(&self) -> u64 {
        indices(&self.guest)
    }

    fn happened(&self, cpu: usize, event: &Event) {
        match (Who::of_cpu(cpu), event) {
            (Some(who @ Who::Flusher), Event::SyncBegins(_)) => self.gate.wait(who, false),
            (Some(who @ Who::Request(_)), Event::Store { .. }) => self.gate.wait(who, true),
            _ => {}
        }
    }
}

/// What was asked for, by number; and what of it was begun, in this order.
#[derive(Debug, Default)]
struct Asked {
    requests: Vec<(usize, Request)>,
    begun: Vec<usize>,
}

/// The real disk, whose threads wait at the gate.
#[derive(Debug)]
struct GatedDisk {
    disk: Backing,
    recording: Recording,
    gate: Arc<Gate>,
    asked: Arc<Mutex<Asked>>,
    /// Those that a thread has come with.
    known: Mutex<BTreeSet<usize>>,
    belief: Belief,
}

impl GatedDisk {
    /// The first request that is this write. Of a ring, one that is the same waits for the one before.
    fn number(&self, offset: u64, from: Segments<'_>) -> usize {
        let mut bytes = vec![0; from.total_bytes()];
        assert_eq!(load_slice(from, &mut bytes), bytes.len());
        let (asked, mut known) = (self.asked.lock().unwrap(), self.known.lock().unwrap());
        let is_it = |request: &Request| matches!(request, Request::Write { at, data, .. } if *at as u64 == offset && *data == bytes);
        let mut numbers = (0..asked.requests.len()).filter(|number| !known.contains(number));
        let number = numbers.find(|number| is_it(&asked.requests[*number].1)).unwrap();
        known.insert(number);
        number
    }
}

impl Disk for GatedDisk {
    pass_on!(disk: geometry, durability, read, fence);
    fn may_wait(&self) -> bool {
        true
    }
    fn write(&self, offset: u64, from: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        let who = Who::Request(self.number(offset, from));
        self.gate.wait(who, false);
        let _on_cpu = self.recording.on_cpu(who.cpu());
        if let Who::Request(number) = who {
            self.asked.lock().unwrap().begun.push(number);
        }
        let done = self.disk.write(offset, from, next);
        self.belief.wrote();
        self.gate.is_done(who);
        done
    }
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        self.belief.try_flush(&self.disk)
    }
    fn flush(&self) -> Result<(), DiskError> {
        let _on_cpu = self.recording.on_cpu(FLUSHER);
        self.gate.wait(Who::Flusher, false);
        let done = self.belief.flush(&self.disk);
        self.gate.wait(Who::Flusher, false);
        done
    }
    fn discard(&self, _: u64, _: u64) -> Result<(), DiskError> {
        Err(DiskError::Unsupported)
    }
    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> Result<u64, DiskError> {
        Err(DiskError::Unsupported)
    }
}

/// A run: one thread decides who goes on.
struct Run {
    guest: File,
    rings: Vec<Ring<GatedDisk>>,
    drivers: Vec<Driver>,
    recording: Recording,
    gate: Arc<Gate>,
    /// Most requests that waited at the gate at once.
    most: usize,
}

/// What may be done next.
#[derive(Debug, Clone, Copy)]
enum Step {
    Let(Who),
    Serve(usize),
    Offer,
}

impl Run {
    /// Waits until all who have something to do wait at the gate.
    fn settle(&mut self) {
        let since = Instant::now();
        loop {
            let (requests, flushes) = self.rings[0].device().under_way();
            let state = self.gate.state.lock().unwrap();
            let has_flusher = state.waiting.contains(&Who::Flusher);
            let waiting = state.waiting.len() - usize::from(has_flusher);
            if state.may_go_on.is_none() && (waiting, has_flusher) == (requests, flushes) {
                self.most = self.most.max(waiting);
                return;
            }
            drop(state);
            assert!(since.elapsed() < TIMEOUT, "somebody does not come: {requests} {flushes}");
            std::thread::yield_now();
        }
    }

    fn is_idle(&self, ring: usize) -> bool {
        let (used, available) = indices_of(indices(&self.guest), ring);
        used == available
    }

    fn steps(&self, next: Option<&Batch>) -> Vec<Step> {
        let state = self.gate.state.lock().unwrap();
        let may_go_on = |who: &Who| match who {
            Who::Flusher => true,
            Who::Request(_) => state.in_midst.is_none_or(|it| it == *who),
        };
        let mut steps: Vec<_> = state.waiting.iter().copied().filter(may_go_on).map(Step::Let).collect();
        drop(state);
        steps.extend((0..RINGS).filter(|ring| self.rings[*ring].has_work()).map(Step::Serve));
        let has_room =
            |batch: &Batch| self.is_idle(batch.ring) || self.drivers[batch.ring].has_room(&batch.requests);
        steps.extend(next.is_some_and(has_room).then_some(Step::Offer));
        steps
    }

    fn serve(&mut self, ring: usize) {
        self.recording.observe(ring);
        let on_cpu = self.recording.on_cpu(ring);
        let _ = self.rings[ring].serve(Waker::noop());
        drop(on_cpu);
        self.recording.observe(ring);
    }
}

/// Runs a workload of writes and flushes. Returns how many requests were under way at once, too.
fn run(workload: &Workload, config: RunConfig, seed: u64) -> (Trace, usize) {
    let guest = memfd("crash-guest", MEMORY_BYTES);
    let media = memfd("crash-media", workload.before.len() as u64);
    media.write_all_at(&workload.before, 0).unwrap();
    let gate = Arc::<Gate>::default();
    let watch = GateWatch { guest: guest.try_clone().unwrap(), gate: gate.clone() };
    let recording = Recording::new(config.engine, config.omit, Arc::new(watch));
    let asked = Arc::<Mutex<Asked>>::default();
    // Those of a ring in its order.
    for ring in 0..RINGS {
        let of_ring = workload.batches.iter().filter(|batch| batch.ring == ring);
        let requests = of_ring.flat_map(|batch| batch.requests.iter().cloned());
        asked.lock().unwrap().requests.extend(requests.map(|request| (ring, request)));
    }
    let disk = GatedDisk {
        disk: backing(&media, workload, config),
        recording: recording.clone(),
        gate: gate.clone(),
        asked: asked.clone(),
        known: Mutex::default(),
        belief: Belief::new(config.bug),
    };
    let rings = rings(&guest, disk, config);
    let drivers = (0..RINGS).map(|ring| Driver::new(&guest, ring)).collect();
    // Dropped first: if this fails nobody must wait.
    let mut run = Run { guest, rings, drivers, recording, gate: gate.clone(), most: 0 };
    let over = OpenOnDrop(gate);
    let (mut random, mut batches) = (Random::new(seed), workload.batches.iter().peekable());
    loop {
        run.settle();
        let steps = run.steps(batches.peek().copied());
        if steps.is_empty() {
            break;
        }
        match steps[random.below(steps.len())] {
            Step::Let(who) => run.gate.let_go(who),
            Step::Serve(ring) => run.serve(ring),
            Step::Offer => {
                let Batch { ring, requests } = batches.next().unwrap();
                if run.is_idle(*ring) {
                    run.drivers[*ring].reap();
                }
                requests.iter().for_each(|request| run.drivers[*ring].chain(request));
                run.drivers[*ring].offer();
            }
        }
    }
    assert!(batches.next().is_none() && (0..RINGS).all(|ring| run.is_idle(ring)), "something is left");
    run.drivers.iter_mut().for_each(Driver::reap);
    let log = run.recording.log();
    drop(over);
    let mut after = vec![0; workload.before.len()];
    media.read_exact_at(&mut after, 0).unwrap();
    let Asked { requests, begun: order } = std::mem::take(&mut *asked.lock().unwrap());
    let (class, before, bad_at) = (config.kind.class(), workload.before.clone(), workload.bad_at);
    (Trace { class, before, bad_at, requests, order, log, after }, run.most)
}

/// Writes and flushes of a workload.
fn transfers(workload: Workload) -> Workload {
    let is_it = |request: &Request| matches!(request, Request::Write { .. } | Request::Flush);
    let of_batch =
        |Batch { ring, requests }| Batch { ring, requests: requests.into_iter().filter(is_it).collect() };
    let batches = workload.batches.into_iter().map(of_batch).filter(|batch| !batch.requests.is_empty());
    Workload { batches: batches.collect(), ..workload }
}

fn check_trace(trace: &Trace, config: RunConfig, exploration: Exploration) -> Result<Coverage, Violation> {
    check(&Oracle::new(trace), &trace.log, promise_of(config), exploration)
}

const KINDS: [DiskKind; 2] = [DiskKind::File, DiskKind::Device];

#[test]
fn every_state_of_small_histories_keeps_the_promise_in_whatever_order_requests_are_done() {
    use Op::{Cut, Flush, FlushElsewhere, Long, Whole, WholeElsewhere};
    const HISTORIES: [&[Op]; 6] = [
        &[Whole, Flush, WholeElsewhere, FlushElsewhere],
        &[Whole, Long, Flush, Whole],
        &[Whole, WholeElsewhere, Flush, FlushElsewhere, Cut],
        &[Long, Flush, Cut, Flush],
        &[Flush, Whole, FlushElsewhere, Whole, Flush],
        &[Whole, Flush, Cut, WholeElsewhere, FlushElsewhere, Flush],
    ];
    let (mut total, mut most) = (Coverage::default(), 0);
    for (ops, kind) in HISTORIES.iter().flat_map(|ops| KINDS.map(|kind| (*ops, kind))) {
        for (joins, seed) in [0, !0].into_iter().flat_map(|joins| (0..25).map(move |seed| (joins, seed))) {
            let config = RunConfig::on(kind, seed % 2 == 0);
            let (trace, at_once) = run(&workload::small(ops, joins), config, seed);
            assert_complete(&trace);
            let exploration = Exploration::Sampled { seed, states: 300 };
            let checked = check_trace(&trace, config, exploration)
                .unwrap_or_else(|violation| panic!("{ops:?} {joins} {seed} {config:?}: {violation:?}"));
            total.states += checked.states;
            total.crash_points += checked.crash_points;
            most = most.max(at_once);
        }
    }
    assert!(most >= 2 && total.crash_points > 2_000 && total.states > 10_000, "{most} {total:?}");
}

#[test]
fn random_states_of_long_histories_keep_the_promise_with_requests_under_way() {
    let mut most = 0;
    for seed in 1..=12 {
        let config = RunConfig::on(KINDS[seed as usize % 2], seed % 3 != 0);
        let workload = transfers(workload::random(seed, 24, WorkloadKind::Any));
        let (trace, at_once) = run(&workload, config, seed);
        assert_complete(&trace);
        let exploration = Exploration::Sampled { seed, states: 40 };
        check_trace(&trace, config, exploration)
            .unwrap_or_else(|violation| panic!("seed={seed} {config:?}: {violation:?}"));
        most = most.max(at_once);
    }
    assert!(most >= 4, "{most} under way at once");
}

/// A sync that is missing, or is taken to cover what came later.
#[test]
fn mistakes_are_noticed_with_requests_under_way() {
    use Op::{Flush, FlushElsewhere, Whole, WholeElsewhere};
    const OPS: &[Op] = &[Whole, Flush, WholeElsewhere, FlushElsewhere];
    for kind in KINDS {
        for (bug, omit) in [
            (Some(Bug::CleanAfterSync), Omit::Nothing),
            (Some(Bug::AnswerDuringSync), Omit::Nothing),
            (None, Omit::Syncs),
        ] {
            let is_noticed = |seed| {
                let config = RunConfig { bug, omit, ..RunConfig::on(kind, true) };
                let (trace, _) = run(&workload::small(OPS, 0), config, seed);
                check_trace(&trace, config, Exploration::Sampled { seed, states: 50 }).is_err()
            };
            assert!((0..2000).any(is_noticed), "{kind:?} {bug:?}");
        }
    }
}
