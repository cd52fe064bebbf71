//! Blocks that say where they belong and when they were written.
//!
//! Each sector holds a magic number, its own offset, and a stamp (which run of this tool, and how often that had
//! written there); the rest follows from those. So a sector that is lost, old, torn or from elsewhere is noticed, and
//! a later run that only reads can still check all but its age.

use std::fmt;

use crate::virtio::blk::SECTOR_BYTES;

const MAGIC: u64 = u64::from_le_bytes(*b"vupbench");
const WORD_BYTES: u64 = 8;

/// When a sector was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Which run of the tool.
    pub(super) run: u32,
    /// How many writes to the block that run had done, this one included.
    pub(super) generation: u32,
}

impl Stamp {
    fn to_word(self) -> u64 {
        u64::from(self.run) << 32 | u64::from(self.generation)
    }

    const fn from_word(word: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
        Self { run: u32::from_le_bytes([e, f, g, h]), generation: u32::from_le_bytes([a, b, c, d]) }
    }
}

/// The words of a sector.
fn word(offset: u64, stamp: u64, index: u64) -> u64 {
    match index {
        0 => MAGIC,
        1 => offset,
        2 => stamp,
        _ => mix(mix(offset ^ stamp.rotate_left(17)).wrapping_add(index)),
    }
}

/// The finaliser of SplitMix64.
pub(super) const fn mix(value: u64) -> u64 {
    let mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Makes `block` what is to be written at `offset`, in bytes.
pub(super) fn fill(block: &mut [u8], offset: u64, stamp: Stamp) {
    let places = (offset..).step_by(SECTOR_SIZE);
    for (sector, place) in block.chunks_exact_mut(SECTOR_SIZE).zip(places) {
        for (index, bytes) in (0..).zip(sector.as_chunks_mut().0) {
            *bytes = word(place, stamp.to_word(), index).to_le_bytes();
        }
    }
}

/// Checks `block`, which was read at `offset`; without a stamp any age will do.
pub(super) fn check(block: &[u8], offset: u64, expected: Option<Stamp>) -> Result<(), Mismatch> {
    let places = (offset..).step_by(SECTOR_SIZE);
    block
        .chunks_exact(SECTOR_SIZE)
        .zip(places)
        .try_for_each(|(sector, place)| check_sector(sector, place, expected))
}

const SECTOR_SIZE: usize = 512;
const _: () = assert!(SECTOR_SIZE as u64 == SECTOR_BYTES);

fn check_sector(sector: &[u8], offset: u64, expected: Option<Stamp>) -> Result<(), Mismatch> {
    let mut words = sector.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
    let (magic, place, stamp) = (words.next(), words.next(), words.next());
    let mismatch = |offset, kind| Err(Mismatch { offset, kind });
    let (Some(MAGIC), Some(place), Some(stamp)) = (magic, place, stamp) else {
        return mismatch(offset, Kind::Foreign { expected });
    };
    if place != offset {
        return mismatch(offset, Kind::Elsewhere { place });
    }
    if let Some(expected) = expected.filter(|expected| expected.to_word() != stamp) {
        let found = Stamp::from_word(stamp);
        return mismatch(offset, Kind::Old { expected, found });
    }
    for (index, found) in (3..).zip(words) {
        if found != word(offset, stamp, index) {
            return mismatch(offset + index * WORD_BYTES, Kind::Damaged);
        }
    }
    Ok(())
}

/// The first place that does not hold what was written there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    offset: u64,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Foreign { expected: Option<Stamp> },
    Elsewhere { place: u64 },
    Old { expected: Stamp, found: Stamp },
    Damaged,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at offset {} ", self.offset)?;
        match &self.kind {
            Kind::Foreign { expected: Some(stamp) } => {
                write!(f, "is nothing that this tool has written, instead of write {}", stamp.generation)
            }
            Kind::Foreign { expected: None } => {
                f.write_str("is nothing that this tool has written; fill the same part of the disk with --rw write --verify first")
            }
            Kind::Elsewhere { place } => write!(f, "are bytes that were written to offset {place}"),
            Kind::Old { expected, found } if found.run == expected.run => {
                write!(f, "is write {} of this run, instead of write {}", found.generation, expected.generation)
            }
            Kind::Old { expected, .. } => {
                write!(f, "are bytes of another run, instead of write {} of this one", expected.generation)
            }
            Kind::Damaged => f.write_str("begin bytes that differ from what the head of their sector says"),
        }
    }
}

