//! On the host: walks through the log of dm-log-writes and judges every state that the device may have been in at a mark.
//!
//! After a loss of power the device has all that was written before the last flush in the log, and any part of what was
//! written since: so what a mark promises must be there by flushes alone, and nothing that comes later may be older than
//! what has been promised. Then every such part is right, and none needs to be made.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::soak::in_guest::{RECORD_BYTES, claim, record};

/// `WRITE_LOG_MAGIC` of Linux' `drivers/md/dm-log-writes.c`, and its flags.
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

const SECTOR_BYTES: u64 = 512;

/// Sectors of a record.
const RECORD_SECTORS: u64 = RECORD_BYTES as u64 / SECTOR_BYTES;

/// What was seen.
#[derive(Debug, Default)]
pub struct Judgement {
    pub marks: u64,
    pub flushes: u64,
    pub records: u64,
    /// Records whose page changed while it was written.
    pub mixtures: u64,
    /// What is wrong, in the order of the log.
    pub violations: Vec<String>,
}

/// Where records come from.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    pub seed: u64,
    /// The highest number of a record.
    pub numbers: u64,
    /// Whether they pass through the page cache, which may change a page while that is written.
    pub is_cached: bool,
}

/// Number of the record by block.
type Numbers = BTreeMap<u64, u64>;

struct Judge<'a> {
    source: Source,
    /// The block of the disk that is at this sector of the device.
    blocks: &'a BTreeMap<u64, u64>,
    /// What each mark promises.
    promises: Vec<Vec<(u64, u64)>>,
    /// What is on the device whatever happens, what may be, and what must be.
    flushed: Numbers,
    unflushed: Vec<(u64, u64)>,
    promised: Numbers,
    seen: Judgement,
}

/// Judges the log in `log`. `blocks` says where on the device each block of the disk is, by sector.
pub fn judge(log: &Path, promises: &Path, blocks: &BTreeMap<u64, u64>, source: Source) -> Judgement {
    let mut judge = Judge {
        source,
        blocks,
        promises: read_promises(promises),
        flushed: Numbers::new(),
        unflushed: Vec::new(),
        promised: Numbers::new(),
        seen: Judgement::default(),
    };
    let log = File::open(log).unwrap();
    let mut head = [0; 32];
    log.read_exact_at(&mut head, 0).unwrap();
    let [magic, version, entries] = numbers(&head);
    assert_eq!((magic, version), (MAGIC, 1), "the log's own head");
    let sector_bytes = u64::from(u32::from_le_bytes(head[24..28].try_into().unwrap()));
    let mut at = sector_bytes;
    for _ in 0..entries {
        let mut entry = vec![0; usize::try_from(sector_bytes).unwrap()];
        log.read_exact_at(&mut entry, at).unwrap();
        at += sector_bytes;
        let [sector, sectors, flags] = numbers(&entry);
        let data_bytes = match flags & (DISCARD | MARK) {
            0 => sectors * sector_bytes,
            _ => 0,
        };
        if flags & MARK != 0 {
            let [length] = numbers(&entry[24..]);
            let name = &entry[32..32 + usize::try_from(length).unwrap()];
            judge.mark(std::str::from_utf8(name).unwrap().trim_end_matches('\0'));
        } else {
            if flags & FLUSH != 0 {
                judge.flush();
            }
            judge.write(
                &log,
                at,
                sector * sector_bytes / SECTOR_BYTES..(sector + sectors) * sector_bytes / SECTOR_BYTES,
                flags,
            );
        }
        at += data_bytes;
    }
    assert_eq!(judge.seen.marks, judge.promises.len() as u64, "marks that are in the log");
    judge.seen
}

fn numbers<const N: usize>(bytes: &[u8]) -> [u64; N] {
    std::array::from_fn(|index| u64::from_le_bytes(bytes[index * 8..][..8].try_into().unwrap()))
}

