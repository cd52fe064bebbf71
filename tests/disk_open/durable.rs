//! What is promised, what is required, and what becomes of discards.

use super::*;
use vhost_user_pmem::copy::{PrefetchHint, Segment, Segments};
use vhost_user_pmem::disk::{DiscardPolicy, DiskError};

fn requiring(class: Durability, options: OpenOptions) -> OpenOptions {
    OpenOptions { require_durable: Some(class), ..options }
}

#[test]
fn what_is_less_durable_than_required_is_refused_and_not_created() {
    let folder = memory();
    let path = folder.path().join("a.img");
    for class in [Durability::Page, Durability::CacheLine, Durability::Byte] {
        let error = refused(&path, &requiring(class, sized(MIB)));
        assert!(matches!(error, OpenError::NotDurable { found: Durability::Volatile, .. }), "{error}");
        let text = message(&path, &error);
        let start = format!(
            "cannot promise durability \"{}\" (memory (tmpfs or memfd) does not outlive the machine: it is \
             \"volatile\"); use ",
            class.word()
        );
        assert!(text.starts_with(&start) && text.ends_with("require-durable"), "{text}");
        assert!(!path.exists(), "what was created is removed");
    }
    let Some(folder) = ordinary() else { return };
    let path = folder.path().join("a.img");
    let error = refused(&path, &requiring(Durability::CacheLine, sized(MIB)));
    assert!(message(&path, &error).contains("page cache"), "{error}");
    assert!(!path.exists());
    let opened = open(&path, &requiring(Durability::Page, sized(MIB))).unwrap();
    assert_eq!(opened.disk.durability(), Durability::Page);
}

/// What the guest is told of the cache, and whether a flush takes a system call.
#[test]
fn flushes_follow_the_class() {
    let folder = memory();
    let opened = open(&folder.path().join("a.img"), &sized(MIB)).unwrap();
    assert!(opened.disk.initial_writeback(), "volatile, but a guest that flushes is no worse off");
    assert!(matches!(opened.disk.try_flush(), Some(Ok(()))));
    assert_eq!(opened.media.flush(), "fence");
    assert_eq!(opened.disk.media_written_bytes(0, 4096), 4096);
    assert_eq!(opened.disk.media_written_bytes(63, 2), 128, "whole lines");
    assert_eq!(opened.disk.media_written_bytes(63, 0), 0);
    let Some(folder) = ordinary() else { return };
    let opened = open(&folder.path().join("a.img"), &sized(MIB)).unwrap();
    assert!(opened.disk.initial_writeback());
    assert!(opened.disk.try_flush().is_none(), "a daemon before may have left something");
    opened.disk.flush().unwrap();
    assert!(matches!(opened.disk.try_flush(), Some(Ok(()))));
    assert_eq!(opened.media.flush(), "fdatasync");
    let read_only = OpenOptions { read_only: true, lock: LockMode::Off, ..options() };
    let opened = open(&folder.path().join("a.img"), &read_only).unwrap();
    assert!(matches!(opened.disk.try_flush(), Some(Ok(()))), "nothing is ever written");
}

#[test]
fn discards_follow_the_policy() {
    for folder in folders() {
        for (discard, freed) in
            [(DiscardPolicy::Auto, MIB), (DiscardPolicy::Unmap, MIB), (DiscardPolicy::Ignore, 0)]
        {
            let path = folder.path().join(format!("{discard}.img"));
            let opened = open(&path, &OpenOptions { discard, ..sized(4 * MIB) }).unwrap();
            let mut bytes = vec![7; 4 << 20];
            write(&opened, 0, &mut bytes).unwrap();
            opened.disk.flush().unwrap();
            let before = allocated_bytes(&path);
            opened.disk.discard(MIB, MIB).unwrap();
            assert_eq!(before - allocated_bytes(&path), freed, "{discard}");
            opened.disk.write_zeroes(2 * MIB, MIB, true).unwrap();
            assert_eq!(before - allocated_bytes(&path), 2 * freed, "{discard}");
            assert_eq!(fs::read(&path).unwrap()[2 << 20..3 << 20], vec![0; 1 << 20], "{discard}");
            assert_eq!(opened.disk.discard_alignment_bytes(), 4096);
        }
    }
}

