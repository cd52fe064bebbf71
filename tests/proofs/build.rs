//! Copies the files of `src` that are proven, each in a module of its own with the atomics and locks replaced; and again with
//! each mistake of `mistakes.rs` in it.

mod mistakes;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use mistakes::{FLUSHES, MAILBOXES, Mistake, RINGS};

/// A file within `src`, and what is replaced in it: every occurrence, of which there must be one.
type Replaced = (&'static str, &'static [(&'static str, &'static str)]);

/// Ring memory is reached through `crate::guest`: loom's atomics, or memory. And a ring can be copied, and its hidden state asked for.
const IN_RINGS: &[Replaced] = &[
    (
        "virtio/queue/split.rs",
        &[
            ("std::sync::atomic::", "crate::guest::atomic::"),
            ("at.write_volatile(", "crate::guest::write(at, "),
            ("at.wrapping_add(1).write_volatile(", "crate::guest::write(at.wrapping_add(1), "),
            ("#[derive(Debug)]\npub struct SplitQueue", "#[derive(Debug, Clone)]\npub struct SplitQueue"),
            ("impl SplitQueue {", "impl SplitQueue {\n    pub fn hidden(&self) -> u16 { self.seen_avail }\n"),
        ],
    ),
    (
        "virtio/queue/packed/mod.rs",
        &[
            ("std::sync::atomic::", "crate::guest::atomic::"),
            ("#[derive(Debug)]\npub struct PackedQueue", "#[derive(Debug, Clone)]\npub struct PackedQueue"),
            ("impl PackedQueue {", "impl PackedQueue {\n    pub fn hidden(&self) -> u16 { self.stride }\n"),
        ],
    ),
    (
        "virtio/queue/packed/slots.rs",
        &[
            ("std::sync::atomic::", "crate::guest::atomic::"),
            ("#[derive(Debug)]\npub(super) struct Slots", "#[derive(Debug, Clone)]\npub(super) struct Slots"),
        ],
    ),
    (
        "virtio/queue/chain.rs",
        &[(
            "impl Completion {",
            "impl Completion {\n    pub const fn of(head: u16, written_bytes: u32) -> Self { Self { head, written_bytes } }\n",
        )],
    ),
    (
        "virtio/queue/descriptor.rs",
        &[
            ("half.read_volatile()", "crate::guest::read(half)"),
            ("half.wrapping_add(1).read_volatile()", "crate::guest::read(half.wrapping_add(1))"),
            (
                "at.cast::<Unaligned<u64>>().read_volatile()",
                "crate::guest::read(at.cast::<Unaligned<u64>>())",
            ),
            ("words.read_volatile()", "crate::guest::read(words)"),
            ("words.wrapping_add(1).read_volatile()", "crate::guest::read(words.wrapping_add(1))"),
        ],
    ),
];

/// Locks, atomics and threads are loom's.
const IN_FLUSHES: &[Replaced] = &[
    (
        "disk/durability/syncs.rs",
        &[
            ("std::sync::atomic::", "crate::sync::atomic::"),
            ("use std::sync::{PoisonError", "use crate::sync::{PoisonError"),
            ("use crate::copy;", "use crate::sync::copy;"),
        ],
    ),
    (
        "disk/durability/flush.rs",
        &[
            ("std::sync::atomic::", "crate::sync::atomic::"),
            ("use std::sync::{Arc", "use crate::sync::{Arc"),
            ("use std::thread::", "use crate::sync::thread::"),
            ("use crate::limits::thread;", "use crate::sync::thread;"),
        ],
    ),
];

/// So are descriptors and the clock, of a worker's thread; it polls once where it polls often.
const IN_MAILBOXES: &[Replaced] = &[
    (
        "worker/mailbox.rs",
        &[
            ("std::sync::atomic::", "crate::sync::atomic::"),
            ("use std::sync::mpsc::", "use crate::sync::mpsc::"),
            ("use vmm_sys_util::eventfd::", "use crate::sync::kernel::"),
            ("use crate::virtio::blk::", "use crate::stubs::blk::"),
        ],
    ),
    (
        "worker/run.rs",
        &[
            ("use std::sync::mpsc::", "use crate::sync::mpsc::"),
            (
                "use std::time::{Duration, Instant};",
                "use crate::sync::kernel::Instant;\nuse std::time::Duration;",
            ),
            ("use vmm_sys_util::epoll::", "use crate::sync::kernel::"),
            ("std::hint::spin_loop()", "loom::thread::yield_now()"),
            ("const UNTIMED_POLLS: u32 = 32;", "const UNTIMED_POLLS: u32 = 1;"),
            ("const POLLS: u32 = 16;", "const POLLS: u32 = 1;"),
        ],
    ),
    ("worker/throttled.rs", &[("use std::time::Instant;", "use crate::sync::kernel::Instant;")]),
];

