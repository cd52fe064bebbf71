//! In the guest: two rings with many writes under way, flushes among them, and a mark in the log behind each that was
//! answered; or, while the disk writes through, behind each write. What a mark promises goes to a disk of its own.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use virtio_driver::VirtioBlkFeatureFlags;

use super::super::common::Random;
use super::super::common::driver::{Driver, Options, Queue, Request};
use super::super::common::frontend::message::SET_CONFIG;
use super::super::common::frontend::wire::{VERSION, Wire};
use super::super::soak::in_guest::{RECORD_BYTES, record};
use super::{BLOCKS, Way};

/// Writes under way in each ring.
const DEPTHS: [usize; 2] = [12, 128];

/// Completed writes between two flushes, on the average.
const WRITES_A_FLUSH: u64 = 6;

/// Writes between two changes of the cache mode, on the average; changes that there must have been.
const WRITES_A_CHANGE: u64 = 200;
const CHANGES: u64 = 3;

/// Tags of flushes begin here.
const FLUSHES: u64 = 1 << 32;

/// `struct dm_ioctl` of `linux/dm-ioctl.h` and behind it `struct dm_target_msg`, both of a length that is known.
const HEAD_BYTES: usize = 312;
const DM_TARGET_MSG: libc::c_ulong = 0xc138_fd0e;

/// A write that was completed: its block and its number.
type Completed = (u64, u64);

struct FrontEnd {
    driver: Driver,
    cache: CacheSwitch,
    random: Random,
    way: Way,
    /// What is completed is durable.
    writes_through: bool,
    changes: u64,
    /// The number of the write before which the mode is changed.
    next_change: u64,
    /// Of each block, whether a write is under way.
    is_busy: Vec<bool>,
    /// By the slot of the data that a write has: the ring, the block, and the number.
    slots: Vec<Option<(usize, u64, u64)>>,
    next_number: u64,
    /// Since the last flush was sent.
    completed: Vec<Completed>,
    /// Flushes under way, in the order in which they were sent, with what each covers.
    flushes: VecDeque<(u64, Vec<Completed>)>,
    next_flush: u64,
    marks: Marks,
}

/// Writes so many records to the disk behind `socket`, with marks in the log of the device-mapper's device `log`.
pub fn run(socket: &Path, seed: u64, writes: u64, way: Way, promises: &Path) {
    let mut block_features = VirtioBlkFeatureFlags::all();
    if way == Way::WritesThrough {
        block_features.remove(VirtioBlkFeatureFlags::FLUSH | VirtioBlkFeatureFlags::CONFIG_WCE);
    }
    let driver =
        Driver::connect(socket, Options { queues: 2, queue_size: 512, block_features, ..Options::default() });
    let mut front_end = FrontEnd {
        cache: CacheSwitch::of(socket),
        driver,
        random: Random::new(seed),
        way,
        writes_through: way == Way::WritesThrough,
        changes: 0,
        next_change: WRITES_A_CHANGE,
        is_busy: vec![false; usize::try_from(BLOCKS).unwrap()],
        slots: vec![None; DEPTHS.iter().sum()],
        next_number: 1,
        completed: Vec::new(),
        flushes: VecDeque::new(),
        next_flush: FLUSHES,
        marks: Marks::new(promises),
    };
    while front_end.next_number <= writes {
        front_end.turn(seed);
    }
    front_end.marks.promises.flush().unwrap();
    println!("{} marks, {} changes of the cache mode", front_end.marks.count, front_end.changes);
    assert!(way != Way::Changes || front_end.changes >= CHANGES);
}

impl FrontEnd {
    fn turn(&mut self, seed: u64) {
        if self.way == Way::Changes && self.next_number >= self.next_change {
            self.change();
        }
        for ring in 0..DEPTHS.len() {
            self.fill(ring, seed);
            self.queue(ring).kick();
        }
        for ring in 0..DEPTHS.len() {
            for (tag, outcome) in self.queue(ring).completions() {
                assert_eq!(outcome, Ok(()), "request {tag:#x}");
                match tag {
                    FLUSHES.. => self.flushed(tag),
                    slot => self.written(usize::try_from(slot).unwrap()),
                }
                if self.completed.len() as u64 > self.random.below(2 * WRITES_A_FLUSH) {
                    self.flush(ring);
                }
            }
            self.queue(ring).kick();
        }
    }

    fn queue(&mut self, ring: usize) -> &mut Queue {
        &mut self.driver.queues()[ring]
    }

    /// Sends writes to blocks to which none is under way, up to the ring's depth.
    fn fill(&mut self, ring: usize, seed: u64) {
        let first = if ring == 0 { 0 } else { DEPTHS[0] };
        for slot in first..first + DEPTHS[ring] {
            let block = self.random.below(BLOCKS);
            let busy = &mut self.is_busy[usize::try_from(block).unwrap()];
            if self.slots[slot].is_some() || *busy {
                continue;
            }
            *busy = true;
            let number = self.next_number;
            self.next_number += 1;
            let place = slot * RECORD_BYTES;
            // The block is a part of what is written.
            self.driver.put(place, &record(seed, number << 16 | block));
            let from = vec![place..place + RECORD_BYTES];
            let request = Request::Write { offset: block * RECORD_BYTES as u64, from };
            assert!(self.queue(ring).submit(&request, slot as u64), "the ring has room");
            self.slots[slot] = Some((ring, block, number));
        }
    }