/// A page that was learnt to be bad fails alone, is listed, and is repaired by whoever writes all of it.
#[test]
fn a_bad_page_costs_the_requests_that_touch_it() {
    let folder = memory();
    let path = folder.path().join("a.img");
    let opened = open(&path, &sized(MIB)).unwrap();
    write(&opened, 0, &mut vec![7; 1 << 20]).unwrap();
    let Backing::Mapped(disk) = &opened.disk else { panic!("tmpfs") };
    disk.add_bad_page(8192 + 700);
    assert_eq!(opened.disk.bad_blocks(), vec![8192..12288]);
    for (offset, len, good) in
        [(8192, 512, false), (4096, 8192, false), (4096, 4096, true), (12288, 512, true)]
    {
        let mut bytes = vec![0; len];
        let result = read(&opened, offset, &mut bytes);
        assert_eq!(result.is_ok(), good, "{offset}+{len}");
        if let Err(error) = result {
            let what = format!("reading bad media of {len} bytes at offset {offset}");
            assert_eq!(error.to_string(), format!("{what}: Input/output error (os error 5)"));
        }
    }
    assert!(write(&opened, 8192, &mut vec![1; 512]).is_err(), "a part does not repair");
    assert!(opened.disk.write_zeroes(8192 + 512, 512, false).is_err());
    write(&opened, 4096, &mut vec![9; 512]).unwrap();
    write(&opened, 4096 + 512, &mut vec![9; 7680]).unwrap();
    assert!(opened.disk.bad_blocks().is_empty());
    let mut bytes = vec![0; 8192];
    read(&opened, 4096, &mut bytes).unwrap();
    assert_eq!(bytes, vec![9; 8192]);
    disk.add_bad_page(8192);
    opened.disk.write_zeroes(8192, 4096, false).unwrap();
    assert!(opened.disk.bad_blocks().is_empty());
    let mut expected = vec![7; 1 << 20];
    expected[4096..8192].fill(9);
    expected[8192..12288].fill(0);
    assert!(fs::read(&path).unwrap() == expected);
}

/// A page of tmpfs whose memory is really taken away (needs root and a kernel with memory-failure).
#[test]
fn a_poisoned_page_of_tmpfs_is_replaced() {
    let folder = memory();
    let path = folder.path().join("a.img");
    let opened = open(&path, &sized(MIB)).unwrap();
    write(&opened, 0, &mut vec![7; 1 << 20]).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let flags = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping at an address that the kernel chooses.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, flags.0, flags.1, file.as_raw_fd(), 8192) };
    assert_ne!(page, libc::MAP_FAILED);
    // SAFETY: it was mapped above, and is touched to have its page.
    unsafe { page.cast::<u8>().write_volatile(7) };
    // SAFETY: it was mapped above; nothing reads it afterwards.
    let poisoned = unsafe { libc::madvise(page, 4096, libc::MADV_HWPOISON) };
    if poisoned != 0 {
        eprintln!("skipped: no memory can be poisoned here: {}", std::io::Error::last_os_error());
        return;
    }
    let Backing::Mapped(disk) = &opened.disk else { panic!("tmpfs") };
    disk.add_bad_page(8192);
    assert!(read(&opened, 8192, &mut [0; 512]).is_err());
    write(&opened, 8192, &mut vec![9; 4096]).unwrap();
    let mut bytes = vec![0; 4096];
    read(&opened, 8192, &mut bytes).unwrap();
    assert_eq!(bytes, vec![9; 4096]);
    // SAFETY: it was mapped above.
    unsafe { libc::munmap(page, 4096) };
}

pub(crate) fn segments<R>(bytes: &mut [u8], with: impl FnOnce(Segments<'_>) -> R) -> R {
    let list = [Segment::new(bytes.as_mut_ptr(), bytes.len())];
    // SAFETY: the bytes are borrowed for this call, and nobody else has a reference to them.
    with(unsafe { Segments::new(&list) })
}

pub(crate) fn write(opened: &Opened, offset: u64, bytes: &mut [u8]) -> Result<(), DiskError> {
    segments(bytes, |from| opened.disk.write(offset, from, PrefetchHint::NONE))
}

pub(crate) fn read(opened: &Opened, offset: u64, bytes: &mut [u8]) -> Result<(), DiskError> {
    segments(bytes, |into| opened.disk.read(offset, into, PrefetchHint::NONE))
}
