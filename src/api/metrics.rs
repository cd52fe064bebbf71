//! Metrics in the text format of Prometheus: a family of samples after another, one sample a disk.

use std::fmt::{Display, Write as _};

use crate::limits::bounds::MAX_LISTED_BAD_RANGES;
use crate::log::dropped_lines;
use crate::server::DiskStats;
use crate::virtio::blk::Counters;

/// A family with one number a disk.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    value: fn(&DiskStats) -> Value,
}

/// A sample's value; none where there is nothing to be said.
type Value = Option<f64>;

const fn gauge(name: &'static str, help: &'static str, value: fn(&DiskStats) -> Value) -> Family {
    Family { name, help, kind: "gauge", value }
}

const fn counter(name: &'static str, help: &'static str, value: fn(&DiskStats) -> Value) -> Family {
    Family { name, help, kind: "counter", value }
}

const FAMILIES: [Family; 20] = [
    gauge("capacity_bytes", "Size of the disk.", |disk| number(disk.capacity_bytes)),
    gauge("read_only", "1 where writes are refused.", |disk| number(disk.read_only.into())),
    gauge("front_ends", "Front-ends that are connected.", |disk| number(disk.front_ends as u64)),
    counter(
        "refused_connections_total",
        "Connections refused since the users of these processes may not connect.",
        |disk| number(disk.refused_connections),
    ),
    gauge("guest_memory_bytes", "Bytes of guest memory that are mapped for front-ends.", |disk| {
        number(disk.guest_memory_bytes)
    }),
    counter(
        "budget_refusals_total",
        "Connections and messages refused since front-ends of the disk had all that they may have.",
        |disk| number(disk.budget_refusals),
    ),
    gauge("bad_bytes", "Bytes of the disk whose media is known to be bad.", |disk| {
        number(disk.bad_ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum())
    }),
    gauge("huge_page_bytes", "Bytes that are mapped in huge pages, when they were last counted.", |disk| {
        disk.huge_bytes.and_then(number)
    }),
    counter("reads_total", "Read requests that succeeded.", |disk| number(disk.counters.reads)),
    counter("read_bytes_total", "Bytes given to guests.", |disk| number(disk.counters.read_bytes)),
    counter("writes_total", "Write requests that succeeded.", |disk| number(disk.counters.writes)),
    counter("written_bytes_total", "Bytes taken from guests.", |disk| number(disk.counters.written_bytes)),
    counter("zeroed_bytes_total", "Bytes that guests have asked to be zeroes.", |disk| {
        number(disk.counters.zeroed_bytes)
    }),
    counter(
        "media_written_bytes_total",
        "Bytes that the media took, for writes, for zeroes, and to populate the mapping. Not what a file system writes by \
         itself: on DAX up to 2 MiB of zeroes at a first store into space without data, and 128 KiB or more to copy a block \
         that files share.",
        |disk| number(disk.counters.media_written_bytes.saturating_add(disk.populated_zero_bytes)),
    ),
    counter(
        "populated_zero_bytes_total",
        "Of these, bytes of persistent memory without data that Linux zeroed to populate the mapping.",
        |disk| number(disk.populated_zero_bytes),
    ),
    gauge(
        "write_amplification",
        "Bytes that the media took for requests, for each byte that guests wrote or zeroed.",
        |disk| amplification(&disk.counters),
    ),
    counter("flushes_total", "Flushes that succeeded.", |disk| number(disk.counters.flushes)),
    counter(
        "other_requests_total",
        "Requests of other kinds that succeeded: serial number, discard, write zeroes.",
        |disk| number(disk.counters.others),
    ),
    counter("failures_total", "Requests answered with an error.", |disk| number(disk.counters.failures)),
    counter("broken_rings_total", "Rings that were broken by a driver's mistake.", |disk| {
        number(disk.counters.broken_rings)
    }),
];

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
    header(&mut text, "build_info", "The version of the program.", "gauge");
    sample(&mut text, "build_info", &[("version", &env!("CARGO_PKG_VERSION"))], 1.0);
    let help = "Lines of the log that were dropped, since nobody read it.";
    header(&mut text, "dropped_log_lines_total", help, "counter");
    sample(&mut text, "dropped_log_lines_total", &[], dropped_lines() as f64);
    header(&mut text, "disk_info", "What the disk lies on, and how far a flushed write is safe.", "gauge");
    for disk in disks {
        let (durability, backing) = (disk.durability.word(), disk.kind.to_string());
        let labels: [(_, &dyn Display); 3] =
            [("disk", &disk.name), ("durability", &durability), ("backing", &backing)];
        sample(&mut text, "disk_info", &labels, 1.0);
    }
    for Family { name, help, kind, value } in &FAMILIES {
        header(&mut text, name, help, kind);
        for disk in disks {
            if let Some(value) = value(disk) {
                sample(&mut text, name, &[("disk", &disk.name)], value);
            }
        }
    }
    regions(&mut text, disks);
    bad_ranges(&mut text, disks);
    text
}

