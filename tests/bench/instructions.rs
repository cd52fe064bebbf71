//! Instructions of a request in a ring, counted by callgrind: the same on every machine, busy or not.
//!
//! `cargo bench --bench instructions` compares with `tests/bench/instructions.txt` and fails where a count is
//! more than 3 % off, in either direction; `-- --record` writes the file anew; `-- --budget` also fails where a
//! 4 KiB request takes more than it may; `-- --sources NAME` says which source files the instructions of one
//! scenario come from. It also fails where a request runs a locked
//! instruction or a system call, or anything outside of this program (the allocator, the C library's locks):
//! all of these are told by the addresses that callgrind saw run. Not where limits or `slow-ms=` are on: what they take is counted
//! and recorded, and no part of the budget.
//!
//! Only what runs inside of `Ring::serve` is counted. *Copy* is the routines that move the payload.

#![allow(unsafe_code, missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, clippy::cast_possible_truncation)]

mod callgrind;
mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use callgrind::{Profile, Special};
use common::guest::{Guest, Kind, Shape};
use common::{Random, map, memfd};

const DISK_BYTES: usize = 2 << 20;
/// Of these no request asks the kernel whether they are still there, as those in a mapping's last page do.
const SURE_BYTES: usize = DISK_BYTES - (64 << 10);
const BATCHES: usize = 64;
/// After so many the ring publishes what is done.
const BATCH_BYTES: usize = 256 << 10;
/// Requests after which a driver sees them done, at the least.
const SHOWN_REQUESTS: usize = 8;
/// A count may be so much off what is recorded.
const TOLERANCE: f64 = 0.03;
/// Most instructions of a 4 KiB request besides its copy, at depth 32 (issue 4).
const BUDGET: f64 = 250.0;

/// What is counted: name, shape.
fn scenarios() -> Vec<(&'static str, Shape)> {
    let read = Shape::new(Kind::Read, 4096, 32);
    let write = Shape::new(Kind::Write, 4096, 32);
    let none = |kind| Shape::new(kind, 0, 32);
    let sixty = Shape { payload_bytes: 58 * 512, pieces: 58, depth: 16, ..read };
    vec![
        ("read-4k", read),
        ("write-4k", write),
        ("read-4k-alone", Shape { depth: 1, ..read }),
        ("write-4k-alone", Shape { depth: 1, ..write }),
        ("read-512", Shape { payload_bytes: 512, ..read }),
        ("write-512", Shape { payload_bytes: 512, ..write }),
        ("read-64k", Shape { payload_bytes: 64 << 10, ..read }),
        ("write-4k-through", Shape { write_through: true, ..write }),
        ("read-4k-event-index", Shape { event_idx: true, ..read }),
        ("read-4k-indirect", Shape { indirect: true, ..read }),
        ("read-4k-8-regions", Shape { regions: 8, ..read }),
        ("read-4k-64-regions", Shape { regions: 64, ..read }),
        ("read-4k-10-descriptors", Shape { pieces: 8, ..read }),
        ("read-29k-60-descriptors", sixty),
        ("read-4k-64-rings", Shape { rings: 64, ..read }),
        ("read-4k-64-devices", Shape { rings: 64, devices: 64, ..read }),
        ("flush", none(Kind::Flush)),
        ("get-id", none(Kind::GetId)),
        ("unknown-type", none(Kind::Unknown)),
        ("read-beyond-the-end", Shape { kind: Kind::Beyond, ..read }),
        ("read-4k-limits", Shape { limits: true, ..read }),
        ("read-4k-slow-ms", Shape { slow: true, ..read }),
        ("read-4k-everything-on", Shape { limits: true, slow: true, ..read }),
        ("write-4k-everything-on", Shape { limits: true, slow: true, ..write }),
    ]
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| words.iter().any(|given| given == word);
    if has("--count") {
        return count();
    }
    let profiles: BTreeMap<_, _> = callgrind::run_this("--count", scenarios().len()).into_iter().collect();
    if let Some(at) = words.iter().position(|word| word == "--sources") {
        let name = words.get(at + 1).map_or("read-4k", |name| name);
        return sources(name, &profiles);
    }
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/bench/instructions.txt");
    let counted: Vec<Line> = scenarios().iter().map(|(name, shape)| line(name, shape, &profiles)).collect();
    let mut complaints = forbidden(&profiles);
    if has("--record") {
        std::fs::write(&file, record(&counted)).unwrap();
    }
    let recorded = std::fs::read_to_string(&file).unwrap_or_default();
    complaints.extend(compare(&counted, &recorded));
    complaints.extend(over_budget(&counted).filter(|_| has("--budget")));
    for complaint in &complaints {
        println!("broken: {complaint}");
    }
    assert!(complaints.is_empty(), "see above; if a change is wanted: ci/bench instructions --record");
}

/// Under callgrind: plays every scenario, and has its counts dumped.
fn count() {
    let disk = memfd(DISK_BYTES);
    let media = map(&disk, DISK_BYTES, true);
    for (name, shape) in scenarios() {
        let mut guest = Guest::new(shape, &disk, DISK_BYTES, media);
        let size = shape.payload_bytes.next_power_of_two().max(512);
        let mut random = Random(7);
        let mut place = |_| match shape.kind {
            Kind::Beyond => DISK_BYTES,
            _ => random.below(SURE_BYTES / size) * size,
        };
        // What happens once only has happened then, in each ring.
        for _ in 0..2 * shape.rings {
            guest.batch(&mut place);
        }
        for _ in 0..BATCHES {
            guest.batch_between(&mut place, callgrind::toggle);
        }
        let is_refused = matches!(shape.kind, Kind::Unknown | Kind::Beyond);
        assert_eq!(guest.status() != 0, is_refused, "{name}");
        callgrind::dump(name);
    }
}

