//! In the guest: two rings with many writes under way, flushes among them, and a mark in the log behind each that was
//! answered. What a mark promises goes to a disk of its own.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use virtio_driver::VirtioBlkFeatureFlags;

use super::super::common::Random;
use super::super::common::driver::{Driver, Options, Queue, Request};
use super::super::soak::in_guest::{RECORD_BYTES, record};
use super::{BLOCKS, Way};

/// Writes under way in each ring.
const DEPTHS: [usize; 2] = [12, 128];

/// Completed writes between two flushes, on the average.
const WRITES_A_FLUSH: u64 = 6;

/// Tags of flushes begin here.
const FLUSHES: u64 = 1 << 32;

/// `struct dm_ioctl` of `linux/dm-ioctl.h` and behind it `struct dm_target_msg`, both of a length that is known.
const HEAD_BYTES: usize = 312;
const DM_TARGET_MSG: libc::c_ulong = 0xc138_fd0e;

/// A write that was completed: its block and its number.
type Completed = (u64, u64);

struct FrontEnd {
    driver: Driver,
    random: Random,
    way: Way,
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
        driver,
        random: Random::new(seed),
        way,
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
    println!("{} marks", front_end.marks.count);
}

impl FrontEnd {
    fn turn(&mut self, seed: u64) {
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

    fn flush(&mut self, ring: usize) {
        let completed = std::mem::take(&mut self.completed);
        if self.way != Way::Flushes {
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
