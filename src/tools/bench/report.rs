//! The numbers. The fields are the keys of the JSON object, which the README documents.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::tools::bench::load::{Counts, histogram};
use crate::tools::bench::measure::Round;
use crate::tools::bench::{Plan, Waiting};

/// All that a run has found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// fio's word for order and direction.
    pub rw: &'static str,
    /// Bytes of a request.
    pub block_bytes: u32,
    /// Queues, each driven by a thread.
    pub queues: u16,
    /// `poll` or `event`.
    pub waiting: &'static str,
    /// The queues were packed rings.
    pub packed: bool,
    /// What was read was checked.
    pub verify: bool,
    /// Rounds on each back-end and at each depth.
    pub rounds: u16,
    /// What a round was meant to take.
    pub runtime_seconds: f64,
    /// The back-ends, `A` first.
    pub peers: Vec<PeerReport>,
    /// A divided by B, one for each depth; empty without a B.
    pub ratios: Vec<Ratio>,
}

/// What was found of a back-end.
#[derive(Debug, Clone, Serialize)]
pub struct PeerReport {
    /// `A` or `B`.
    pub name: &'static str,
    /// Where it listens.
    pub socket: String,
    /// Size of its disk.
    pub capacity_bytes: u64,
    /// The process whose CPU time was measured, if any.
    pub server_pid: Option<u32>,
    /// Blocks that were read back and checked after the last round.
    pub blocks_read_back: u64,
    /// One for each depth, the smallest first.
    pub depths: Vec<DepthReport>,
}

/// What was found of a back-end at one depth: all rounds together.
#[derive(Debug, Clone, Serialize)]
pub struct DepthReport {
    /// Requests under way in each queue.
    pub iodepth: u16,
    /// Requests a second, over the rounds.
    pub iops: Spread,
    /// Bytes a second, over the rounds.
    pub bytes_per_second: Spread,
    /// Requests that were completed.
    pub requests: u64,
    /// Those of them that were reads.
    pub reads: u64,
    /// Those of them that were writes.
    pub writes: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Time that the rounds took together.
    pub seconds: f64,
    /// How long the requests took.
    pub latency_ns: Latency,
    /// CPU time of this tool's threads.
    pub client_cpu_ns_per_request: f64,
    /// CPU time of the back-end, where its process is known.
    pub server_cpu_ns_per_request: Option<f64>,
    /// Writes to the kick's event descriptor.
    pub kicks: u64,
    /// The back-end's writes to the call's event descriptor, as its counter says.
    pub calls: u64,
    /// Kicks for each request.
    pub kicks_per_request: f64,
    /// Calls for each request.
    pub calls_per_request: f64,
    /// One for each round, in their order.
    pub rounds: Vec<RoundReport>,
    #[serde(skip)]
    pub(super) histogram: Histogram<u64>,
}

/// One round.
#[derive(Debug, Clone, Serialize)]
pub struct RoundReport {
    /// Requests that were completed.
    pub requests: u64,
    /// From the first request's begin to the last one's end.
    pub seconds: f64,
    /// Requests a second.
    pub iops: f64,
    /// Median latency.
    pub latency_p50_ns: u64,
    /// CPU time of this tool's threads.
    pub client_cpu_ns_per_request: f64,
    /// CPU time of the back-end, where its process is known.
    pub server_cpu_ns_per_request: Option<f64>,
}

/// Latencies in nanoseconds, exact to three digits.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    /// How many there are.
    pub count: u64,
    /// The shortest.
    pub min: u64,
    /// Their mean.
    pub mean: f64,
    /// Half of them are not longer.
    pub p50: u64,
    /// 99 in 100 are not longer.
    pub p99: u64,
    /// 999 in 1000 are not longer.
    pub p99_9: u64,
    /// The longest.
    pub max: u64,
}

/// Several rounds' values of the same thing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one, or the mean of the middle two.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