/// What is counted of a scenario, per request.
struct Line {
    name: &'static str,
    besides: f64,
    copy: f64,
}

fn line(name: &'static str, shape: &Shape, profiles: &BTreeMap<String, Profile>) -> Line {
    let profile = &profiles[name];
    let each = |count: u64| count as f64 / (BATCHES * shape.depth) as f64;
    let copy =
        each(profile.functions.iter().filter(|(name, _)| moves_payload(name)).map(|(_, cost)| cost).sum());
    Line { name, besides: each(profile.total()) - copy, copy }
}

/// Whether it is one of the routines of `copy`, but for the one that moves headers and statuses.
fn moves_payload(function: &str) -> bool {
    ["copy16", "stream16", "zero16", "copy_rep", "fill", "clflush"]
        .iter()
        .any(|kernel| function.strip_prefix("vhost_user_pmem_") == Some(kernel))
}

/// What must not run for a request.
fn forbidden(profiles: &BTreeMap<String, Profile>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, shape) in scenarios() {
        let profile = &profiles[name];
        // These ask for the time, which is a system call under valgrind, and nowhere else.
        if shape.limits || shape.slow {
            continue;
        }
        for special in [Special::Locked, Special::SystemCall] {
            if let Some(count) = profile.special.get(&special) {
                complaints
                    .push(format!("{name}: {special:?}: {count} in {} requests", BATCHES * shape.depth));
            }
        }
        // One for each part that is published, which has eight requests or as many bytes, and one to arm kicks.
        let bytes = shape.depth * shape.payload_bytes;
        let parts = bytes.div_ceil(BATCH_BYTES).max(shape.depth.div_ceil(SHOWN_REQUESTS));
        let most = (BATCHES * (parts + 1)) as u64;
        let fences = profile.special.get(&Special::Fence).copied().unwrap_or(0);
        // None at all would mean that addresses are not matched with the program's.
        if fences == 0 || fences > most {
            complaints.push(format!("{name}: {fences} fences in {BATCHES} batches"));
        }
        for function in &profile.foreign {
            complaints.push(format!("{name}: runs {function}"));
        }
    }
    complaints
}

fn record(counted: &[Line]) -> String {
    let compiler = compiler();
    let mut text = format!(
        "# Instructions of a request, written by `ci/bench instructions --record`.\n# {compiler}\n# {:<24} {:>9} {:>9}\n",
        "scenario", "besides", "copy"
    );
    for Line { name, besides, copy } in counted {
        text += &format!("{name:<26} {besides:>9.1} {copy:>9.1}\n");
    }
    text
}

/// Prints all lines, and answers what is wrong with them.
fn compare(counted: &[Line], recorded: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let compiler = compiler();
    if !recorded.contains(&compiler) {
        println!("note: recorded with another compiler than {compiler}");
    }
    println!("{:<26} {:>9} {:>9} {:>9} {:>7}", "scenario", "besides", "recorded", "copy", "");
    for Line { name, besides, copy } in counted {
        let words = recorded.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let known =
            words.filter(|words| words.first() == Some(name)).find_map(|words| words[1].parse::<f64>().ok());
        let change = known.map_or(f64::INFINITY, |known| besides / known - 1.0);
        println!(
            "{name:<26} {besides:>9.1} {:>9.1} {copy:>9.1} {:>+6.1}%",
            known.unwrap_or(0.0),
            change * 100.0
        );
        if change.abs() > TOLERANCE {
            complaints.push(format!("{name}: {besides:.1} instructions, recorded are {known:?}"));
        }
    }
    complaints
}

/// Prints what a 4 KiB request takes and may take; answers which take more.
fn over_budget(counted: &[Line]) -> impl Iterator<Item = String> {
    let common = counted.iter().filter(|line| ["read-4k", "write-4k"].contains(&line.name));
    common.filter_map(|Line { name, besides, .. }| {
        println!("budget: {name} takes {besides:.1} of {BUDGET} instructions besides the copy");
        (*besides > BUDGET).then(|| format!("{name}: over the budget of {BUDGET}"))
    })
}

fn compiler() -> String {
    let version = Command::new("rustc").arg("--version").output().expect("rustc cannot be run");
    String::from_utf8(version.stdout).unwrap().trim().to_owned()
}

/// Prints where the instructions of a scenario come from, inlined or not.
fn sources(name: &str, profiles: &BTreeMap<String, Profile>) {
    let (_, shape) = scenarios().into_iter().find(|(known, _)| *known == name).expect("no such scenario");
    let profile = &profiles[name];
    let requests = (BATCHES * shape.depth) as f64;
    for (title, costs) in [("file", &profile.files), ("function", &profile.functions)] {
        println!("\n{name}: instructions of a request by {title}");
        let mut costs: Vec<_> = costs.iter().collect();
        costs.sort_by_key(|(_, cost)| std::cmp::Reverse(**cost));
        for (place, cost) in costs {
            println!("{:>9.2}  {place}", *cost as f64 / requests);
        }
    }
}