/// What a queue knows of its blocks.
#[derive(Debug, Clone)]
pub(super) struct Blocks {
    run: u32,
    /// Writes of each block; 0 is none yet.
    generations: Vec<u32>,
    /// Under way, and so of no certain content.
    busy: Vec<bool>,
}

impl Blocks {
    pub(super) fn new(run: u32, count: usize) -> Self {
        Self { run, generations: vec![0; count], busy: vec![false; count] }
    }

    pub(super) fn is_busy(&self, block: usize) -> bool {
        self.busy.get(block).is_some_and(|busy| *busy)
    }

    pub(super) fn set_busy(&mut self, block: usize, busy: bool) {
        if let Some(place) = self.busy.get_mut(block) {
            *place = busy;
        }
    }

    /// What the block should hold, if this run has written it.
    pub(super) fn stamp(&self, block: usize) -> Option<Stamp> {
        let generation = self.generations.get(block).copied().filter(|count| *count > 0)?;
        Some(Stamp { run: self.run, generation })
    }

    /// The stamp of a write that begins now.
    pub(super) fn next_stamp(&mut self, block: usize) -> Stamp {
        if let Some(generation) = self.generations.get_mut(block) {
            *generation = generation.wrapping_add(1).max(1);
        }
        self.stamp(block).unwrap_or(Stamp { run: self.run, generation: 0 })
    }

    /// The first block from `start` on that this run has written.
    pub(super) fn next_written(&self, start: usize) -> Option<usize> {
        let rest = self.generations.get(start..)?;
        rest.iter().position(|count| *count > 0).map(|distance| start + distance)
    }

    /// Nothing is under way any more: the connection is gone.
    pub(super) fn settle(&mut self) {
        self.busy.fill(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { run: 7, generation: 2 };
    const PLACE: u64 = 1 << 20;

    fn block() -> Vec<u8> {
        let mut block = vec![0; 2048];
        fill(&mut block, PLACE, STAMP);
        block
    }

    fn message(block: &[u8], expected: Option<Stamp>) -> String {
        check(block, PLACE, expected).unwrap_err().to_string()
    }

    #[test]
    fn what_was_written_is_accepted() {
        assert_eq!(check(&block(), PLACE, Some(STAMP)), Ok(()));
        assert_eq!(check(&block(), PLACE, None), Ok(()));
        assert_eq!(check(&block()[512..1024], PLACE + 512, Some(STAMP)), Ok(()), "sectors stand alone");
    }

    #[test]
    fn each_changed_byte_is_noticed_near_its_place() {
        for at in 0..2048 {
            let mut block = block();
            block[at] ^= 0x40;
            let mismatch = check(&block, PLACE, Some(STAMP)).unwrap_err();
            let place = if at % 512 < 24 { at / 512 * 512 } else { at / 8 * 8 };
            assert_eq!(mismatch.offset, PLACE + place as u64, "{at}");
        }
    }

    #[test]
    fn the_message_says_how_it_differs() {
        assert!(message(&[0; 512], Some(STAMP)).contains("at offset 1048576 is nothing that this tool"));
        assert!(message(&[0; 512], None).contains("--rw write --verify"));
        let mut moved = block();
        fill(&mut moved, PLACE + 4096, STAMP);
        assert!(message(&moved, Some(STAMP)).contains("written to offset 1052672"));
        let old = Stamp { generation: 1, ..STAMP };
        let (mut torn, mut foreign) = (block(), block());
        fill(&mut torn[1024..], PLACE + 1024, old);
        assert!(
            message(&torn, Some(STAMP))
                .contains("at offset 1049600 is write 1 of this run, instead of write 2")
        );
        fill(&mut foreign, PLACE, Stamp { run: 8, ..STAMP });
        assert!(message(&foreign, Some(STAMP)).contains("another run"));
        assert_eq!(check(&foreign, PLACE, None), Ok(()), "a run that only reads knows no age");
    }

    #[test]
    fn blocks_count_their_writes() {
        let mut blocks = Blocks::new(7, 4);
        assert_eq!((blocks.stamp(2), blocks.next_written(0)), (None, None));
        blocks.next_stamp(2);
        assert_eq!(blocks.next_stamp(2), STAMP);
        assert_eq!((blocks.next_written(0), blocks.next_written(3)), (Some(2), None));
        blocks.set_busy(2, true);
        assert!(blocks.is_busy(2) && !blocks.is_busy(1));
        blocks.settle();
        assert!(!blocks.is_busy(2));
    }
}
