//! `vhost-user-pmem bench`: the load generator.

use std::io::{self, Write};
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::cli::exit::{self, Failure};
use crate::config::size;
use crate::tools::bench::{self, Peer, Plan, Rw, Waiting, Work};

/// Rounds where two back-ends are compared and nothing is said.
const COMPARING_ROUNDS: NonZeroU16 = NonZeroU16::MIN.saturating_add(4);

/// The longest round, a day.
const MOST_SECONDS: f64 = 86_400.0;

/// Measure any vhost-user-blk back-end, or two against each other
///
/// It connects as a front-end, without a guest, and keeps a number of requests in flight. Options that fio has too
/// have the same names and values. An --rw that writes OVERWRITES THE DISK; a read-only disk is refused before anything
/// is sent.
///
/// For steady numbers give this program and the back-end a CPU each (taskset). Progress goes to standard error.
///
/// Every request of a round is counted, from the start of the first to the end of the last. Kicks are counted as they are
/// written and calls by the counter of the eventfd: both are exact, except for a call that comes after its round. CPU time
/// of this side is that of the threads of its queues; that of the back-end is the sum over its living threads
/// (/proc/PID/task/*/schedstat). Latency runs from before a request is put into the ring until its completion is seen.
#[derive(Debug, Args)]
#[command(after_long_help = exit::help())]
pub(super) struct BenchArgs {
    /// Unix socket of the back-end, which must offer REPLY_ACK and CONFIG
    #[arg(long, value_name = "SOCKET")]
    socket: PathBuf,

    /// Socket of a second back-end: rounds alternate, and the ratio of both is shown
    #[arg(long, value_name = "SOCKET")]
    against: Option<PathBuf>,

    /// Requests at random offsets or in order; reads, writes or both (randrw). Writes overwrite the disk
    #[arg(long, value_name = "randread|randwrite|randrw|read|write", default_value = "randread")]
    rw: Rw,

    /// Percentage of reads in randrw
    #[arg(long, value_name = "PERCENT", default_value = "50", value_parser = clap::value_parser!(u8).range(..=100))]
    rwmixread: u8,

    /// Flush after so many writes of a queue; flushes are not counted
    #[arg(long, value_name = "N")]
    fsync: Option<NonZeroU32>,

    /// Bytes of a request, also with K or M: 512, 4k, 1M
    #[arg(long, value_name = "SIZE", default_value = "4k", value_parser = block_size)]
    bs: u32,

    /// Requests in flight in each queue, at most 341
    #[arg(long, value_name = "N", default_value = "32")]
    iodepth: NonZeroU16,

    /// Queues; each has a thread and a part of the disk of its own
    #[arg(long, value_name = "N", default_value = "1")]
    numqueues: NonZeroU16,

    /// Use only this many bytes at the start of the disk [default: all]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    size: Option<u64>,

    /// Length of a round: seconds, or a number with ms, s or m
    ///
    /// Each round is preceded by a warm-up of a fifth of it, at most a second.
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = runtime)]
    runtime: Duration,

    /// Rounds on each back-end and at each depth [default: 1, or 5 with --against]
    #[arg(long, value_name = "N")]
    rounds: Option<NonZeroU16>,

    /// Poll for completions, with notifications switched off; this is the default
    #[arg(long, conflicts_with = "event")]
    poll: bool,

    /// Sleep until the back-end notifies, as most guests do
    #[arg(long)]
    event: bool,

    /// Use packed rings, which the back-end must offer, instead of split ones; without event indices
    #[arg(long)]
    packed: bool,

    /// Write blocks that contain their place and time, check everything that is read, and read everything back at
    /// the end; with read and randread, check what an earlier `--rw write --verify` left
    #[arg(long)]
    verify: bool,

    /// Process of the back-end, to measure its CPU time per request
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,

    /// Process of the second back-end
    #[arg(long, value_name = "PID", requires = "against")]
    against_pid: Option<u32>,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,

    /// Measure at the depths 1, 2, 4 … up to --iodepth, and draw latency and throughput into this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

fn block_size(text: &str) -> Result<u32, String> {
    let bytes = size::parse(text).map_err(|error| error.to_string())?;
    u32::try_from(bytes).map_err(|_| "a request must be shorter than 4 GiB".to_owned())
}

fn runtime(text: &str) -> Result<Duration, String> {
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit);
    let scale = match unit {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "m" => 60.0,
        _ => return Err("write seconds, or a number with ms, s or m".to_owned()),
    };
    let seconds =
        number.parse::<f64>().map_err(|_| "write seconds, or a number with ms, s or m".to_owned())? * scale;
    if !(1e-3..=MOST_SECONDS).contains(&seconds) {
        return Err("write a time between 1ms and a day".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

pub(super) fn run(args: BenchArgs) -> Result<(), Failure> {
    let (plot, json) = (args.plot.clone(), args.json);
    let report = bench::run(&plan(args))?;
    let mut out = io::stdout().lock();
    let written = if json {
        serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from).and_then(|()| writeln!(out))
    } else {
        write!(out, "{report}")
    };
    written.and_then(|()| out.flush()).map_err(Failure::Output)?;
    if let Some(path) = plot {
        bench::draw(&report, &path)?;
    }
    Ok(())
}

fn plan(args: BenchArgs) -> Plan {
    let one = NonZeroU16::MIN;
    let rounds = args.rounds.unwrap_or(if args.against.is_some() { COMPARING_ROUNDS } else { one });
    let mut peers = vec![Peer { socket: args.socket, pid: args.server_pid }];
    peers.extend(args.against.map(|socket| Peer { socket, pid: args.against_pid }));
    let work = Work {
        rw: args.rw,
        read_percent: args.rwmixread,
        flush_every: args.fsync,
        block_bytes: args.bs,
        depth: args.iodepth,
        queues: args.numqueues,
        waiting: if args.event { Waiting::Event } else { Waiting::Poll },
        packed: args.packed,
        span_bytes: args.size,
        verify: args.verify,
    };
    Plan { peers, work, runtime: args.runtime, rounds, sweep: args.plot.is_some(), progress: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_fios_units() {
        for (text, milliseconds) in [("5", 5000), ("2s", 2000), ("500ms", 500), ("0.5", 500), ("1m", 60_000)]
        {
            assert_eq!(runtime(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "0", "s", "-1", "1h", "1e9", "2d", "..", "100000"] {
            assert!(runtime(text).is_err(), "{text}");
        }
    }
}
