//! What a server shows at one moment, as its control socket says it. Whoever answers there may be anybody.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Map, Value};

/// At one moment.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) disks: Vec<Disk>,
    /// Those of all disks; none where the server does not know the question.
    pub(super) rings: Option<Vec<Ring>>,
    /// The threads of the server's process; none where they cannot be seen.
    pub(super) threads: Option<Vec<Thread>>,
}

/// A disk.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Disk {
    pub(super) name: String,
    /// By the keys of `--disk`.
    #[serde(default)]
    pub(super) options: Map<String, Value>,
    /// None while it comes or goes.
    pub(super) state: Option<State>,
}

/// What is so of a disk, and what it has done since the server started.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct State {
    pub(super) capacity_bytes: u64,
    pub(super) front_ends: u64,
    pub(super) oldest_request_seconds: f64,
    pub(super) reads: u64,
    pub(super) read_bytes: u64,
    pub(super) writes: u64,
    pub(super) written_bytes: u64,
    pub(super) zeroed_bytes: u64,
    /// Other servers may not say it.
    pub(super) media_written_bytes: Option<u64>,
    pub(super) flushes: u64,
    pub(super) others: u64,
    pub(super) failures: u64,
    pub(super) throttled_seconds: f64,
    /// By operation: read, write, flush.
    pub(super) latency: BTreeMap<String, Histogram>,
}

/// How many requests took at most how long; what follows the last bound are all.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Histogram {
    /// In seconds, ascending.
    pub(super) le: Vec<f64>,
    pub(super) count: Vec<u64>,
}

/// A ring that runs, or was broken.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Ring {
    pub(super) disk: String,
    pub(super) front_end: u64,
    pub(super) ring: u64,
    pub(super) format: String,
    pub(super) size: u16,
    pub(super) state: String,
    pub(super) available: Option<u16>,
    pub(super) shown: u16,
    pub(super) under_way: u64,
    /// Since it was started.
    pub(super) seconds: f64,
    pub(super) reads: u64,
    pub(super) read_bytes: u64,
    pub(super) writes: u64,
    pub(super) written_bytes: u64,
    pub(super) flushes: u64,
    pub(super) failures: u64,
}

/// A thread of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Thread {
    pub(super) number: u64,
    pub(super) name: String,
    /// The processor time it has used.
    pub(super) ticks: u64,
}

impl Ring {
    /// Requests that its guest waits for. A packed ring does not say how many have come: of one those that wait for media.
    pub(super) fn depth(&self) -> u64 {
        let waited_for = self.available.map_or(0, |available| available.wrapping_sub(self.shown));
        u64::from(waited_for.min(self.size)).max(self.under_way)
    }

    pub(super) fn key(&self) -> (&str, u64, u64) {
        (&self.disk, self.front_end, self.ring)
    }
}

/// What is between the first and the last parenthesis of /proc/PID/task/TID/stat is a name, and may be anything.
pub(super) fn thread(number: u64, stat: &str) -> Option<Thread> {
    let (_, rest) = stat.split_once('(')?;
    let (name, rest) = rest.rsplit_once(')')?;
    // The state is field 3; utime and stime are 14 and 15 (proc_pid_stat(5)).
    let mut times = rest.split_whitespace().skip(11).map(str::parse::<u64>);
    let ticks = times.next()?.ok()?.saturating_add(times.next()?.ok()?);
    Some(Thread { number, name: name.to_owned(), ticks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_read_whatever_its_name() {
        let line = "7 (worker-0) R 1 7 7 0 -1 4194304 98 0 0 0 250 50 0 0 20 0 8 0 100 1 2 3";
        assert_eq!(thread(7, line), Some(Thread { number: 7, name: "worker-0".to_owned(), ticks: 300 }));
        assert_eq!(thread(7, &line.replace("worker-0", ") R 1 (")).unwrap().ticks, 300);
        for broken in ["", "7 (worker", "7 (worker) R 1 2", "7 (worker) R 1 7 7 0 -1 4194304 98 0 0 0 x 50"] {
            assert_eq!(thread(7, broken), None, "{broken}");
        }
    }

    #[test]
    fn a_depth_is_what_a_ring_can_hold() {
        let ring = |available, shown| Ring { available, shown, size: 64, under_way: 3, ..Ring::default() };
        assert_eq!(ring(Some(20), 10).depth(), 10);
        assert_eq!(ring(Some(5), 65_530).depth(), 11, "indices wrap");
        assert_eq!(ring(Some(10), 20).depth(), 64, "nonsense of a guest");
        assert_eq!(ring(None, 10).depth(), 3);
    }

    #[test]
    fn a_server_may_say_more_or_less() {
        let disks: Vec<Disk> = serde_json::from_str(
            r#"[{"name": "a", "options": {}, "state": {"reads": 5, "new": [1]}}, {"name": "b", "state": null}]"#,
        )
        .unwrap();
        assert_eq!(disks[0].state.as_ref().unwrap().reads, 5);
        assert_eq!(disks[0].state.as_ref().unwrap().media_written_bytes, None);
        assert!(disks[1].state.is_none());
        assert!(serde_json::from_str::<Vec<Disk>>(r#"[{"name": 1}]"#).is_err());
    }
}
