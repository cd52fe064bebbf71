//! A request's way as the documentation of this module tells it, and as it is.

use std::backtrace::Backtrace;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};

use super::mailbox::{Command, mailbox};
use super::relief::{Place, Post};
use super::run::Runner;
use super::{AnyRing, Polling, RingKey, RingParts};
use crate::copy::recording::{Event, Omit, Recording, Watch};
use crate::disk::{Backing, Disk, Geometry, MappedDisk};
use crate::log::LogLimit;
use crate::virtio::blk::{CacheMode, Device, Identity};
use crate::virtio::memory::{MemoryTable, RegionSpec};
use crate::virtio::queue::{RingAddresses, RingKind, RingLayout};

mod direct;
mod hold_ups;
mod interrupted;
mod relief;
mod slow;

/// Where the ring, a request and its data are in the guest's memory.
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x500;
const HEADER: u64 = 0x800;
const STATUS: u64 = 0x900;
const DATA: u64 = 0x1000;
const MEMORY_BYTES: u64 = 0x3000;

/// A function of ours, as "file function".
type Frame = String;

/// Notes the call stack at each copy of whole lines.
#[derive(Default)]
struct Stacks(Mutex<Vec<Vec<Frame>>>);

impl Watch for Stacks {
    fn seen(&self) -> u64 {
        0
    }

    fn happened(&self, _cpu: usize, _event: &Event) {}

    fn copies(&self) {
        self.0.lock().unwrap().push(frames(&Backtrace::force_capture().to_string()));
    }
}

/// The frames of this crate in a backtrace, the outermost first, from the worker's loop to what calls the routine that
/// copies. Each is two lines: a number and a symbol, then a file, line and column.
fn frames(backtrace: &str) -> Vec<Frame> {
    let mut found = Vec::new();
    let mut lines = backtrace.lines().map(str::trim).peekable();
    while let Some(symbol) = lines.next() {
        let Some(place) = lines.next_if(|line| line.starts_with("at ")) else { continue };
        if let Some((_, inside)) = place.split_once("src/")
            && symbol.contains("vhost_user_pmem")
        {
            let file = inside.split(':').next().unwrap();
            let function = symbol.rsplit("::").next().unwrap();
            found.push(format!("{file} {function}"));
        }
    }
    let routine = found.iter().rposition(|frame| frame.starts_with("copy/recording.rs")).unwrap();
    let outermost = found.iter().position(|frame| frame == "worker/run.rs run").unwrap();
    found[routine + 1..=outermost].iter().rev().cloned().collect()
}

/// What the documentation says: lines such as "1. `Runner::run` (`worker/run.rs`): …".
fn documented() -> Vec<Frame> {
    let lines = include_str!("mod.rs").lines().filter_map(|line| line.strip_prefix("//! "));
    let frame = |line: &str| {
        let (number, rest) = line.split_once(". `")?;
        number.parse::<u8>().ok()?;
        let (function, rest) = rest.split_once("` (`")?;
        let (file, _) = rest.split_once("`)")?;
        Some(format!("{file} {}", function.rsplit("::").next()?))
    };
    lines.filter_map(frame).collect()
}

