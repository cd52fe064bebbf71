//! Depths × rounds × back-ends, interleaved: what disturbs the machine for a while disturbs both.

use std::num::NonZeroU16;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::tools::bench::measure::{Round, Target};
use crate::tools::bench::progress::Progress;
use crate::tools::bench::report::{DepthReport, PeerReport};
use crate::tools::bench::verify::mix;
use crate::tools::bench::{BenchError, Plan, Report};

const NAMES: [&str; 2] = ["A", "B"];

/// Carries out the plan.
///
/// Every back-end is inspected before the first request, and is written to only by a `rw` that writes.
///
/// # Errors
/// The plan is impossible, a back-end is not there or not such a one, goes away, fails a request, or returns what was
/// not written.
pub fn run(plan: &Plan) -> Result<Report, BenchError> {
    plan.work.check()?;
    let run = run_number();
    let targets = plan.peers.iter().map(|peer| Target::inspect(peer, &plan.work, run));
    let mut targets = targets.collect::<Result<Vec<_>, _>>()?;
    let depths = plan.depths();
    let rounds = usize::from(plan.rounds.get());
    let mut progress = Progress::new(depths.len() * rounds * targets.len(), plan.progress);
    let mut points: Vec<Vec<DepthReport>> = targets.iter().map(|_| Vec::new()).collect();
    for depth in depths {
        let mut found: Vec<Vec<Round>> = targets.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            for ((target, found), name) in targets.iter_mut().zip(&mut found).zip(NAMES) {
                found.push(one_round(plan, depth, target, name, &mut progress)?);
            }
        }
        for (points, rounds) in points.iter_mut().zip(&found) {
            points.push(DepthReport::of(depth.get(), plan.work.block_bytes, rounds));
        }
    }
    let mut peers = Vec::new();
    for ((target, depths), name) in targets.iter_mut().zip(points).zip(NAMES) {
        let reads_back = plan.work.verify && plan.work.rw.writes();
        let blocks_read_back = if reads_back { target.read_back(&plan.work)? } else { 0 };
        peers.push(PeerReport {
            name,
            socket: target.peer.socket.display().to_string(),
            capacity_bytes: target.disk.capacity_bytes,
            server_pid: target.peer.pid,
            blocks_read_back,
            depths,
        });
    }
    Ok(Report::new(plan, peers))
}

fn one_round(
    plan: &Plan,
    depth: NonZeroU16,
    target: &mut Target,
    name: &str,
    progress: &mut Progress,
) -> Result<Round, BenchError> {
    progress.begin(format!("{name} {} · iodepth {depth}", target.peer.socket.display()));
    let mut watch = |done, time| progress.tick(done, time, plan.runtime);
    let round = target.measure(&plan.work.at(depth), plan.runtime, &mut watch)?;
    let requests = round.counts.iter().map(|counts| counts.reads + counts.writes).sum();
    let time = round.counts.iter().map(|counts| counts.time).max().unwrap_or_default();
    progress.end(requests, time);
    Ok(round)
}

/// A number that another run of the tool is unlikely to have.
fn run_number() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seed = now.as_secs() ^ (u64::from(now.subsec_nanos()) << 32) ^ u64::from(std::process::id());
    let [a, b, c, d, ..] = mix(seed).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