/// What the platform says of the persistent memory below each disk.
fn regions(text: &mut String, disks: &[DiskStats]) {
    let each = || disks.iter().flat_map(|disk| disk.regions.iter().map(move |region| (disk, region)));
    header(text, "region_info", "A region of persistent memory below the disk.", "gauge");
    for (disk, region) in each() {
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
        sample(text, "region_info", &labels, 1.0);
    }
    let help = "How often the region's modules had lost power uncleanly when the disk was opened.";
    header(text, "dirty_shutdowns", help, "gauge");
    for (disk, region) in each() {
        if let Some(count) = region.dirty_shutdowns {
            let labels: [(_, &dyn Display); 2] = [("disk", &disk.name), ("region", &region.name)];
            sample(text, "dirty_shutdowns", &labels, count as f64);
        }
    }
}

fn bad_ranges(text: &mut String, disks: &[DiskStats]) {
    let help = "Length of each range of bad media, by its offset in the disk in bytes; at most 256 a disk.";
    header(text, "bad_range_bytes", help, "gauge");
    for disk in disks {
        for range in disk.bad_ranges.iter().take(MAX_LISTED_BAD_RANGES) {
            let labels: [(_, &dyn Display); 2] = [("disk", &disk.name), ("offset", &range.start)];
            sample(text, "bad_range_bytes", &labels, range.end.saturating_sub(range.start) as f64);
        }
    }
}

fn header(text: &mut String, name: &str, help: &str, kind: &str) {
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(text, "# HELP vhost_user_pmem_{name} {help}\n# TYPE vhost_user_pmem_{name} {kind}");
}

fn sample(text: &mut String, name: &str, labels: &[(&str, &dyn Display)], value: f64) {
    let label = |(name, value): &(&str, &dyn Display)| format!("{name}=\"{}\"", escaped(&value.to_string()));
    let labels = labels.iter().map(label).collect::<Vec<_>>().join(",");
    let _ = writeln!(text, "vhost_user_pmem_{name}{{{labels}}} {value}");
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{BackingKind, Durability, Region};

    fn disk() -> DiskStats {
        DiskStats {
            name: "a \"b\" \\".into(),
            kind: BackingKind::Tmpfs,
            durability: Durability::CacheLine,
            capacity_bytes: 1 << 40,
            read_only: true,
            front_ends: 2,
            bad_ranges: vec![4096..8192, 16384..32768],
            regions: vec![Region::testing("region3", Some(7))],
            huge_bytes: Some(2 << 20),
            guest_memory_bytes: 1 << 30,
            budget_refusals: 3,
            refused_connections: 4,
            populated_zero_bytes: 8192,
            counters: Counters { media_written_bytes: 4096, ..Counters::default() },
        }
    }

    #[test]
    fn every_family_is_declared_and_labelled() {
        let text = text(&[disk()]);
        for line in [
            r#"vhost_user_pmem_capacity_bytes{disk="a \"b\" \\"} 1099511627776"#,
            r#"vhost_user_pmem_read_only{disk="a \"b\" \\"} 1"#,
            r#"vhost_user_pmem_front_ends{disk="a \"b\" \\"} 2"#,
            r#"vhost_user_pmem_guest_memory_bytes{disk="a \"b\" \\"} 1073741824"#,
            r#"vhost_user_pmem_budget_refusals_total{disk="a \"b\" \\"} 3"#,
            r#"vhost_user_pmem_refused_connections_total{disk="a \"b\" \\"} 4"#,
            r#"vhost_user_pmem_bad_bytes{disk="a \"b\" \\"} 20480"#,
            r#"vhost_user_pmem_huge_page_bytes{disk="a \"b\" \\"} 2097152"#,
            r#"vhost_user_pmem_media_written_bytes_total{disk="a \"b\" \\"} 12288"#,
            r#"vhost_user_pmem_populated_zero_bytes_total{disk="a \"b\" \\"} 8192"#,
            r#"vhost_user_pmem_dirty_shutdowns{disk="a \"b\" \\",region="region3"} 7"#,
            r#"vhost_user_pmem_bad_range_bytes{disk="a \"b\" \\",offset="16384"} 16384"#,
        ] {
            assert!(text.lines().any(|it| it == line), "no line {line} in:\n{text}");
        }
        assert!(text.contains(r#",durability="cacheline",backing="memory (tmpfs"#), "{text}");
        let region =
            r#",region="region3",provider="ACPI.NFIT",persistence_domain="cpu_cache",numa_node="unknown"} 1"#;
        assert!(text.contains(region), "{text}");
        assert!(!text.contains("write_amplification{"), "nothing was written: {text}");
        for sample in text.lines().filter(|line| !line.starts_with('#')) {
            let name = sample.split('{').next().unwrap();
            assert_eq!(text.matches(&format!("# TYPE {name} ")).count(), 1, "{name}");
        }
    }

    #[test]
    fn a_disk_full_of_bad_ranges_is_listed_in_part() {
        let bad_ranges = (0..1000).map(|page| page * 8192..page * 8192 + 4096).collect();
        let text = text(&[DiskStats { bad_ranges, ..disk() }]);
        assert_eq!(text.matches("vhost_user_pmem_bad_range_bytes{").count(), MAX_LISTED_BAD_RANGES);
        assert!(text.contains(&format!(r#"bad_bytes{{disk="a \"b\" \\"}} {}"#, 1000 * 4096)), "{text}");
    }
}
