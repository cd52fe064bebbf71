//! Power fails at any moment: what was flushed is there, and every other sector is something that was written to it.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::*;
use crate::copy;

const SECTOR: usize = 512;
type Sector = [u8; SECTOR];

/// What is done to a file.
#[derive(Debug, Clone)]
enum Op {
    Write(u64, Vec<u8>),
    Punch(u64, u64),
    Sync,
}

/// A file as everybody reads it, and what was done to it.
#[derive(Debug)]
struct Simulated {
    bytes: Mutex<Vec<u8>>,
    ops: Mutex<Vec<Op>>,
    /// Its syncs of pages do nothing.
    forgets: bool,
}

impl Simulated {
    fn of(bytes: Vec<u8>, forgets: bool) -> Arc<Self> {
        Arc::new(Self { bytes: bytes.into(), ops: Mutex::default(), forgets })
    }

    fn take(&self, op: Op) {
        apply(&mut self.bytes.lock().unwrap(), &op);
        self.ops.lock().unwrap().push(op);
    }
}

fn apply(bytes: &mut [u8], op: &Op) {
    match op {
        Op::Write(at, written) => bytes[*at as usize..][..written.len()].copy_from_slice(written),
        Op::Punch(at, len) => bytes[*at as usize..][..*len as usize].fill(0),
        Op::Sync => {}
    }
}

impl Store for Arc<Simulated> {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        bytes.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..bytes.len()]);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.take(Op::Write(offset, bytes.to_vec()));
        Ok(())
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn has_bytes(&self, offset: u64, len: u64) -> bool {
        self.bytes.lock().unwrap()[offset as usize..][..len as usize].iter().any(|byte| *byte != 0)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn sync(&self) -> io::Result<()> {
        self.take(Op::Sync);
        Ok(())
    }
}

/// The pages of such a file.
#[derive(Debug)]
struct SimulatedDisk(Arc<Simulated>);

impl Disk for SimulatedDisk {
    fn geometry(&self) -> Geometry {
        Geometry { read_only: false, ..BASE }
    }
    fn durability(&self) -> Durability {
        Durability::Page
    }
    fn read(&self, offset: u64, into: Segments<'_>, _next: PrefetchHint) -> Result<(), DiskError> {
        let bytes = self.0.bytes.lock().unwrap();
        copy::store_slice(into, &bytes[offset as usize..][..into.total_bytes()]);
        Ok(())
    }
    fn write(&self, offset: u64, from: Segments<'_>, _next: PrefetchHint) -> Result<(), DiskError> {
        let mut bytes = vec![0; from.total_bytes()];
        copy::load_slice(from, &mut bytes);
        self.0.take(Op::Write(offset, bytes));
        Ok(())
    }
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        None
    }
    fn flush(&self) -> Result<(), DiskError> {
        if !self.0.forgets {
            self.0.take(Op::Sync);
        }
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.0.take(Op::Punch(offset, len));
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<u64, DiskError> {
        self.0.take(Op::Write(offset, vec![0; len as usize]));
        Ok(len)
    }
}

const THIS_RUN: [u8; 16] = [1; 16];
const NEXT_RUN: [u8; 16] = [2; 16];

fn lay_over(
    base: &File,
    kept: &Arc<Simulated>,
    run: [u8; 16],
) -> Overlay<MappedDisk, InFile<SimulatedDisk, Arc<Simulated>>> {
    let (index, pages, has_past) = load(Arc::clone(kept), STAMP, ALL, run).unwrap();
    let file: Arc<BackingFile> = Arc::new(tempfile::tempfile_in("/dev/shm").unwrap().into());
    let path = BackingPath::of_disk("kept", "kept".as_ref());
    let lock = FileLock::new(Arc::clone(&file), &path, LockMode::Off, false);
    let upper = InFile {
        disk: SimulatedDisk(Arc::clone(kept)),
        index,
        file,
        durability: Durability::Page,
        has_past,
        _lock: lock,
    };
    let base = Arc::new(MappedDisk::new(base.try_clone().unwrap(), BASE).unwrap());
    Overlay::over(base, upper, pages, u64::MAX, true)
}

/// What each sector of the disk may be, from this operation on.
type Allowed = (usize, Vec<Vec<Sector>>);

fn sectors(bytes: &[u8]) -> Vec<Sector> {
    bytes.as_chunks().0.to_vec()
}

