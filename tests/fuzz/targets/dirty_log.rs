//! The geometry of a dirty log: every page that is marked has its bit, no other bit changes, and nothing outside of the log.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use arbitrary::{Arbitrary, Unstructured};
use vhost_user_pmem::virtio::memory::DirtyLog;

use crate::common::guarded::found;

const PAGE: u64 = 4096;

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Number {
    Small(u8),
    Pages(u8, i8),
    Wild(u64),
    NearTop(u16),
}

impl Number {
    fn value(self) -> u64 {
        match self {
            Self::Small(value) => value.into(),
            Self::Pages(pages, more) => (u64::from(pages) * PAGE).wrapping_add_signed(more.into()),
            Self::Wild(value) => value,
            Self::NearTop(value) => u64::MAX - u64::from(value),
        }
    }
}

#[derive(Debug, Arbitrary)]
struct Input {
    file_pages: u8,
    offset: Number,
    len: Number,
    background: u8,
    marks: Vec<(Number, Number)>,
}

/// Maps a log and marks.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    let file = File::from(rustix::fs::memfd_create("log", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    let file_bytes = u64::from(input.file_pages % 8) * PAGE;
    file.write_all_at(&vec![input.background; file_bytes as usize], 0).unwrap();
    let (offset, len) = (input.offset.value(), input.len.value());
    let fits = offset.checked_add(len).is_some_and(|end| end <= file_bytes);
    let log = match DirtyLog::map(&file, offset, len) {
        Ok(_) if !fits || len == 0 => found(&format!("{len} bytes at {offset} of {file_bytes} are a log")),
        Err(error) if fits && len > 0 && offset % PAGE == 0 => found(&format!("{error}")),
        Ok(log) => log,
        Err(_) => return,
    };
    let mut expected = vec![input.background; file_bytes as usize];
    for (address, bytes) in input.marks.iter().take(16) {
        let (address, bytes) = (address.value(), bytes.value());
        log.mark(address, bytes);
        let Some(last) = bytes.checked_sub(1).map(|last| address.saturating_add(last) / PAGE) else {
            continue;
        };
        for page in (address / PAGE..=last).take_while(|page| *page < len * 8) {
            expected[(offset + page / 8) as usize] |= 1 << (page % 8);
        }
    }
    let mut found_bytes = vec![0; file_bytes as usize];
    file.read_exact_at(&mut found_bytes, 0).unwrap();
    if found_bytes != expected {
        found("other bits are set than those of the pages that were marked");
    }
}
