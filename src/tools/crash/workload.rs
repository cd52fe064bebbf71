//! Workloads: what drivers ask, one batch after the other.

use std::ops::Range;

use crate::virtio::blk;

/// SplitMix64: small, and the same everywhere.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number less than `limit`.
    pub(super) const fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// Length of a sector.
pub(super) const SECTOR_BYTES: usize = blk::SECTOR_BYTES as usize;

/// A request of a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// Store `data` at `at`, from buffers that end at `cuts` (the last one is the end of the data).
    Write { at: usize, data: Vec<u8>, cuts: Vec<usize> },
    /// WRITE_ZEROES, with unmap or without.
    Zero { range: Range<usize>, unmap: bool },
    /// DISCARD.
    Discard { range: Range<usize> },
    /// FLUSH.
    Flush,
}

impl Request {
    /// The bytes of the disk that it changes.
    pub(super) fn range(&self) -> Range<usize> {
        match self {
            Self::Write { at, data, .. } => *at..at + data.len(),
            Self::Zero { range, .. } | Self::Discard { range } => range.clone(),
            Self::Flush => 0..0,
        }
    }

    /// What it stores at an offset inside of its range, or may store.
    pub(super) fn byte(&self, at: usize) -> u8 {
        match self {
            Self::Write { at: start, data, .. } => data[at - start],
            Self::Zero { .. } | Self::Discard { .. } | Self::Flush => 0,
        }
    }

    pub(super) const fn is_flush(&self) -> bool {
        matches!(self, Self::Flush)
    }

    /// Whether the guest's buffers meet in the line at this offset, inside of 8 bytes.
    pub(super) fn splits_unit_in_line(&self, line: Range<usize>) -> bool {
        let Self::Write { at, cuts, .. } = self else { return false };
        cuts.iter().any(|cut| line.contains(&(at + cut)) && (at + cut) % 8 != 0)
    }

    /// Makes of an image what the driver may count on.
    fn apply(&self, image: &mut [u8]) {
        if matches!(self, Self::Discard { .. }) {
            return;
        }
        for at in self.range() {
            image[at] = self.byte(at);
        }
    }
}

/// Requests that one ring is offered at once.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) ring: usize,
    pub(super) requests: Vec<Request>,
}

/// What is on the disk before, and what is asked.
#[derive(Debug, Clone)]
pub(super) struct Workload {
    pub(super) before: Vec<u8>,
    /// Where a page begins that cannot be read before it is written anew.
    pub(super) bad_at: Option<usize>,
    pub(super) batches: Vec<Batch>,
}

/// Letters of which small workloads are made. Each changes a few bytes only, so that all states can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// One sector from one buffer.
    Whole,
    /// The same sector from two buffers, cut at an odd place.
    Cut,
    /// Three sectors from three buffers.
    Long,
    /// Zeroes over two sectors.
    Zero,
    /// Zeroes over three, and the space of two is given back.
    Unmap,
    /// The first three sectors are no longer needed.
    Discard,
    /// The third sector, on another ring, by another CPU.
    WholeElsewhere,
    Flush,
    /// A flush on another ring.
    FlushElsewhere,
}

impl Op {
    const fn ring(self) -> usize {
        if matches!(self, Self::WholeElsewhere | Self::FlushElsewhere) { 1 } else { 0 }
    }

    /// The request, on a disk of these bytes; `fresh` has not been stored before.
    fn request(self, image: &[u8], fresh: u8) -> Request {
        let write = |at: usize, cuts: &[usize], changes: &[Range<usize>]| {
            let mut data = image[at..at + cuts[cuts.len() - 1]].to_vec();
            changes.iter().for_each(|change| data[change.clone()].fill(fresh));
            Request::Write { at, data, cuts: cuts.to_vec() }
        };
        match self {
            Self::Whole => write(0, &[512], &[0..8, 504..512]),
            // A unit in which the buffers meet, one in the same line, one in a line that is whole.
            Self::Cut => write(0, &[100, 512], &[99..101, 64..65, 504..512]),
            Self::Long => write(0, &[512, 515, 1536], &[0..8, 514..516, 1528..1536]),
            Self::WholeElsewhere => {
                let Request::Write { data, .. } = write(0, &[1536], &[1024..1032]) else { unreachable!() };
                Request::Write { at: 1024, data: data[1024..].to_vec(), cuts: vec![512] }
            }
            Self::Zero => Request::Zero { range: 0..1024, unmap: false },
            Self::Unmap => Request::Zero { range: 0..1536, unmap: true },
            Self::Discard => Request::Discard { range: 0..1536 },
            Self::Flush | Self::FlushElsewhere => Request::Flush,
        }
    }
}

/// Every workload of these ops; bit `i` of `joins` puts op `i + 1` into the batch of the one before.
pub(super) fn small(ops: &[Op], joins: u32) -> Workload {
    let mut image = vec![0; 4 * SECTOR_BYTES];
    image[500..508].fill(0xee);
    let before = image.clone();
    let mut batches: Vec<Batch> = Vec::new();
    for (index, op) in ops.iter().enumerate() {
        let request = op.request(&image, index as u8 + 1);
        request.apply(&mut image);
        match batches.last_mut() {
            Some(batch) if batch.ring == op.ring() && joins & (1 << (index - 1)) != 0 => {
                batch.requests.push(request);
            }
            _ => batches.push(Batch { ring: op.ring(), requests: vec![request] }),
        }
    }
    Workload { before, bad_at: None, batches }
}

/// Sectors of a disk for random workloads.
pub(super) const SECTORS: usize = 24;