/// A divided by B, in each pair of rounds that followed one another.
#[derive(Debug, Clone, Serialize)]
pub struct Ratio {
    /// Requests under way in each queue.
    pub iodepth: u16,
    /// Of requests a second: more than 1 says that A is faster.
    pub iops: Spread,
    /// Of median latencies: less than 1 says that A is faster.
    pub latency_p50: Spread,
    /// Of the back-ends' CPU time for a request, where both processes are known.
    pub server_cpu: Option<Spread>,
}

impl Spread {
    /// Of no value at all it is zero.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |place: usize| values.get(place).copied().unwrap_or(0.0);
        let last = values.len().saturating_sub(1);
        Self { median: f64::midpoint(at(last / 2), at(values.len() / 2)), min: at(0), max: at(last) }
    }
}

impl DepthReport {
    /// Adds up the rounds at one depth.
    pub(super) fn of(iodepth: u16, block_bytes: u32, rounds: &[Round]) -> Self {
        let mut histogram = histogram();
        let counts = || rounds.iter().flat_map(|round| &round.counts);
        for counts in counts() {
            // Both have the same limits.
            let _ = histogram.add(&counts.latency);
        }
        let sum = |of: fn(&Counts) -> u64| counts().map(of).sum::<u64>();
        let (reads, writes, kicks, calls) =
            (sum(|it| it.reads), sum(|it| it.writes), sum(|it| it.kicks), sum(|it| it.calls));
        let requests = reads + writes;
        let each = |total: f64| total / (requests.max(1) as f64);
        let client_cpu: Duration = counts().map(|counts| counts.cpu).sum();
        let server_cpu: Option<Duration> = rounds.iter().map(|round| round.server_cpu).sum();
        let reports: Vec<_> = rounds.iter().map(RoundReport::of).collect();
        let iops = Spread::of(reports.iter().map(|round| round.iops));
        let bytes_each = f64::from(block_bytes);
        Self {
            iodepth,
            iops,
            bytes_per_second: Spread {
                median: iops.median * bytes_each,
                min: iops.min * bytes_each,
                max: iops.max * bytes_each,
            },
            requests,
            reads,
            writes,
            bytes: requests * u64::from(block_bytes),
            seconds: reports.iter().map(|round| round.seconds).sum(),
            latency_ns: Latency::of(&histogram),
            client_cpu_ns_per_request: each(client_cpu.as_nanos() as f64),
            server_cpu_ns_per_request: server_cpu.map(|time| each(time.as_nanos() as f64)),
            kicks,
            calls,
            kicks_per_request: each(kicks as f64),
            calls_per_request: each(calls as f64),
            rounds: reports,
            histogram,
        }
    }
}

impl RoundReport {
    fn of(round: &Round) -> Self {
        let mut latency = histogram();
        let (mut requests, mut time, mut client_cpu) = (0, Duration::ZERO, Duration::ZERO);
        for counts in &round.counts {
            // It fails only for values out of range, and all histograms have the same.
            let _ = latency.add(&counts.latency);
            requests += counts.reads + counts.writes;
            time = time.max(counts.time);
            client_cpu += counts.cpu;
        }
        let seconds = time.as_secs_f64();
        let each = |time: Duration| time.as_nanos() as f64 / (requests.max(1) as f64);
        Self {
            requests,
            seconds,
            iops: if seconds > 0.0 { requests as f64 / seconds } else { 0.0 },
            latency_p50_ns: latency.value_at_quantile(0.5),
            client_cpu_ns_per_request: each(client_cpu),
            server_cpu_ns_per_request: round.server_cpu.map(each),
        }
    }
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            count: histogram.len(),
            min: histogram.min(),
            mean: histogram.mean(),
            p50: histogram.value_at_quantile(0.5),
            p99: histogram.value_at_quantile(0.99),
            p99_9: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}