fn main() {
    let root =
        PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("../..").canonicalize().unwrap();
    let out = PathBuf::from(std::env::var("OUT_DIR").unwrap());
    for watched in ["src", "tests/proofs"] {
        println!("cargo::rerun-if-changed={}", root.join(watched).display());
    }
    let (source, proofs) = (root.join("src"), root.join("tests/proofs"));
    let module = |path: PathBuf, name: &str| format!("#[path = {path:?}]\npub mod {name};\n");
    let mut all = String::new();
    for (name, file) in [("copy", "copy/mod.rs"), ("failpoint", "failpoint.rs"), ("limits", "limits/mod.rs")]
    {
        all += &module(source.join(file), name);
    }
    // Nothing is narrowed in a model.
    all += "pub mod sandbox {\npub use kind::ThreadKind;\n";
    all += "pub const fn narrow(_: ThreadKind) -> std::io::Result<()> { Ok(()) }\n";
    all += &module(source.join("sandbox/kind.rs"), "kind");
    all += "}\n";
    all += "pub mod virtio {\n";
    all += &module(source.join("virtio/memory/mod.rs"), "memory");
    for Mistake { name, edits } in std::iter::once(&mistakes::NONE).chain(RINGS) {
        let copied = out.join(name);
        let files = copy(&source, &copied, "virtio/queue", &format!("crate::virtio::{name}::queue"));
        change(&files, IN_RINGS, edits, name);
        let _ = writeln!(all, "pub mod {name} {{");
        all += &module(copied.join("virtio/queue/mod.rs"), "queue");
        for model in ["driver", "wakeups", "histories"] {
            all += &module(proofs.join(format!("rings/{model}.rs")), model);
        }
        all += "}\n";
    }
    all += "}\npub mod disk {\npub use crate::stubs::*;\n";
    for Mistake { name, edits } in std::iter::once(&mistakes::NONE).chain(FLUSHES) {
        let copied = out.join(name);
        let files = copy(&source, &copied, "disk/durability", "crate::disk::durability");
        change(&files, IN_FLUSHES, edits, name);
        let _ = writeln!(all, "pub mod {name} {{");
        for file in ["flush", "syncs"] {
            all += &module(copied.join(format!("disk/durability/{file}.rs")), file);
        }
        all += &module(proofs.join("flushes/model.rs"), "model");
        all += "}\n";
    }
    all += "}\npub mod worker {\n";
    for Mistake { name, edits } in std::iter::once(&mistakes::NONE).chain(MAILBOXES) {
        let copied = out.join(name);
        let files = copy(&source, &copied, "worker", "crate::virtio::queue");
        change(&files, IN_MAILBOXES, edits, name);
        let _ = writeln!(all, "pub mod {name} {{");
        for file in ["mailbox", "poll", "run", "state", "throttled"] {
            all += &module(copied.join(format!("worker/{file}.rs")), file);
        }
        for file in ["any_ring", "quick", "relief", "report", "ring", "sharing", "timer", "model"] {
            all += &module(proofs.join(format!("worker/{file}.rs")), file);
        }
        all += "}\n";
    }
    all += "}\n";
    fs::write(out.join("all.rs"), all).unwrap();
}

/// Copies a folder; paths to its module lead to the copy.
fn copy(source: &Path, target: &Path, folder: &str, module: &str) -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    fs::create_dir_all(target.join(folder)).unwrap();
    for entry in fs::read_dir(source.join(folder)).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{folder}/{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            files.extend(copy(source, target, &name, module));
        } else {
            let text = fs::read_to_string(entry.path()).unwrap();
            // Its own tests stay behind.
            let text = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let path = target.join(&name);
            fs::write(&path, text.replace("crate::virtio::queue", module)).unwrap();
            files.push((name, path));
        }
    }
    files
}

/// Plants a mistake, and replaces what is replaced everywhere.
fn change(files: &[(String, PathBuf)], replaced: &[Replaced], edits: &[(&str, &str, &str)], mistake: &str) {
    let edits = edits.iter().map(|(file, from, to)| (*file, *from, *to));
    let replaced = replaced.iter().flat_map(|(file, list)| list.iter().map(|(from, to)| (*file, *from, *to)));
    for (file, from, to) in edits.chain(replaced) {
        let (_, path) =
            files.iter().find(|(name, _)| name == file).unwrap_or_else(|| panic!("{file} is gone"));
        let text = fs::read_to_string(path).unwrap();
        let count = text.matches(from).count();
        assert_eq!(count, 1, "{mistake}: {file} has this {count} times: {from}");
        fs::write(path, text.replace(from, to)).unwrap();
    }
}