fn memfd(name: &str, len: u64) -> File {
    let file = File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

/// A guest that has one request in its ring: 4 KiB are read (type 0), or written (1).
fn guest(kind: u32) -> File {
    let guest = memfd("guest", MEMORY_BYTES);
    let data_flags: u16 = if kind == 0 { 3 } else { 1 };
    for (at, (address, len, flags, next)) in
        [(HEADER, 16_u32, 1_u16, 1_u16), (DATA, 4096, data_flags, 2), (STATUS, 1, 2, 0)]
            .into_iter()
            .enumerate()
    {
        let mut descriptor = address.to_le_bytes().to_vec();
        descriptor.extend(len.to_le_bytes());
        descriptor.extend(flags.to_le_bytes());
        descriptor.extend(next.to_le_bytes());
        guest.write_all_at(&descriptor, at as u64 * 16).unwrap();
    }
    guest.write_all_at(&kind.to_le_bytes(), HEADER).unwrap();
    // The available ring: no flags, index 1, head 0.
    guest.write_all_at(&[0, 0, 1, 0, 0, 0], AVAILABLE).unwrap();
    guest.write_all_at(&[0xff], STATUS).unwrap();
    guest
}

/// A disk of 64 KiB.
fn disk() -> MappedDisk {
    let geometry = Geometry { capacity_bytes: 1 << 16, block_bytes: 512, read_only: false };
    MappedDisk::new(memfd("disk", 1 << 16), geometry).unwrap()
}

/// The ring of a guest.
fn ring<D: Disk>(disk: D, guest: &File, session: u64) -> AnyRing<D> {
    let identity = Identity { name: "way".into(), serial: [0; 20] };
    let spec = RegionSpec {
        guest_start: 0,
        len_bytes: MEMORY_BYTES,
        user_start: 0,
        file_offset: 0,
        file: guest.try_clone().unwrap(),
        charge: None,
    };
    let addresses = RingAddresses { descriptors: 0, available: AVAILABLE, used: USED };
    let layout =
        RingLayout { kind: RingKind::Split, size: 8, addresses, base: 0, event_idx: false, indirect: true };
    let cache = CacheMode::unknown(true);
    cache.set_writeback(true);
    let parts = RingParts {
        key: RingKey { session, index: 0 },
        layout,
        memory: Arc::new(MemoryTable::map(vec![spec]).unwrap()),
        device: Arc::new(Device::new(disk, identity, 1)),
        cache: Arc::new(cache),
        kick: Arc::new(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap().into()),
        call: None,
        err: None,
        connection: None,
        hold_ups: Arc::default(),
    };
    AnyRing::start(parts, Arc::new(LogLimit::default())).unwrap()
}

/// The status of its request; 0xff as long as there is none.
fn status(guest: &File) -> u8 {
    let mut status = [0];
    guest.read_exact_at(&mut status, STATUS).unwrap();
    status[0]
}

/// The call stacks at the copies of one request, which a worker does that is this thread.
fn stacks(kind: u32) -> Vec<Vec<Frame>> {
    let guest = guest(kind);
    let ring = ring(Backing::Mapped(disk()), &guest, 0);
    let (mailbox, inbox) = mailbox().unwrap();
    let post = Post::new(&Arc::default(), &Arc::default(), "way".into(), Place::Anywhere);
    let runner = Runner::new(inbox, Polling::Never, post).unwrap();
    let (attached, is_attached) = sync_channel(1);
    mailbox.post(Command::Attach(ring, attached));
    let stacks = Arc::new(Stacks::default());
    let _recorded = Recording::new(0, Omit::Nothing, stacks.clone()).on_cpu(0);
    std::thread::scope(|scope| {
        let (mailbox, guest) = (&mailbox, &guest);
        scope.spawn(move || {
            is_attached.recv().unwrap().unwrap();
            while status(guest) == 0xff {}
            assert_eq!(status(guest), 0);
            mailbox.post(Command::Stop(sync_channel(1).0));
        });
        runner.run();
    });
    let stacks = stacks.0.lock().unwrap();
    stacks.clone()
}

#[test]
fn a_requests_way_is_what_the_documentation_says() {
    let documented = documented();
    let files: std::collections::HashSet<_> = documented.iter().map(|it| it.split(' ').next()).collect();
    assert!((1..=10).contains(&documented.len()), "{documented:?}");
    assert!(files.len() <= 6, "{files:?}");
    assert_eq!(stacks(0), std::slice::from_ref(&documented), "of a read");
    // A write differs in the names of the last functions alone.
    let names = |name: &str| {
        name.replace(" load", " store").replace(" move_bytes", " by_lines").replace(" read", " write")
    };
    let expected: Vec<_> = documented.iter().map(|frame| names(frame)).collect();
    assert_eq!(stacks(1), [expected], "of a write");
}
