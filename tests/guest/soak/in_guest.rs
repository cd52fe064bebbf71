//! What this test's own program does inside of a guest: `soak OPERATION ARGUMENT...`.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use vm_memory::{MmapRegion, ReadVolatile, VolatileMemory};

use super::super::cluster::recorder::Records;
use super::super::common::{Random, pattern};
use super::pmem_power;

/// Bytes of a record, and of a block of every file system here.
pub const RECORD_BYTES: usize = 4096;

/// What a record starts with, so that the host finds it in an image.
const MAGIC: &[u8; 8] = b"soakrec\n";

/// Where [`reread`] reads: behind what fio writes.
pub const REREAD_OFFSET: u64 = 32 << 20;

/// It reads so many parts of the disk in turn.
const REREAD_PARTS: usize = 3;

/// The length of a part.
const REREAD_BYTES: usize = 8 << 20;

/// What it reads before it pauses: the end of a migration shall come in the middle of a part.
const REREAD_CHUNK_BYTES: usize = 64 << 10;

/// Between two beats of the pulse: it must not take the processor away from the load.
const BEAT: Duration = Duration::from_millis(2);

/// Carries out `OPERATION ARGUMENT...`.
pub fn run(arguments: &[String]) {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["pulse", device] => pulse(Path::new(device)),
        ["reread", device] => reread(Path::new(device)),
        ["kexec", kernel, initramfs] => kexec(Path::new(kernel), Path::new(initramfs)),
        ["store", rest @ ..] => pmem_power::store(rest),
        ["stored", seed, file, count] => {
            pmem_power::stored(seed.parse().unwrap(), Path::new(file), count.parse().unwrap());
        }
        ["record", socket, seed, count] => records(seed, count).write_on(Path::new(socket)),
        ["recorded", socket, seed, count] => records(seed, count).check(Path::new(socket)),
        ["append", file, seed] => append(Path::new(file), seed.parse().unwrap()),
        ["check", file, seed, count] => {
            check(Path::new(file), seed.parse().unwrap(), count.parse().unwrap());
        }
        other => panic!("{other:?} is no operation"),
    }
}

fn records(seed: &str, count: &str) -> Records {
    Records::of(seed.parse().unwrap(), count.parse().unwrap())
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
    pattern(7, REREAD_PARTS * REREAD_BYTES)
}

/// Reads one part of the disk after the other into one of two buffers, and again and again looks whether the last two
/// parts are still there. Nobody but the disk writes to these pages, and each time other bytes: a migration loses them
/// when it is not told.
fn reread(device: &Path) {
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(device).unwrap();
    let all = reread_content();
    let buffer = || MmapRegion::<()>::new(REREAD_BYTES).unwrap();
    let buffers = [buffer(), buffer()];
    for pass in 0_usize.. {
        let part = pass % REREAD_PARTS * REREAD_BYTES;
        file.seek(SeekFrom::Start(REREAD_OFFSET + part as u64)).unwrap();
        for at in (0..REREAD_BYTES).step_by(REREAD_CHUNK_BYTES) {
            let mut chunk = buffers[pass % 2].get_slice(at, REREAD_CHUNK_BYTES).unwrap();
            file.read_exact_volatile(&mut chunk).unwrap();
            std::thread::sleep(BEAT);
        }
        for held in pass.saturating_sub(1)..=pass {
            let mut found = vec![0; REREAD_BYTES];
            buffers[held % 2].as_volatile_slice().copy_to(&mut found);
            let wanted = &all[held % REREAD_PARTS * REREAD_BYTES..][..REREAD_BYTES];
            // A comparison of the whole is quick, also where a guest is emulated.
            assert!(found == wanted, "pass {pass}: of part {held}, {}", differences(&found, wanted));
        }
        println!("pass {pass}");
    }
}

/// Where two parts differ.
fn differences(found: &[u8], wanted: &[u8]) -> String {
    let pages = found.chunks(RECORD_BYTES).zip(wanted.chunks(RECORD_BYTES)).enumerate();
    let wrong: Vec<usize> =
        pages.filter(|(_, (found, wanted))| found != wanted).map(|(page, _)| page).collect();
    format!("{} pages are wrong, the first is {}", wrong.len(), wrong[0])
}

/// Starts another kernel in place of this one, as kexec-tools do.
#[allow(unsafe_code)]
fn kexec(kernel: &Path, initramfs: &Path) {
    let [kernel, initramfs] = [kernel, initramfs].map(|path| File::open(path).unwrap());
    let line = std::fs::read_to_string("/proc/cmdline").unwrap();
    let line = CString::new(line.trim()).unwrap();
    let bytes = line.as_bytes_with_nul().len();
    let files = [kernel.as_raw_fd(), initramfs.as_raw_fd()];
    // SAFETY: both descriptors are open, and the line is as long as is said and ends with a zero.
    let loaded =
        unsafe { libc::syscall(libc::SYS_kexec_file_load, files[0], files[1], bytes, line.as_ptr(), 0_u64) };
    assert_eq!(loaded, 0, "kexec_file_load: {}", std::io::Error::last_os_error());
    // SAFETY: no memory is passed.
    unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_KEXEC) };
    panic!("reboot: {}", std::io::Error::last_os_error());
}

/// Appends records, makes each one persist and then says its number, until the power is cut. Meanwhile files come and go
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
