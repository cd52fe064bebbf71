//! The report as a table for people: a column for each back-end, and one for what they have to do with each other.

use std::fmt;

use crate::tools::bench::Report;
use crate::tools::bench::report::{DepthReport, Ratio, Spread};

const NAME_WIDTH: usize = 22;
const WIDTH: usize = 18;

/// A line of the table: its name, how it is taken from a point, and from a ratio.
type Row = (&'static str, fn(&DepthReport) -> String, fn(&Ratio) -> Option<Spread>);

const ROWS: [Row; 12] = [
    ("IOPS", |it| thousands(it.iops.median), |ratio| Some(ratio.iops)),
    ("  lowest round", |it| thousands(it.iops.min), |_| None),
    ("  highest round", |it| thousands(it.iops.max), |_| None),
    ("bandwidth, MiB/s", |it| format!("{:.1}", it.bytes_per_second.median / f64::from(1 << 20)), |_| None),
    ("latency p50, µs", |it| micros(it.latency_ns.p50), |ratio| Some(ratio.latency_p50)),
    ("  p99, µs", |it| micros(it.latency_ns.p99), |_| None),
    ("  p99.9, µs", |it| micros(it.latency_ns.p99_9), |_| None),
    ("  max, µs", |it| micros(it.latency_ns.max), |_| None),
    ("CPU/request here, µs", |it| format!("{:.3}", it.client_cpu_ns_per_request / 1e3), |_| None),
    (
        "  in the back-end, µs",
        |it| it.server_cpu_ns_per_request.map_or("-".to_owned(), |ns| format!("{:.3}", ns / 1e3)),
        |ratio| ratio.server_cpu,
    ),
    ("kicks/request", |it| format!("{:.4}", it.kicks_per_request), |_| None),
    ("calls/request", |it| format!("{:.4}", it.calls_per_request), |_| None),
];

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", title(self))?;
        for peer in &self.peers {
            let mib = peer.capacity_bytes >> 20;
            write!(f, "  {}  {} ({mib} MiB)", peer.name, peer.socket)?;
            if self.verify {
                write!(f, ", verified, {} blocks read back", peer.blocks_read_back)?;
            }
            writeln!(f)?;
        }
        let count = self.peers.iter().map(|peer| peer.depths.len()).max().unwrap_or(0);
        (0..count).try_for_each(|place| self.table(f, place))
    }
}

impl Report {
    fn table(&self, f: &mut fmt::Formatter<'_>, place: usize) -> fmt::Result {
        let points: Vec<_> = self.peers.iter().filter_map(|peer| peer.depths.get(place)).collect();
        let depth = points.first().map_or(0, |point| point.iodepth);
        write!(f, "\n{:<NAME_WIDTH$}", format!("iodepth {depth}"))?;
        for peer in &self.peers {
            write!(f, "{:>WIDTH$}", peer.name)?;
        }
        writeln!(f, "{}", if self.ratios.is_empty() { "" } else { "    A / B (lowest – highest round)" })?;
        for (name, value, ratio) in ROWS {
            write!(f, "{name:<NAME_WIDTH$}")?;
            for point in &points {
                write!(f, "{:>WIDTH$}", value(point))?;
            }
            if let Some(it) = self.ratios.get(place).and_then(ratio) {
                write!(f, "    {:.2} ({:.2} – {:.2})", it.median, it.min, it.max)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// What was measured, in one line.
pub(super) fn title(report: &Report) -> String {
    let block = match report.block_bytes {
        bytes if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        bytes if bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    };
    let plural = |count: u16| if count == 1 { "" } else { "s" };
    format!(
        "{} of {block}, {} {}queue{}, {}, {} round{} of {} s",
        report.rw,
        report.queues,
        if report.packed { "packed " } else { "" },
        plural(report.queues),
        if report.waiting == "poll" { "polling" } else { "event-driven" },
        report.rounds,
        plural(report.rounds),
        report.runtime_seconds,
    )
}

fn micros(nanoseconds: u64) -> String {
    format!("{:.1}", nanoseconds as f64 / 1e3)
}

/// A number with a space between groups of three digits.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped() {
        for (value, text) in [(0.0, "0"), (999.4, "999"), (1000.0, "1 000"), (1234567.0, "1 234 567")] {
            assert_eq!(thousands(value), text);
        }
    }
}