fn read_promises(path: &Path) -> Vec<Vec<(u64, u64)>> {
    let mut text = Vec::new();
    File::open(path).unwrap().read_to_end(&mut text).unwrap();
    // The rest of the disk is zeroes.
    let text = String::from_utf8_lossy(text.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    let pair = |word: &str| {
        let (block, number) = word.split_once(':').unwrap();
        (block.parse().unwrap(), number.parse().unwrap())
    };
    text.lines().map(|line| line.split(' ').skip(1).map(pair).collect()).collect()
}

impl Judge<'_> {
    /// All that was written before is on the device for good.
    fn flush(&mut self) {
        self.seen.flushes += 1;
        self.flushed.extend(self.unflushed.drain(..));
    }

    fn mark(&mut self, name: &str) {
        // Marks of others are not judged.
        let Ok(number) = name.parse::<usize>() else { return };
        self.seen.marks += 1;
        for &(block, wanted) in &self.promises[number - 1] {
            let promised = self.promised.entry(block).or_default();
            *promised = wanted.max(*promised);
            let found = self.flushed.get(&block).copied().unwrap_or_default();
            if found < wanted {
                let why = format!("mark {number}: block {block} may still have {found} in place of {wanted}");
                self.seen.violations.push(why);
            }
        }
    }

    fn write(&mut self, log: &File, data: u64, sectors: std::ops::Range<u64>, flags: u64) {
        for (&sector, &block) in
            self.blocks.range(sectors.start.saturating_sub(RECORD_SECTORS - 1)..sectors.end)
        {
            let is_whole = sector >= sectors.start && sector + RECORD_SECTORS <= sectors.end;
            assert!(is_whole, "block {block} is written in parts: sectors {sectors:?}");
            let mut found = vec![0; RECORD_BYTES];
            if flags & DISCARD != 0 {
                // What that leaves is anything: no record at any rate.
                self.record(block, &found, false);
                continue;
            }
            log.read_exact_at(&mut found, data + (sector - sectors.start) * SECTOR_BYTES).unwrap();
            self.record(block, &found, flags & FUA != 0);
        }
    }

    /// `found` is written to a block.
    fn record(&mut self, block: u64, found: &[u8], is_flushed: bool) {
        let number = match self.source.whole(block, found) {
            Some(number) => number,
            None => match self.source.parts(block, found) {
                Ok(parts) if self.source.is_cached => {
                    self.seen.mixtures += 1;
                    parts.into_iter().min().unwrap_or_default()
                }
                parts => {
                    self.seen.violations.push(format!("block {block} is torn, into parts of {parts:?}"));
                    return;
                }
            },
        };
        self.seen.records += 1;
        let promised = self.promised.get(&block).copied().unwrap_or_default();
        if number < promised {
            let why = format!("block {block}: {number} is written after {promised} has been promised");
            self.seen.violations.push(why);
        }
        match is_flushed {
            true => drop(self.flushed.insert(block, number)),
            false => self.unflushed.push((block, number)),
        }
    }
}

impl Source {
    fn record(&self, block: u64, number: u64) -> Vec<u8> {
        match number {
            0 => vec![0; RECORD_BYTES],
            _ => record(self.seed, number << 16 | block),
        }
    }

    /// The number of the record that `found` is; 0 before the first.
    fn whole(&self, block: u64, found: &[u8]) -> Option<u64> {
        let number = claim(found).map_or(0, |(_, index)| index >> 16);
        (found == self.record(block, number)).then_some(number)
    }

    /// Of a page that was copied while a later record replaced an earlier one: the numbers of those of which there are
    /// 8 bytes. Older ones than the oldest cannot come after it. It fails if there are bytes of no record.
    fn parts(&self, block: u64, found: &[u8]) -> Result<Vec<u64>, Vec<u64>> {
        // All begin alike.
        let has_part =
            |record: &[u8]| record.chunks(8).zip(found.chunks(8)).skip(2).any(|(one, other)| one == other);
        let mut rest: Vec<usize> = (0..found.len()).collect();
        let mut parts = Vec::new();
        for number in 0..=self.numbers {
            let record = self.record(block, number);
            if has_part(&record) {
                parts.push(number);
                rest.retain(|&at| record[at] != found[at]);
            }
        }
        if rest.is_empty() { Ok(parts) } else { Err(parts) }
    }
}

/// That a mixture is told apart from what no order of writes can leave.
pub fn check_mixtures() -> String {
    let source = Source { seed: 7, numbers: 50, is_cached: true };
    let mixed = |earlier: u64, later: u64, at: usize| {
        let mut page = source.record(3, earlier);
        page[..at].copy_from_slice(&source.record(3, later)[..at]);
        page
    };
    assert_eq!(source.whole(3, &source.record(3, 40)), Some(40));
    assert_eq!(source.whole(3, &source.record(2, 40)), None, "of another block");
    assert_eq!(source.parts(3, &source.record(2, 40)), Err(vec![]), "of another block");
    for at in [24, 100, 512, 4088] {
        assert_eq!(source.whole(3, &mixed(20, 40, at)), None);
        assert_eq!(source.parts(3, &mixed(20, 40, at)), Ok(vec![20, 40]), "at {at}");
        assert_eq!(source.parts(3, &mixed(0, 40, at)), Ok(vec![0, 40]), "at {at}, before the first");
    }
    let mut foreign = mixed(20, 40, 512);
    foreign[1000] ^= 1;
    assert_eq!(source.parts(3, &foreign), Err(vec![20, 40]), "a byte of no record");
    "4 places".to_owned()
}
