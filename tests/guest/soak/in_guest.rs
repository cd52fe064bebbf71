//! What this test's own program does inside of a guest: `soak OPERATION ARGUMENT...`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::Advice;

use super::super::common::{Random, pattern};

/// Bytes of a record, and of a block of every file system here.
pub const RECORD_BYTES: usize = 4096;

/// What a record starts with, so that the host finds it in an image.
const MAGIC: &[u8; 8] = b"soakrec\n";

/// Where [`reread`] reads: behind what fio writes.
pub const REREAD_OFFSET: u64 = 32 << 20;

/// What it reads in a pass.
const REREAD_BYTES: usize = 12 << 20;

/// What it reads before it pauses: a pass shall take longer than the end of a migration.
const REREAD_CHUNK_BYTES: usize = 64 << 10;

/// Between two beats of the pulse: it must not take the processor away from the load.
const BEAT: Duration = Duration::from_millis(2);

/// Carries out `OPERATION ARGUMENT...`.
pub fn run(arguments: &[String]) {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["pulse", device] => pulse(Path::new(device)),
        ["reread", device] => reread(Path::new(device)),
        ["append", file, seed] => append(Path::new(file), seed.parse().unwrap()),
        ["check", file, seed, count] => {
            check(Path::new(file), seed.parse().unwrap(), count.parse().unwrap());
        }
        other => panic!("{other:?} is no operation"),
    }
}

/// Record `index` of the sequence that belongs to `seed`.
pub fn record(seed: u64, index: u64) -> Vec<u8> {
    let mut bytes = [&MAGIC[..], &seed.to_le_bytes(), &index.to_le_bytes()].concat();
    bytes.extend(pattern(seed ^ index.rotate_left(32), RECORD_BYTES - bytes.len()));
    bytes
}

/// The seed and the index that a whole record claims to have.
pub fn claim(block: &[u8]) -> Option<(u64, u64)> {
    let rest = block.strip_prefix(MAGIC)?;
    let number = |at: usize| Some(u64::from_le_bytes(rest.get(at..at + 8)?.try_into().ok()?));
    Some((number(0)?, number(8)?))
}

/// Counts in the first bytes of the disk, a request each time, until the guest ends.
fn pulse(device: &Path) {
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(device).unwrap();
    let buffer = vec![0_u8; 2 * RECORD_BYTES];
    // Direct requests want aligned memory.
    let start = buffer.as_ptr().align_offset(RECORD_BYTES);
    let mut buffer = buffer;
    let block = &mut buffer[start..start + RECORD_BYTES];
    for beat in 1_u64.. {
        block[..8].copy_from_slice(&beat.to_le_bytes());
        file.write_all_at(block, 0).unwrap();
        std::thread::sleep(BEAT);
    }
}

/// What the host has put where [`reread`] reads.
pub fn reread_content() -> Vec<u8> {
    pattern(7, 2 * REREAD_BYTES)
}

/// Again and again reads one of two parts of the disk, in turn because the same pages may come to hold them, into the guest's page cache, and then looks whether it is still there.
/// These are pages that nobody but the disk writes to: the ones that a migration loses when it is not told of them.
fn reread(device: &Path) {
    let file = File::open(device).unwrap();
    let all = reread_content();
    let mut found = vec![0; REREAD_BYTES];
    for pass in 1_usize.. {
        let start = pass % 2 * REREAD_BYTES;
        let content = &all[start..][..REREAD_BYTES];
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        for when in ["from the disk", "from the page cache"] {
            for (index, chunk) in found.chunks_mut(REREAD_CHUNK_BYTES).enumerate() {
                let at = index * REREAD_CHUNK_BYTES;
                file.read_exact_at(chunk, REREAD_OFFSET + (start + at) as u64).unwrap();
                assert!(*chunk == content[at..][..chunk.len()], "pass {pass}, {when}: wrong bytes at {at}");
                if when == "from the disk" {
                    std::thread::sleep(BEAT);
                }
            }
        }
        println!("pass {pass}");
    }
}

/// Appends records, makes each one last and then says its number, until the power is cut. Meanwhile files come and go
/// beside it, so that there is a journal to recover.
fn append(path: &Path, seed: u64) {
    let folder = path.parent().unwrap().to_owned();
    std::thread::spawn(move || churn(&folder));
    let mut file = File::create_new(path).unwrap();
    for index in 0.. {
        file.write_all(&record(seed, index)).unwrap();
        file.sync_data().unwrap();
        println!("ACK {index}");
    }
}

fn churn(folder: &Path) {
    let mut random = Random::new(5);
    loop {
        let [from, to] = [0; 2].map(|_| folder.join(format!("churn-{}", random.below(64))));
        let bytes = usize::try_from(random.below(64 << 10)).unwrap();
        std::fs::write(&from, pattern(6, bytes)).unwrap();
        std::fs::rename(from, to).unwrap();
        std::thread::sleep(BEAT);
    }
}

/// Insists on the first `count` records.
fn check(path: &Path, seed: u64, count: u64) {
    let mut file = File::open(path).unwrap();
    let mut found = vec![0; RECORD_BYTES];
    for index in 0..count {
        let whole = file.read_exact(&mut found);
        assert!(whole.is_ok(), "{}: {index} of {count} records are there", path.display());
        assert!(found == record(seed, index), "{}: record {index} of {count} is another", path.display());
    }
}