/// What random workloads are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WorkloadKind {
    /// Anything.
    Any,
    /// Anything, and a page is bad at first.
    MendsBadPage,
    /// No two requests of a batch touch the same sector, and every store changes every byte: nothing that is
    /// done for them could be left out unnoticed. Nothing is discarded, since that may be lost.
    NonRedundant,
}

/// A page of the disk, which may be bad.
const PAGE: Range<usize> = 4096..8192;

/// A random workload of at most so many batches.
pub(super) fn random(seed: u64, most: usize, style: WorkloadKind) -> Workload {
    let is_plain = style == WorkloadKind::NonRedundant;
    let mut random = Random::new(seed);
    let mut is_bad = style == WorkloadKind::MendsBadPage;
    let bad_at = is_bad.then_some(PAGE.start);
    let mut image: Vec<u8> = (0..SECTORS * SECTOR_BYTES).map(|_| random.below(255) as u8 + 1).collect();
    let before = image.clone();
    let mut batches = Vec::new();
    for _ in 0..most {
        let ring = random.below(2);
        let mut requests: Vec<Request> = Vec::new();
        for _ in 0..=random.below(4) {
            let mut request = any_request(&mut random, &image, is_plain);
            let touches = |range: &Range<usize>| range.start < PAGE.end && PAGE.start < range.end;
            let covers = |range: &Range<usize>| range.start <= PAGE.start && PAGE.end <= range.end;
            if is_bad && touches(&request.range()) {
                let is_discard = matches!(request, Request::Discard { .. });
                if !is_discard && !covers(&request.range()) {
                    request = covering_request(&mut random, &image);
                }
                is_bad = is_discard;
            }
            let (range, is_zero) = (request.range(), matches!(request, Request::Zero { .. }));
            let overlaps = |other: &Request| {
                let other = other.range();
                range.start < other.end && other.start < range.end
            };
            let is_vain = is_zero && image[range.clone()].contains(&0);
            let is_discard = matches!(request, Request::Discard { .. });
            if is_plain && (requests.iter().any(overlaps) || is_vain || is_discard) {
                continue;
            }
            request.apply(&mut image);
            requests.push(request);
        }
        if !requests.is_empty() {
            batches.push(Batch { ring, requests });
        }
    }
    assert!(!is_bad, "nothing has mended the page");
    Workload { before, bad_at, batches }
}

/// A random workload of batches so large that the driver sees the first half of each before the second one is done: writes
/// of a sector from one buffer, of which no two of a batch go to the same place.
pub(super) fn large_batches(seed: u64, count: usize) -> Workload {
    let mut random = Random::new(seed);
    let mut image: Vec<u8> = (0..SECTORS * SECTOR_BYTES).map(|_| random.below(255) as u8 + 1).collect();
    let before = image.clone();
    let mut batch = || {
        let (first, many) = (random.below(SECTORS), 8 + random.below(6));
        let requests = (first..first + many).map(|sector| {
            let at = sector % SECTORS * SECTOR_BYTES;
            let request = any_write(&mut random, &image, at..at + SECTOR_BYTES, vec![]);
            request.apply(&mut image);
            request
        });
        Batch { ring: 0, requests: requests.collect() }
    };
    let batches = (0..count).map(|_| batch()).collect();
    Workload { before, bad_at: None, batches }
}

fn any_request(random: &mut Random, image: &[u8], is_plain: bool) -> Request {
    let kind = random.below(10);
    if kind < 2 {
        return Request::Flush;
    }
    // Mostly small; up to 10 KiB, which is more than a slice, where not every flush is tried.
    let most = if kind == 2 {
        4
    } else if is_plain {
        2
    } else {
        [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 4, 4, 20][random.below(16)]
    };
    let len = (random.below(most) + 1) * SECTOR_BYTES;
    let at = random.below((image.len() - len) / SECTOR_BYTES + 1) * SECTOR_BYTES;
    match (kind, random.below(4)) {
        (2, 0) => return Request::Discard { range: at..at + len },
        (2, 1) => return Request::Zero { range: at..at + len, unmap: false },
        (2, _) => return Request::Zero { range: at..at + len, unmap: true },
        _ => {}
    }
    let cuts: Vec<usize> = match kind {
        3..=4 => vec![],
        5..=6 => (0..random.below(4)).map(|_| random.below(len / 8) * 8).collect(),
        _ => (0..random.below(6)).map(|_| random.below(len)).collect(),
    };
    any_write(random, image, at..at + len, cuts)
}

/// A request that mends the page.
fn covering_request(random: &mut Random, image: &[u8]) -> Request {
    let range = PAGE.start - random.below(3) * SECTOR_BYTES..PAGE.end + random.below(3) * SECTOR_BYTES;
    match random.below(3) {
        0 => Request::Zero { range, unmap: true },
        cuts => {
            let cuts = (0..cuts).map(|_| random.below(range.len())).collect();
            any_write(random, image, range, cuts)
        }
    }
}

/// Other bytes than are there, from buffers that meet at these places.
fn any_write(random: &mut Random, image: &[u8], range: Range<usize>, mut cuts: Vec<usize>) -> Request {
    cuts.extend([0, range.len()]);
    cuts.sort_unstable();
    cuts.dedup();
    cuts.remove(0);
    let data = image[range.clone()].iter().map(|old| other_byte(random, *old)).collect();
    Request::Write { at: range.start, data, cuts }
}

/// Neither zero nor what is there.
fn other_byte(random: &mut Random, old: u8) -> u8 {
    loop {
        match random.below(255) as u8 + 1 {
            byte if byte == old => {}
            byte => return byte,
        }
    }
}
