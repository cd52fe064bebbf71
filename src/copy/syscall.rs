//! Copies that the kernel does: from guest memory to a file, with no buffer between.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Segment, Segments};

/// Most segments that one `pwritev` takes (`IOV_MAX` of Linux).
const MAX_SEGMENTS: usize = 1024;

/// What zeroes are written from.
static ZERO_PAGE: [u8; 4096] = [0; 4096];

/// Times that [`ZERO_PAGE`] is named in one `pwritev`, which then writes 1 MiB at most.
const ZERO_PAGES: usize = 256;

// The list of segments is handed to the kernel as a list of `struct iovec`.
const _: () = {
    assert!(size_of::<Segment>() == size_of::<libc::iovec>());
    assert!(align_of::<Segment>() == align_of::<libc::iovec>());
    assert!(size_of::<libc::iovec>() == 2 * size_of::<usize>());
    assert!(std::mem::offset_of!(libc::iovec, iov_base) == 0);
    assert!(std::mem::offset_of!(libc::iovec, iov_len) == size_of::<usize>());
};

/// Writes all bytes of `from` at `offset` of the file.
///
/// # Errors
/// The error of `pwritev` (guest memory that is gone is `EFAULT`), `WriteZero` when the file takes no more;
/// part of the bytes may have been written.
pub fn pwritev_all(fd: BorrowedFd<'_>, offset: u64, from: Segments<'_>) -> io::Result<()> {
    write_all_with(offset, from.as_slice(), |offset, list| {
        // SAFETY: C1: the list is a part of `from`.
        unsafe { pwritev(fd, offset, list) }
    })
    .inspect_err(|error| touch_lost(error, from))?;
    #[cfg(test)]
    super::recording::wrote_file(offset, from);
    Ok(())
}

/// Where the kernel has not found guest memory, its loss is noted (`fault`) by a look from here: the kernel's own raises no signal.
pub fn touch_lost(error: &io::Error, segments: Segments<'_>) {
    if error.raw_os_error() == Some(libc::EFAULT) {
        super::touch(segments);
    }
}

/// Writes `len` zero bytes at `offset` of the file.
///
/// # Errors
/// As [`pwritev_all`].
pub fn pwritev_zeroes(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let page = Segment::new(ZERO_PAGE.as_ptr().cast_mut(), ZERO_PAGE.len());
    let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
    let mut at = offset;
    while at < end {
        let mut pages = [page; ZERO_PAGES];
        let mut room = usize::try_from(end - at).unwrap_or(usize::MAX);
        for page in &mut pages {
            page.truncate(room);
            room -= page.len();
        }
        write_all_with(at, &pages, |offset, list| {
            // SAFETY: C2: every segment is within the static page; it is only read.
            unsafe { pwritev(fd, offset, list) }
        })?;
        at += pages.iter().map(|page| page.len() as u64).sum::<u64>();
    }
    #[cfg(test)]
    super::recording::zeroed_file(offset, len);
    Ok(())
}

/// Calls `write` until it has taken all of `list`, each time with what is left, at most [`MAX_SEGMENTS`] and
/// never none. An interrupted call is made again.
fn write_all_with(
    offset: u64,
    list: &[Segment],
    mut write: impl FnMut(u64, &[Segment]) -> io::Result<usize>,
) -> io::Result<()> {
    let mut offset = offset;
    let mut rest = list;
    // A segment of which only a part was written: what is left of it goes before `rest`.
    let mut begun = Segment::EMPTY;
    loop {
        let batch = if begun.is_empty() {
            rest = skip_empty(rest);
            rest.get(..MAX_SEGMENTS).unwrap_or(rest)
        } else {
            std::slice::from_ref(&begun)
        };
        if batch.is_empty() {
            return Ok(());
        }
        let mut written = match write(offset, batch) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        offset = offset.checked_add(written as u64).ok_or(io::ErrorKind::InvalidInput)?;
        if !begun.is_empty() {
            begun.advance(written);
            continue;
        }
        while let Some((first, others)) = rest.split_first()
            && written != 0
        {
            begun = *first;
            begun.advance(written);
            written = written.saturating_sub(first.len());
            rest = others;
        }
    }
}

/// The list without the empty segments that it begins with.
fn skip_empty(list: &[Segment]) -> &[Segment] {
    let filled = list.iter().position(|segment| !segment.is_empty()).unwrap_or(list.len());
    list.get(filled..).unwrap_or_default()
}