/// Runs a history. Returns what was done to the file, and what may be read from then on.
fn run(base: &File, kept: &Arc<Simulated>, steps: &[Option<Step>]) -> Vec<Allowed> {
    let disk = lay_over(base, kept, THIS_RUN);
    let mut model = pattern(LEN, 3);
    let mut may_be: Vec<Vec<Sector>> = sectors(&model).into_iter().map(|sector| vec![sector]).collect();
    let done = || kept.ops.lock().unwrap().len();
    let mut allowed = vec![(0, may_be.clone())];
    for step in steps {
        let begun = done();
        match step {
            None => {
                disk.flush().unwrap();
                may_be = sectors(&model).into_iter().map(|sector| vec![sector]).collect();
                allowed.push((done(), may_be.clone()));
            }
            Some(step) => {
                take(&disk, &mut model, step.clone());
                for (may_be, sector) in may_be.iter_mut().zip(sectors(&model)) {
                    if may_be.last() != Some(&sector) {
                        may_be.push(sector);
                    }
                }
                allowed.push((begun, may_be.clone()));
            }
        }
    }
    allowed
}

/// What the media has after these operations: of each sector what was synced, or anything later, by `choose` among so many.
fn media(ops: &[Op], len: usize, mut choose: impl FnMut(usize) -> usize) -> Vec<u8> {
    let synced = ops.iter().rposition(|op| matches!(op, Op::Sync)).map_or(0, |at| at + 1);
    let mut bytes = vec![0; len];
    ops[..synced].iter().for_each(|op| apply(&mut bytes, op));
    let mut now = bytes.clone();
    let mut versions: BTreeMap<usize, Vec<Sector>> = BTreeMap::new();
    for op in &ops[synced..] {
        let (at, len) = match op {
            Op::Write(at, written) => (*at as usize, written.len()),
            Op::Punch(at, len) => (*at as usize, *len as usize),
            Op::Sync => continue,
        };
        let touched = at / SECTOR..(at + len).div_ceil(SECTOR);
        for sector in touched.clone() {
            let before: Sector = now[sector * SECTOR..][..SECTOR].try_into().unwrap();
            versions.entry(sector).or_insert_with(|| vec![before]);
        }
        apply(&mut now, op);
        for sector in touched {
            let after: Sector = now[sector * SECTOR..][..SECTOR].try_into().unwrap();
            versions.get_mut(&sector).unwrap().push(after);
        }
    }
    for (sector, versions) in versions {
        bytes[sector * SECTOR..][..SECTOR].copy_from_slice(&versions[choose(versions.len())]);
    }
    bytes
}

/// The first sector that is what it may not be, in any state that a power failure may leave.
fn judge(base: &File, steps: &[Option<Step>], forgets: bool, run_after: [u8; 16]) -> Result<usize, String> {
    let len = InFile::file_bytes(ALL).unwrap() as usize;
    let kept = Simulated::of(vec![0; len], forgets);
    let allowed = run(base, &kept, steps);
    let ops = kept.ops.lock().unwrap().clone();
    let (mut states, mut seed) = (0, 0x9e37_79b9_7f4a_7c15_u64);
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % below
    };
    // The file is one once its making is over.
    let begin = ops.iter().position(|op| matches!(op, Op::Sync)).unwrap() + 1;
    for end in begin..=ops.len() {
        let (_, may_be) = allowed.iter().rfind(|(from, _)| *from <= end).unwrap();
        for way in 0..6 {
            let choose = |versions: usize| match way {
                0 => 0,
                1 => versions - 1,
                _ => random(versions),
            };
            let left = Simulated::of(media(&ops[..end], len, choose), false);
            let disk = lay_over(base, &left, run_after);
            states += 1;
            for (number, sector) in sectors(&read(&disk, 0, LEN)).iter().enumerate() {
                if !may_be[number].contains(sector) {
                    return Err(format!("sector {number}, operation {end} of {}, way {way}", ops.len()));
                }
            }
        }
    }
    Ok(states)
}

fn history() -> impl Strategy<Value = Vec<Option<Step>>> {
    prop::collection::vec(prop_oneof![3 => step().prop_map(Some), 1 => Just(None)], 1..14)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_was_flushed_is_there_when_power_has_failed(steps in history()) {
        let base = file("/dev/shm");
        judge(&base, &steps, false, NEXT_RUN).unwrap();
    }
}

/// Two writes and a flush, and one more of each: enough for each mistake.
fn plain() -> Vec<Option<Step>> {
    let write = |page: usize, seed| Some(Step::Write(page * 4096 + 512, 1024, seed));
    vec![write(0, 9), write(40, 10), None, write(1, 11), Some(Step::Zero(8192, 8192)), None, write(0, 12)]
}

#[test]
fn the_judge_finds_what_is_wrong() {
    let base = file("/dev/shm");
    let states = judge(&base, &plain(), false, NEXT_RUN).unwrap();
    assert!(states > 100, "{states}");
    judge(&base, &plain(), true, NEXT_RUN).expect_err("pages that were not synced before the index");
    judge(&base, &plain(), false, THIS_RUN).expect_err("the index of a process that ran before power failed");
}