    fn written(&mut self, slot: usize) {
        let (_, block, number) = self.slots[slot].take().unwrap();
        self.is_busy[usize::try_from(block).unwrap()] = false;
        self.completed.push((block, number));
    }

    /// Changes between write-back and write-through under load. Either way, what was completed before is durable.
    fn change(&mut self) {
        self.writes_through = !self.writes_through;
        self.cache.set_writeback(!self.writes_through);
        // It is answered behind that.
        assert_eq!(self.driver.config().writeback, u8::from(!self.writes_through));
        let completed = std::mem::take(&mut self.completed);
        self.marks.set(&completed);
        self.changes += 1;
        self.next_change = self.next_number + self.random.below(2 * WRITES_A_CHANGE);
    }

    fn flush(&mut self, ring: usize) {
        let completed = std::mem::take(&mut self.completed);
        if self.writes_through {
            return self.marks.set(&completed);
        }
        let tag = self.next_flush;
        if self.queue(ring).submit(&Request::Flush, tag) {
            self.next_flush += 1;
            self.flushes.push_back((tag, completed));
        } else {
            self.completed = completed;
        }
    }

    /// A flush covers what those before it were to cover, too.
    fn flushed(&mut self, tag: u64) {
        let mut covered = Vec::new();
        while self.flushes.front().is_some_and(|(sent, _)| *sent <= tag) {
            covered.extend(self.flushes.pop_front().unwrap().1);
        }
        self.marks.set(&covered);
    }
}

/// The connection of a driver, for what its crate cannot say.
struct CacheSwitch(Wire);

impl CacheSwitch {
    /// The one that this process has to the disk behind `socket`.
    fn of(socket: &Path) -> Self {
        let files = std::fs::read_dir("/proc/self/fd").unwrap();
        let mut numbers = files.map(|file| file.unwrap().file_name().to_str().unwrap().parse().unwrap());
        let found = numbers.find_map(|number| connection(number, socket));
        Self(Wire::new(found.expect("the driver is connected")))
    }

    /// Nobody answers: whoever asks the device for something then is answered behind it.
    fn set_writeback(&self, writeback: bool) {
        // `writeback` of the configuration space (VIRTIO 1.2 §5.2.4): its offset and length, no flags, and it.
        let payload =
            [&32_u32.to_le_bytes()[..], &1_u32.to_le_bytes(), &[0; 4], &[u8::from(writeback)]].concat();
        assert!(self.0.send_bytes(&Wire::encode(SET_CONFIG, VERSION, &payload), &[]));
    }
}

/// A copy of this descriptor, if it is a connection to `socket`.
#[allow(unsafe_code)]
fn connection(number: RawFd, socket: &Path) -> Option<UnixStream> {
    // SAFETY: nobody else opens or closes descriptors meanwhile; that of the folder, which may be closed by now, is not used.
    let file = unsafe { BorrowedFd::borrow_raw(number) };
    let copy = UnixStream::from(file.try_clone_to_owned().ok()?);
    let is_it = copy.peer_addr().is_ok_and(|peer| peer.as_pathname() == Some(socket));
    is_it.then_some(copy)
}

/// Marks in the log, and what each promises.
struct Marks {
    control: File,
    promises: BufWriter<File>,
    count: u64,
}

impl Marks {
    fn new(promises: &Path) -> Self {
        let control = File::options().read(true).write(true).open("/dev/mapper/control").unwrap();
        let promises = BufWriter::new(File::options().write(true).open(promises).unwrap());
        Self { control, promises, count: 0 }
    }

    fn set(&mut self, covered: &[Completed]) {
        self.count += 1;
        self.message(&format!("mark {}", self.count));
        write!(self.promises, "{}", self.count).unwrap();
        for (block, number) in covered {
            write!(self.promises, " {block}:{number}").unwrap();
        }
        writeln!(self.promises).unwrap();
    }

    /// `dmsetup message log 0 TEXT`, without a process of its own.
    #[allow(unsafe_code)]
    fn message(&self, text: &str) {
        const LEN: usize = HEAD_BYTES + 64;
        let mut bytes = [0_u8; LEN];
        bytes[..4].copy_from_slice(&4_u32.to_ne_bytes());
        bytes[12..16].copy_from_slice(&(LEN as u32).to_ne_bytes());
        bytes[16..20].copy_from_slice(&(HEAD_BYTES as u32).to_ne_bytes());
        bytes[48..51].copy_from_slice(b"log");
        let place = HEAD_BYTES + size_of::<u64>();
        bytes[place..place + text.len()].copy_from_slice(text.as_bytes());
        // SAFETY: the kernel reads and writes as many bytes as the head says, which are those of `bytes`.
        let result = unsafe { libc::ioctl(self.control.as_raw_fd(), DM_TARGET_MSG as _, bytes.as_mut_ptr()) };
        assert_eq!(result, 0, "{text}: {}", std::io::Error::last_os_error());
    }
}