/// One `pwritev`; returns how many bytes were written.
///
/// # Safety
/// The bytes of every segment must be readable memory. (Where they are not, the kernel answers `EFAULT` or
/// less than all.)
unsafe fn pwritev(fd: BorrowedFd<'_>, offset: u64, list: &[Segment]) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    let count = libc::c_int::try_from(list.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: C2: the bytes, which are only read. C5: `list` is `count` structures. `fd` is open while it is borrowed.
    let written = unsafe { libc::pwritev(fd.as_raw_fd(), list.as_ptr().cast(), count, offset) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;
    use rustix::mm::{MapFlags, ProtFlags};

    use super::*;
    use crate::copy::load_slice;
    use crate::copy::testing::{Memory, pattern};

    fn contents(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// What a write of `bytes` at `offset` makes of `file`.
    fn expected(file: &[u8], offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut file = file.to_vec();
        file.resize(file.len().max(offset + bytes.len()), 0);
        file[offset..offset + bytes.len()].copy_from_slice(bytes);
        file
    }

    proptest! {
        /// A writer that takes a few bytes at a time, and is interrupted, still gets every byte in order.
        #[test]
        fn partial_and_interrupted_writes_are_continued(
            lens in prop::collection::vec(prop_oneof![1 => Just(0_usize), 3 => 0..40_usize], 0..12),
            takes in prop::collection::vec(0..50_usize, 1..20),
            offset in 0..1000_u64,
        ) {
            let total: usize = lens.iter().sum();
            let memory = Memory::new(&pattern(total, 5)).cut(0, &lens, 0);
            let mut got = Vec::new();
            let mut takes = takes.into_iter().chain([3]).cycle();
            write_all_with(offset, memory.segments().as_slice(), |at, list| {
                prop_assert_eq_io(at, offset + got.len() as u64)?;
                let take = takes.next().unwrap();
                if take == 0 {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                let mut bytes = vec![0; take];
                // SAFETY: `list` is made of parts of `memory`'s segments.
                let part = unsafe { Segments::new(list) };
                let taken = load_slice(part, &mut bytes);
                got.extend_from_slice(&bytes[..taken]);
                Ok(taken)
            }).unwrap();
            prop_assert_eq!(got, memory.bytes());
        }
    }

    fn prop_assert_eq_io(left: u64, right: u64) -> io::Result<()> {
        if left == right { Ok(()) } else { Err(io::Error::other(format!("offset {left}, not {right}"))) }
    }

    #[test]
    fn more_segments_than_a_call_takes() {
        let lens: Vec<usize> = (0..3 * MAX_SEGMENTS + 7).map(|index| index % 3).collect();
        let bytes = pattern(lens.iter().sum(), 1);
        let memory = Memory::new(&bytes).cut(0, &lens, 0);
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        pwritev_all(file.as_fd(), 33, memory.segments()).unwrap();
        assert_eq!(contents(&file), expected(&[0; 100], 33, &bytes));
    }

    #[test]
    fn nothing_to_write_is_no_call() {
        let file = tempfile::tempfile().unwrap();
        let memory = Memory::new(&[1, 2]).cut(0, &vec![0; MAX_SEGMENTS + 1], 0);
        pwritev_all(file.as_fd(), u64::MAX, memory.segments()).unwrap();
        pwritev_all(file.as_fd(), u64::MAX, Segments::empty()).unwrap();
        assert!(contents(&file).is_empty());
    }

    #[test]
    fn a_writer_that_takes_nothing_is_an_error_not_a_loop() {
        let memory = Memory::new(&[1; 10]);
        let error = write_all_with(0, memory.segments().as_slice(), |_, _| Ok(0)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn memory_that_is_gone_is_efault() {
        let file = tempfile::tempfile().unwrap();
        // SAFETY: a new mapping, of which nothing else knows.
        let gone = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), 4096, ProtFlags::empty(), MapFlags::PRIVATE)
        }
        .unwrap();
        let good = Memory::new(&[7; 512]);
        let list = [Segment::new(good.ptr(), 512), Segment::new(gone.cast(), 512)];
        // SAFETY: they go to the kernel only, which checks them; that is what is tested.
        let segments = unsafe { Segments::new(&list) };
        let error = pwritev_all(file.as_fd(), 0, segments).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
        // SAFETY: mapped above, and not used any more.
        unsafe { rustix::mm::munmap(gone, 4096) }.unwrap();
    }

    #[test]
    fn a_file_opened_for_reading_refuses() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let file = File::open(named.path()).unwrap();
        let memory = Memory::new(&[7; 512]);
        assert_eq!(
            pwritev_all(file.as_fd(), 0, memory.segments()).unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
        assert_eq!(
            pwritev_all(file.as_fd(), u64::MAX, memory.segments()).unwrap_err().raw_os_error(),
            Some(libc::EFBIG)
        );
    }

    #[test]
    fn zeroes_are_written_where_asked_and_nowhere_else() {
        let pieces = ZERO_PAGES * ZERO_PAGE.len();
        for (offset, len) in [(0, 0), (1, 1), (513, 4096), (4095, 4097), (7, pieces), (511, 2 * pieces + 3)] {
            let file = tempfile::tempfile().unwrap();
            let before = pattern(2 * pieces + 4096, 9);
            file.write_all_at(&before, 0).unwrap();
            pwritev_zeroes(file.as_fd(), offset as u64, len as u64).unwrap();
            assert!(
                contents(&file) == expected(&before, offset, &vec![0; len]),
                "offset {offset}, len {len}"
            );
        }
        let file = tempfile::tempfile().unwrap();
        assert_eq!(
            pwritev_zeroes(file.as_fd(), u64::MAX, 2).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }
}
