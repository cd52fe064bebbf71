//! A disk as it is shown.

use std::time::Duration;

use serde_json::{Value, json};

use crate::config::json::Object;
use crate::server::{DiskStats, DiskSummary, RingStats};
use crate::virtio::queue::RingKind;

/// A disk, its options, and its state at this moment.
pub(super) fn shown(summary: &DiskSummary, options: Option<&Object>, stats: Option<&DiskStats>) -> Value {
    json!({
        "name": summary.name,
        "options": options,
        "state": stats.map(|stats| state(summary, stats)),
    })
}

fn state(summary: &DiskSummary, stats: &DiskStats) -> Value {
    let counters = &stats.counters;
    let bad_bytes: u64 = stats.bad_blocks.iter().map(|bad| bad.end.saturating_sub(bad.start)).sum();
    json!({
        "capacity_bytes": stats.capacity_bytes,
        "block_bytes": summary.block_bytes,
        "read_only": stats.read_only,
        "backing": stats.kind.to_string(),
        "durability": stats.durability.word(),
        "front_ends": stats.front_ends,
        "guest_memory_bytes": stats.guest_memory_bytes,
        "overlay_bytes": stats.overlay_bytes.map(|(bytes, _)| bytes),
        "overlay_max_bytes": stats.overlay_bytes.map(|(_, max_bytes)| max_bytes).filter(|max_bytes| *max_bytes != u64::MAX),
        "bad_bytes": bad_bytes,
        "requests_in_flight": stats.requests_in_flight,
        "slow_requests": stats.slow_requests,
        "oldest_request_seconds": stats.oldest_request.as_secs_f64(),
        "reads": counters.reads,
        "read_bytes": counters.read_bytes,
        "writes": counters.writes,
        "written_bytes": counters.written_bytes,
        "zeroed_bytes": counters.zeroed_bytes,
        "media_written_bytes": counters.media_written_bytes,
        "flushes": counters.flushes,
        "others": counters.others,
        "failures": counters.failures,
        "broken_rings": counters.broken_rings,
        "latency": latency(stats),
        "throttled": counters.throttled,
        "throttled_seconds": Duration::from_nanos(counters.throttled_ns).as_secs_f64(),
    })
}

/// The histogram of each operation that was timed: how many requests took at most so many seconds, and at the end, all of them;
/// and the border that half of them, and 99 % of them, did not exceed.
fn latency(stats: &DiskStats) -> Object {
    let shown = stats.latency.iter().map(|(what, counts)| {
        let (le, mut count): (Vec<_>, Vec<_>) = counts.borders().unzip();
        count.push(counts.count());
        let (p50, p99) = (counts.quantile_seconds(0.5), counts.quantile_seconds(0.99));
        let shown = json!({"le": le, "count": count, "p50_seconds": p50, "p99_seconds": p99});
        (what.name().to_owned(), shown)
    });
    shown.collect()
}

/// A ring, as it is at this moment.
pub(super) fn ring(ring: &RingStats) -> Value {
    let (indices, counters) = (&ring.indices, &ring.counters);
    json!({
        "disk": ring.device.identity().name,
        "front_end": ring.key.session,
        "ring": ring.key.index,
        "format": match ring.kind {
            RingKind::Split => "split",
            RingKind::Packed => "packed",
        },
        "size": indices.size,
        "state": ring.state,
        "broken": ring.broken,
        "available": indices.available,
        "taken": indices.taken,
        "used": indices.used,
        "shown": indices.shown,
        "under_way": ring.under_way,
        "seconds": ring.since.elapsed().as_secs_f64(),
        "reads": counters.reads,
        "read_bytes": counters.read_bytes,
        "writes": counters.writes,
        "written_bytes": counters.written_bytes,
        "flushes": counters.flushes,
        "failures": counters.failures,
    })
}
