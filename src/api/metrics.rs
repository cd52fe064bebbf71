//! Metrics in the text format of Prometheus: a family of samples after another, one sample a disk.

use std::fmt::{Display, Write as _};
use std::time::Duration;

use crate::limits::bounds::{MAX_LISTED_BAD_BLOCKS, MAX_LISTED_RINGS};
use crate::log::{dropped_lines, suppressed_lines};
use crate::server::DiskStats;
use crate::virtio::blk::Counters;

/// Metrics of one name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Family {
    /// What follows `vhost_user_pmem_`.
    pub(crate) name: &'static str,
    /// What it says, in a sentence.
    pub(crate) help: &'static str,
    kind: &'static str,
    samples: Samples,
}

/// Where the samples of a family come from.
#[derive(Debug, Clone, Copy)]
enum Samples {
    /// One of the process.
    Process(fn(&mut Writer<'_>)),
    /// At most one of each disk: none where there is nothing to be said.
    Disk(fn(&DiskStats) -> Value),
    /// Any number of each disk, with labels of their own.
    Labelled(fn(&DiskStats, &mut Writer<'_>)),
}

/// A sample's value.
type Value = Option<f64>;

const fn gauge(name: &'static str, help: &'static str, value: fn(&DiskStats) -> Value) -> Family {
    Family { name, help, kind: "gauge", samples: Samples::Disk(value) }
}

const fn counter(name: &'static str, help: &'static str, value: fn(&DiskStats) -> Value) -> Family {
    Family { name, help, kind: "counter", samples: Samples::Disk(value) }
}

const fn labelled(
    name: &'static str,
    help: &'static str,
    samples: fn(&DiskStats, &mut Writer<'_>),
) -> Family {
    Family { name, help, kind: "gauge", samples: Samples::Labelled(samples) }
}

/// All metrics there are, in the order in which they are written.
pub(crate) const FAMILIES: [Family; 42] = [
    Family {
        name: "build_info",
        help: "1; the version of the program is the label `version`.",
        kind: "gauge",
        samples: Samples::Process(|out| out.sample(&[("version", &env!("CARGO_PKG_VERSION"))], 1.0)),
    },
    Family {
        name: "dropped_log_lines_total",
        help: "Lines of the log that were dropped because nobody read it.",
        kind: "counter",
        samples: Samples::Process(|out| out.sample(&[], dropped_lines() as f64)),
    },
    Family {
        name: "suppressed_log_lines_total",
        help: "Lines of the log that were left out because peers cause very many of the kind; the log says of which.",
        kind: "counter",
        samples: Samples::Process(|out| out.sample(&[], suppressed_lines() as f64)),
    },
    labelled(
        "disk_info",
        "1; the label `durability` says when a write is safe, the label `backing` what the disk lies on.",
        |disk, out| {
            let (durability, backing) = (disk.durability.word(), disk.kind.to_string());
            out.sample(&[("disk", &disk.name), ("durability", &durability), ("backing", &backing)], 1.0);
        },
    ),
    gauge("capacity_bytes", "Size of the disk.", |disk| number(disk.capacity_bytes)),
    gauge("read_only", "1 if writes are refused, else 0.", |disk| number(disk.read_only.into())),
    gauge("front_ends", "Front-ends that are connected.", |disk| number(disk.front_ends as u64)),
    gauge(
        "guest_memory_bytes",
        "Bytes of guest memory that are mapped for front-ends of the disk.",
        |disk| number(disk.guest_memory_bytes),
    ),
    gauge(
        "overlay_bytes",
        "Bytes of memory, or of its file's space, that hold what was written to the private disk (`overlay=`).",
        |disk| disk.overlay_bytes.and_then(|(bytes, _)| number(bytes)),
    ),
    counter(
        "refused_connections_total",
        "Connections that were refused because the users of their processes may not connect (`allow-uid=`).",
        |disk| number(disk.refused_connections),
    ),
    counter(
        "refused_descriptors_total",
        "Descriptors of front-ends that were refused for what they are, or for what waits in them.",
        |disk| number(disk.refused_descriptors),
    ),
    counter(
        "refused_messages_total",
        "Messages of front-ends that were refused; the log says why.",
        |disk| number(disk.refused_messages),
    ),
    counter(
        "closed_connections_total",
        "Connections that were closed for what their front-ends did, or not let in for want of a place.",
        |disk| number(disk.closed_connections),
    ),
    counter(
        "hold_ups_total",
        "How often the disk's front-ends have held up others on its worker: very many wait for a call or kick descriptor, or guest memory is taken away while it is used. The disk has workers of its own then.",
        |disk| number(disk.hold_ups),
    ),
    counter(
        "budget_refusals_total",
        "Connections and messages that were refused because the disk's front-ends had used up their share of memory, \
         regions, descriptors, threads, or processes that close what they have sent.",
        |disk| number(disk.budget_refusals),
    ),
    gauge("bad_bytes", "Bytes of the disk whose media is known to be bad.", |disk| {
        number(disk.bad_blocks.iter().map(|range| range.end.saturating_sub(range.start)).sum())
    }),
    labelled(
        "bad_block_bytes",
        "Length of each range of bad blocks; its offset in the disk in bytes is the label `offset`. At most 256 ranges a disk.",
        |disk, out| {
            for range in disk.bad_blocks.iter().take(MAX_LISTED_BAD_BLOCKS) {
                let labels: [(_, &dyn Display); 2] = [("disk", &disk.name), ("offset", &range.start)];
                out.sample(&labels, range.end.saturating_sub(range.start) as f64);
            }
        },
    ),
    gauge(
        "huge_page_bytes",
        "Bytes of the disk that are mapped in huge pages, as last counted: after populating, at the start and after growth. \
         On DAX: bytes that can be, as the file lies.",
        |disk| disk.huge_bytes.and_then(number),
    ),
    labelled(
        "region_info",
        "1 for each region of persistent memory below the disk; what the platform says about it are the labels `region`, \
         `provider`, `persistence_domain` and `numa_node`.",
        region_info,
    ),
    labelled(
        "dirty_shutdowns",
        "How many times the region's modules had lost power uncleanly when the disk was opened, where they count that.",
        |disk, out| {
            for region in &disk.regions {
                if let Some(count) = region.dirty_shutdowns {
                    out.sample(&[("disk", &disk.name), ("region", &region.name)], count as f64);
                }
            }
        },
    ),
    counter("reads_total", "Read requests that succeeded.", |disk| number(disk.counters.reads)),
    counter("read_bytes_total", "Bytes that guests have read.", |disk| number(disk.counters.read_bytes)),
    counter("writes_total", "Write requests that succeeded.", |disk| number(disk.counters.writes)),
    counter("written_bytes_total", "Bytes that guests have written.", |disk| {
        number(disk.counters.written_bytes)
    }),
    counter("zeroed_bytes_total", "Bytes that guests have asked to be zeroed.", |disk| {
        number(disk.counters.zeroed_bytes)
    }),
    counter(
        "media_written_bytes_total",
        "Bytes written to the media for writes, for zeroes and to populate the mapping: they use up its endurance. Without \
         what a file system writes by itself: its metadata; on DAX up to 2 MiB of zeroes at the first store into space without \
         data (`sparse=on`), and 128 KiB or more to copy a block that files share.",
        |disk| number(disk.counters.media_written_bytes.saturating_add(disk.populated_zero_bytes)),
    ),
    counter(
        "populated_zero_bytes_total",
        "The part of these that Linux zeroed in persistent memory without data, to populate the mapping.",
        |disk| number(disk.populated_zero_bytes),
    ),
    gauge(
        "write_amplification",
        "Bytes written to the media for requests, divided by the bytes that these requests wrote or zeroed.",
        |disk| amplification(&disk.counters),
    ),
    Family {
        kind: "counter",
        ..labelled(
            "ring_requests_total",
            "Requests of each queue that succeeded: its index is the label `ring`, `operation` is `read`, `write`, `flush` or `other`. Of a \
             queue that was used; at most of the first 64 of a disk.",
            |disk, out| {
                of_rings(disk, out, |it| {
                    vec![
                        ("read", it.reads),
                        ("write", it.writes),
                        ("flush", it.flushes),
                        ("other", it.others),
                    ]
                });
            },
        )
    },
    Family {
        kind: "counter",
        ..labelled("ring_bytes_total", "Bytes that these reads and writes moved.", |disk, out| {
            of_rings(disk, out, |it| vec![("read", it.read_bytes), ("write", it.written_bytes)]);
        })
    },
    counter("flushes_total", "Flushes that succeeded.", |disk| number(disk.counters.flushes)),
    counter(
        "other_requests_total",
        "Requests of other kinds that succeeded: serial number, discard, write zeroes.",
        |disk| number(disk.counters.others),
    ),
    counter(
        "direct_transfers_total",
        "Reads and writes of block devices that the kernel did while no thread waited for them; threads did the others.",
        |disk| number(disk.counters.direct),
    ),
    gauge(
        "requests_in_flight",
        "Requests that were begun and are not done, on files and block devices; a flush counts as one.",
        |disk| number(disk.requests_in_flight),
    ),
    gauge(
        "oldest_request_seconds",
        "How long the oldest of these has been waiting for media, or the start of a queue or a look at the size: since then a disk hangs, if it grows.",
        |disk| Some(disk.oldest_request.as_secs_f64()),
    ),
    counter(
        "slow_requests_total",
        "Requests that took longer than `slow-ms=` says, or have not ended after that time; 0 without it.",
        |disk| number(disk.slow_requests),
    ),
    Family {
        kind: "histogram",
        ..labelled(
            "request_seconds",
            "How long requests took, from when they were taken from their queue until they were shown as done, by `operation`. Borders are \
             powers of two, from 256 ns to 8.6 s. Of disks in memory, one turn in 61 of a queue is timed and stands for the others: \
             the count is an estimate.",
            latency,
        )
    },
    labelled(
        "limit",
        "What the disk is limited to, a second: of what is the label `limit`. Of a group, what all its disks together are.",
        |disk, out| {
            for (measure, rate) in disk.throttling.limits.all() {
                out.sample(&[("disk", &disk.name), ("limit", &measure.name())], rate.average.get() as f64);
            }
        },
    ),
    counter("throttled_total", "How often a queue with requests in it was held by a limit.", |disk| {
        number(disk.counters.throttled)
    }),
    counter(
        "throttled_seconds_total",
        "For how long, of all queues, once they go on. It is not part of `request_seconds`: what is held is not taken.",
        |disk| Some(Duration::from_nanos(disk.counters.throttled_ns).as_secs_f64()),
    ),
    counter("failures_total", "Requests that were answered with an error.", |disk| {
        number(disk.counters.failures)
    }),
    counter("broken_rings_total", "Rings that were stopped because of a mistake of their driver.", |disk| {
        number(disk.counters.broken_rings)
    }),
];

/// What the platform says of the persistent memory below a disk.
fn region_info(disk: &DiskStats, out: &mut Writer<'_>) {
    for region in &disk.regions {
        let unknown = || "unknown".to_owned();
        let (provider, domain) = (region.provider.clone(), region.persistence_domain.clone());
        let (provider, domain) = (provider.unwrap_or_else(unknown), domain.unwrap_or_else(unknown));
        let node = region.numa_node.map_or_else(unknown, |node| node.to_string());
        let labels: [(_, &dyn Display); 5] = [
            ("disk", &disk.name),
            ("region", &region.name),
            ("provider", &provider),
            ("persistence_domain", &domain),
            ("numa_node", &node),
        ];
        out.sample(&labels, 1.0);
    }
}

/// Samples of each ring, by operation.
fn of_rings(disk: &DiskStats, out: &mut Writer<'_>, of: fn(&Counters) -> Vec<(&'static str, u64)>) {
    for (ring, counters) in disk.rings.all().take_while(|(ring, _)| *ring < MAX_LISTED_RINGS) {
        for (operation, count) in of(counters) {
            let labels: [(_, &dyn Display); 3] =
                [("disk", &disk.name), ("ring", &ring), ("operation", &operation)];
            out.sample(&labels, count as f64);
        }
    }
}

/// Histograms of a disk.
fn latency(disk: &DiskStats, out: &mut Writer<'_>) {
    for (what, counts) in &disk.latency {
        let operation = what.name();
        for (border, count) in counts.borders() {
            let labels: [(_, &dyn Display); 3] =
                [("disk", &disk.name), ("operation", &operation), ("le", &border)];
            out.part("_bucket", &labels, count as f64);
        }
        let labels: [(_, &dyn Display); 3] =
            [("disk", &disk.name), ("operation", &operation), ("le", &"+Inf")];
        out.part("_bucket", &labels, counts.count() as f64);
        let labels: [(_, &dyn Display); 2] = [("disk", &disk.name), ("operation", &operation)];
        out.part("_sum", &labels, counts.sum_seconds());
        out.part("_count", &labels, counts.count() as f64);
    }
}

/// Exact up to 2^53, as every reader of the format takes it.
#[expect(clippy::unnecessary_wraps, reason = "what families have in common")]
const fn number(value: u64) -> Value {
    Some(value as f64)
}

/// Nothing before the first write.
fn amplification(counters: &Counters) -> Value {
    let guest_bytes = counters.written_bytes.saturating_add(counters.zeroed_bytes);
    (guest_bytes != 0).then(|| counters.media_written_bytes as f64 / guest_bytes as f64)
}

/// All metrics of these disks.
pub fn text(disks: &[DiskStats]) -> String {
    let mut text = String::new();
    for Family { name, help, kind, samples } in &FAMILIES {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP vhost_user_pmem_{name} {help}\n# TYPE vhost_user_pmem_{name} {kind}");
        let mut out = Writer { text: &mut text, name };
        match samples {
            Samples::Process(write) => write(&mut out),
            Samples::Disk(value) => {
                for (disk, value) in disks.iter().filter_map(|disk| Some((disk, value(disk)?))) {
                    out.sample(&[("disk", &disk.name)], value);
                }
            }
            Samples::Labelled(write) => disks.iter().for_each(|disk| write(disk, &mut out)),
        }
    }
    text
}

/// Writes samples of one family.
struct Writer<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Writer<'_> {
    fn sample(&mut self, labels: &[(&str, &dyn Display)], value: f64) {
        self.part("", labels, value);
    }

    /// One whose name has an end.
    fn part(&mut self, end: &str, labels: &[(&str, &dyn Display)], value: f64) {
        let label =
            |(name, value): &(&str, &dyn Display)| format!("{name}=\"{}\"", escaped(&value.to_string()));
        let labels = labels.iter().map(label).collect::<Vec<_>>().join(",");
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "vhost_user_pmem_{}{end}{{{labels}}} {value}", self.name);
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{BackingKind, Durability, Region};
    use crate::virtio::blk::{Latency, LatencyCounts, RingCounters, Timed};

    fn timed() -> LatencyCounts {
        let latency = Latency::default();
        latency.prepare();
        latency.add(Timed::Write, Duration::from_nanos(500), 3);
        latency.counts(Timed::Write)
    }

    fn disk() -> DiskStats {
        DiskStats {
            name: "a \"b\" \\".into(),
            kind: BackingKind::Tmpfs,
            durability: Durability::CacheLine,
            capacity_bytes: 1 << 40,
            read_only: true,
            front_ends: 2,
            bad_blocks: vec![4096..8192, 16384..32768],
            regions: vec![Region::testing("region3", Some(7))],
            huge_bytes: Some(2 << 20),
            overlay_bytes: Some((12_288, 65_536)),
            guest_memory_bytes: 1 << 30,
            budget_refusals: 3,
            refused_connections: 4,
            refused_descriptors: 6,
            refused_messages: 10,
            closed_connections: 11,
            hold_ups: 8,
            populated_zero_bytes: 8192,
            requests_in_flight: 5,
            oldest_request: Duration::from_millis(1500),
            slow_requests: 9,
            latency: vec![(Timed::Write, timed())],
            throttling: crate::config::Throttling::default(),
            counters: Counters { media_written_bytes: 4096, ..Counters::default() },
            rings: rings(),
        }
    }

    fn rings() -> RingCounters {
        let mut rings = RingCounters::default();
        rings.add(3, &Counters { reads: 5, read_bytes: 512, ..Counters::default() });
        rings.add(200, &Counters { reads: 1, ..Counters::default() });
        rings
    }

    #[test]
    fn every_family_is_declared_and_labelled() {
        let text = text(&[disk()]);
        for line in [
            r#"vhost_user_pmem_capacity_bytes{disk="a \"b\" \\"} 1099511627776"#,
            r#"vhost_user_pmem_read_only{disk="a \"b\" \\"} 1"#,
            r#"vhost_user_pmem_front_ends{disk="a \"b\" \\"} 2"#,
            r#"vhost_user_pmem_guest_memory_bytes{disk="a \"b\" \\"} 1073741824"#,
            r#"vhost_user_pmem_overlay_bytes{disk="a \"b\" \\"} 12288"#,
            r#"vhost_user_pmem_budget_refusals_total{disk="a \"b\" \\"} 3"#,
            r#"vhost_user_pmem_refused_connections_total{disk="a \"b\" \\"} 4"#,
            r#"vhost_user_pmem_refused_descriptors_total{disk="a \"b\" \\"} 6"#,
            r#"vhost_user_pmem_refused_messages_total{disk="a \"b\" \\"} 10"#,
            r#"vhost_user_pmem_closed_connections_total{disk="a \"b\" \\"} 11"#,
            r#"vhost_user_pmem_hold_ups_total{disk="a \"b\" \\"} 8"#,
            r#"vhost_user_pmem_bad_bytes{disk="a \"b\" \\"} 20480"#,
            r#"vhost_user_pmem_huge_page_bytes{disk="a \"b\" \\"} 2097152"#,
            r#"vhost_user_pmem_media_written_bytes_total{disk="a \"b\" \\"} 12288"#,
            r#"vhost_user_pmem_slow_requests_total{disk="a \"b\" \\"} 9"#,
            r#"vhost_user_pmem_requests_in_flight{disk="a \"b\" \\"} 5"#,
            r#"vhost_user_pmem_oldest_request_seconds{disk="a \"b\" \\"} 1.5"#,
            r#"vhost_user_pmem_populated_zero_bytes_total{disk="a \"b\" \\"} 8192"#,
            r#"vhost_user_pmem_dirty_shutdowns{disk="a \"b\" \\",region="region3"} 7"#,
            r#"vhost_user_pmem_request_seconds_bucket{disk="a \"b\" \\",operation="write",le="0.000000256"} 0"#,
            r#"vhost_user_pmem_request_seconds_bucket{disk="a \"b\" \\",operation="write",le="0.000000512"} 3"#,
            r#"vhost_user_pmem_request_seconds_bucket{disk="a \"b\" \\",operation="write",le="+Inf"} 3"#,
            r#"vhost_user_pmem_request_seconds_count{disk="a \"b\" \\",operation="write"} 3"#,
            r#"vhost_user_pmem_bad_block_bytes{disk="a \"b\" \\",offset="16384"} 16384"#,
            r#"vhost_user_pmem_ring_requests_total{disk="a \"b\" \\",ring="3",operation="read"} 5"#,
            r#"vhost_user_pmem_ring_requests_total{disk="a \"b\" \\",ring="3",operation="write"} 0"#,
            r#"vhost_user_pmem_ring_bytes_total{disk="a \"b\" \\",ring="3",operation="read"} 512"#,
        ] {
            assert!(text.lines().any(|it| it == line), "no line {line} in:\n{text}");
        }
        assert!(text.contains(r#",durability="cacheline",backing="memory (tmpfs"#), "{text}");
        let region =
            r#",region="region3",provider="ACPI.NFIT",persistence_domain="cpu_cache",numa_node="unknown"} 1"#;
        assert!(text.contains(region), "{text}");
        assert!(!text.contains("write_amplification{"), "nothing was written: {text}");
        assert!(!text.contains("ring=\"200\""), "only the first are shown: {text}");
        for sample in text.lines().filter(|line| !line.starts_with('#')) {
            let name = sample.split('{').next().unwrap();
            let name =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert_eq!(text.matches(&format!("# TYPE {name} ")).count(), 1, "{name}");
        }
    }

    #[test]
    fn a_disk_full_of_bad_blocks_is_listed_in_part() {
        let bad_blocks = (0..1000).map(|page| page * 8192..page * 8192 + 4096).collect();
        let text = text(&[DiskStats { bad_blocks, ..disk() }]);
        assert_eq!(text.matches("vhost_user_pmem_bad_block_bytes{").count(), MAX_LISTED_BAD_BLOCKS);
        assert!(text.contains(&format!(r#"bad_bytes{{disk="a \"b\" \\"}} {}"#, 1000 * 4096)), "{text}");
    }
}