impl Ratio {
    fn of(a: &DepthReport, b: &DepthReport) -> Self {
        let pairs = || a.rounds.iter().zip(&b.rounds);
        let server_cpu: Option<Vec<f64>> = pairs()
            .map(|(a, b)| Some(quotient(a.server_cpu_ns_per_request?, b.server_cpu_ns_per_request?)))
            .collect();
        Self {
            iodepth: a.iodepth,
            iops: Spread::of(pairs().map(|(a, b)| quotient(a.iops, b.iops))),
            latency_p50: Spread::of(
                pairs().map(|(a, b)| quotient(a.latency_p50_ns as f64, b.latency_p50_ns as f64)),
            ),
            server_cpu: server_cpu.map(Spread::of),
        }
    }
}

/// A quotient that is a number even where a back-end used no time at all.
fn quotient(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

impl Report {
    pub(super) fn new(plan: &Plan, peers: Vec<PeerReport>) -> Self {
        let ratios = match &peers[..] {
            [a, b] => a.depths.iter().zip(&b.depths).map(|(a, b)| Ratio::of(a, b)).collect(),
            _ => Vec::new(),
        };
        Self {
            rw: plan.work.rw.word(),
            block_bytes: plan.work.block_bytes,
            queues: plan.work.queues.get(),
            waiting: match plan.work.waiting {
                Waiting::Poll => "poll",
                Waiting::Event => "event",
            },
            packed: plan.work.packed,
            verify: plan.work.verify,
            rounds: plan.rounds.get(),
            runtime_seconds: plan.runtime.as_secs_f64(),
            peers,
            ratios,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(latencies_ns: &[u64], seconds: u64, server_cpu_ns: u64) -> Round {
        let mut latency = histogram();
        latencies_ns.iter().for_each(|ns| latency.record(*ns).unwrap());
        let counts = Counts {
            reads: latencies_ns.len() as u64 - 1,
            writes: 1,
            time: Duration::from_secs(seconds),
            cpu: Duration::from_nanos(30),
            latency,
            kicks: 2,
            calls: 1,
        };
        Round { counts: vec![counts.clone(), counts], server_cpu: Some(Duration::from_nanos(server_cpu_ns)) }
    }

    #[test]
    fn a_spread_has_a_median_of_odd_and_even_numbers() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 3.0, 2.0]), Spread { median: 2.5, min: 1.0, max: 4.0 });
        assert_eq!(Spread::of([]), Spread { median: 0.0, min: 0.0, max: 0.0 });
    }

    #[test]
    fn rounds_are_added_up() {
        let point =
            DepthReport::of(4, 512, &[round(&[100, 200, 300], 2, 60), round(&[100, 200, 900], 1, 120)]);
        assert_eq!((point.requests, point.reads, point.writes, point.bytes), (12, 8, 4, 6144));
        assert_eq!(point.seconds, 3.0, "the queues of a round run at once");
        assert_eq!(point.iops, Spread { median: 4.5, min: 3.0, max: 6.0 });
        assert_eq!((point.latency_ns.count, point.latency_ns.p50, point.latency_ns.max), (12, 200, 900));
        assert_eq!((point.kicks, point.calls), (8, 4));
        assert_eq!((point.client_cpu_ns_per_request, point.server_cpu_ns_per_request), (10.0, Some(15.0)));
    }

    #[test]
    fn ratios_are_those_of_neighbours() {
        let a = DepthReport::of(1, 512, &[round(&[100; 8], 1, 10), round(&[400; 8], 1, 10)]);
        let b = DepthReport::of(1, 512, &[round(&[200; 4], 1, 20), round(&[200; 8], 1, 20)]);
        let ratio = Ratio::of(&a, &b);
        assert_eq!(ratio.iops, Spread { median: 1.5, min: 1.0, max: 2.0 });
        assert_eq!(ratio.latency_p50, Spread { median: 1.25, min: 0.5, max: 2.0 });
        assert_eq!(ratio.server_cpu.map(|cpu| cpu.max), Some(0.5));
    }
}
