#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "whoever runs the tests is told what is skipped"
)]

use std::process::Command;
use std::sync::atomic::Ordering;

use rustix::fs::MemfdFlags;
use rustix::mm::MprotectFlags;

use super::*;
use crate::copy::fault;

const PAGE: usize = 4096;

/// Tells the child that it is one.
const CHILD: &str = "VHOST_USER_PMEM_TEST_EXHAUSTED";

fn memfd(name: &str, len_bytes: usize, flags: MemfdFlags) -> io::Result<File> {
    let file = File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | flags)?);
    file.set_len(len_bytes as u64)?;
    Ok(file)
}

/// Those whose files have this name: their first lines, and what `VmFlags` says of each.
fn mappings(name: &str) -> Vec<(String, String)> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut found = Vec::new();
    let mut lines = smaps.lines();
    while let Some(line) = lines.next() {
        if line.contains(name) {
            let flags = lines.find_map(|line| line.strip_prefix("VmFlags: ")).unwrap();
            found.push((line.to_owned(), flags.to_owned()));
        }
    }
    found
}

#[test]
fn it_is_in_no_core_dump_and_apart_from_its_neighbours() {
    let file = memfd("apart", 8 * PAGE, MemfdFlags::empty()).unwrap();
    // The kernel would make one mapping of those that are beside each other in memory and in the file.
    let parts: Vec<_> = (0..8)
        .rev()
        .map(|page| SharedMapping::map(&file, page * PAGE as u64, PAGE as u64).unwrap())
        .collect();
    let found = mappings("memfd:apart");
    assert_eq!(found.len(), 8);
    assert!(found.iter().all(|(_, flags)| flags.split(' ').any(|flag| flag == "dd")), "{found:?}");
    drop(parts);
    assert!(mappings("memfd:apart").is_empty());
}

#[test]
fn parts_of_huge_pages_are_mapped_and_unmapped_whole() {
    let file = memfd("huge-parts", 4 << 20, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB);
    let file = match file {
        Ok(file) => file,
        Err(error) => {
            eprintln!("skipped: no huge memfd here ({error})");
            return;
        }
    };
    for (offset, len) in [(0, PAGE), (0, 640 << 10), (0, 3 << 20), (2 << 20, 2 << 20), (2 << 20, 1)] {
        let shared = SharedMapping::map(&file, offset, len as u64).unwrap();
        assert_eq!(mappings("huge-parts").len(), 1);
        assert!(shared.byte(len - 1).is_some() && shared.byte(len).is_none());
        drop(shared);
        assert!(mappings("huge-parts").is_empty(), "{len} bytes at {offset}");
    }
    let error = SharedMapping::map(&file, PAGE as u64, PAGE as u64).unwrap_err().to_string();
    assert!(
        error.contains("0x1000 is not a multiple of 0x200000") && error.contains("huge pages"),
        "{error}"
    );
    let error = SharedMapping::map(&file, 2 << 20, 3 << 20).unwrap_err().to_string();
    assert!(error.contains("has 0x400000 bytes, it ends at 0x500000"), "{error}");
}

/// In a process of its own, in which no mapping is left.
#[test]
fn what_is_lost_is_replaced_when_no_mapping_is_left() {
    let test = format!("{}::the_child", module_path!().split_once("::").unwrap().1);
    let mut command = Command::new(std::env::current_exe().unwrap());
    let child =
        command.args([&test, "--exact", "--ignored", "--nocapture"]).env(CHILD, "1").output().unwrap();
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(child.status.success() && said.contains("survived"), "{:?} {child:?}", child.status);
}

/// Not a test by itself: what the other one runs.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn the_child() {
    if std::env::var(CHILD).is_err() {
        return;
    }
    fault::install().unwrap();
    let file = memfd("lost", 64 * PAGE, MemfdFlags::empty()).unwrap();
    let parts: Vec<_> = (0..16)
        .rev()
        .map(|part| SharedMapping::map(&file, part * 4 * PAGE as u64, 4 * PAGE as u64).unwrap())
        .collect();
    // A page of another kind beside each page, until there are no more mappings.
    let pages: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    let anywhere = std::ptr::null_mut();
    let len = 2 * pages * PAGE;
    // SAFETY: at an address of the kernel's choice.
    let all = unsafe { rustix::mm::mmap_anonymous(anywhere, len, ProtFlags::empty(), flags) }.unwrap();
    let taken = (0..pages).take_while(|page| {
        let at = all.wrapping_byte_add(2 * page * PAGE);
        // SAFETY: in what was just mapped, which nobody uses.
        unsafe { rustix::mm::mprotect(at, PAGE, MprotectFlags::READ) }.is_ok()
    });
    let taken = taken.count();
    assert!(taken > pages / 4 && taken < pages);
    // Splitting takes two; the last one is had otherwise.
    let one_more = [ProtFlags::READ, ProtFlags::READ | ProtFlags::WRITE].into_iter().cycle();
    // SAFETY: at an address of the kernel's choice.
    let one_more =
        one_more.map(|access| unsafe { rustix::mm::mmap_anonymous(anywhere, PAGE, access, flags) });
    let no_more = one_more.take(8).find_map(Result::err);
    file.set_len(0).unwrap();
    let mut words = 0;
    for shared in &parts {
        for page in 0..4 {
            let word = shared.byte(page * PAGE).unwrap();
            words += usize::from(word.load(Ordering::Relaxed));
            word.store(1, Ordering::Relaxed);
        }
    }
    // SAFETY: all of what was mapped above.
    unsafe { rustix::mm::munmap(all, len) }.unwrap();
    assert_eq!(no_more, Some(rustix::io::Errno::NOMEM));
    assert_eq!(words, 0);
    assert!(parts.iter().all(|shared| shared.watch().has_faulted()));
    println!("survived");
}
