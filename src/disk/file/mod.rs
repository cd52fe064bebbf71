//! A disk in an ordinary file, behind the page cache.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, OnceLock};

use rustix::fs::FallocateFlags;
use rustix::thread::{CapabilitySet, capabilities};

use crate::copy::{self, PrefetchHint, Segments};
use crate::disk::durability::syncs::Syncs;
use crate::disk::error::{cannot, failed};
use crate::disk::failure::IoFailure;
use crate::disk::lock::BackingFile;
use crate::disk::media::bad_blocks::BadBlocks;
use crate::disk::space::growth::{GrowthPolicy, file_bytes};
use crate::disk::space::{self, fallocate};
use crate::disk::{Disk, DiskError, Durability, FileSystem, Geometry, GrowError, sys};
use crate::limits::bounds::MAX_SLICE_BYTES;
use reader::Reader;
use resident::ResidentWindows;

mod reader;
mod resident;

/// A disk that is read through a mapping of the page cache, where there can be one, and written by system calls.
///
/// Writes do not go through the mapping because the file system would then write whole folios back: 256 to
/// 450 times the bytes of a small write, measured on ext4.
#[derive(Debug)]
pub struct FileDisk {
    reader: Reader,
    /// What is there of what the reader has mapped.
    resident: ResidentWindows,
    /// The user who owned the file at the start.
    owner: u32,
    /// The kernel tells this process which pages are in memory; looked up when it has given up what it does not need.
    knows_residency: OnceLock<bool>,
    file: Arc<BackingFile>,
    /// Other machines may have it, too, and the kernel does not know what they write.
    has_server: bool,
    /// With the size at the start: that of `reader` counts.
    geometry: Geometry,
    pub(super) growth: GrowthPolicy,
    syncs: Syncs,
    /// Whether discards give space back.
    unmaps: bool,
    /// What reads have run into. It is tried again all the same.
    bad: BadBlocks,
}

impl FileDisk {
    /// Serves the first `capacity_bytes` of `file`, whose `flock(2)`, if any, ends with the disk.
    ///
    /// # Errors
    /// As [`Mapping::new`](crate::disk::Mapping::new).
    pub fn new(file: File, geometry: Geometry) -> io::Result<Self> {
        Self::over(Arc::new(file.into()), geometry, true)
    }

    /// The same of a file that is shared with its lock; with `unmaps` discards give space back.
    pub(super) fn over(file: Arc<BackingFile>, geometry: Geometry, unmaps: bool) -> io::Result<Self> {
        let reader = Reader::new(&file, geometry.capacity_bytes)?;
        // A process before this one may have left something in the page cache.
        let syncs = Syncs::new("fdatasync", !geometry.read_only);
        let (growth, bad, resident) =
            (GrowthPolicy::default(), BadBlocks::default(), ResidentWindows::default());
        let (owner, knows_residency) = (file.metadata()?.uid(), OnceLock::new());
        let has_server = space::file_system(&file).is_some_and(FileSystem::has_server);
        Ok(Self {
            reader,
            resident,
            owner,
            knows_residency,
            file,
            has_server,
            geometry,
            growth,
            syncs,
            unmaps,
            bad,
        })
    }

    /// As `can_do_mincore` of the kernel (`mm/mincore.c`), but for permissions that others may change.
    #[cold]
    #[inline(never)]
    fn knows_residency(&self) -> bool {
        let may_all = || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::FOWNER));
        self.owner == rustix::process::geteuid().as_raw() || may_all()
    }

    /// The ranges in bytes that reads have run into since they were last read or written well.
    pub(super) fn bad_blocks(&self) -> Vec<Range<u64>> {
        self.bad.list()
    }

    /// For `map_err` of a change of this range.
    fn change_failed(
        &self,
        operation: &'static str,
        offset: u64,
        len: u64,
    ) -> impl Fn(io::Error) -> DiskError {
        move |error| failed(operation, offset, len)(IoFailure::of_error(&self.file, Some(offset), error))
    }

    /// `fallocate(2)`, which takes what it changes out of the page cache: to read that is to wait for media.
    fn fallocate(&self, what: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
        self.resident.forget(offset, len);
        let is_noted = fallocate(&self.file, what, offset, len);
        // Another ring may have asked for it meanwhile.
        self.resident.forget(offset, len);
        is_noted
    }

    /// Bad pages of the page cache are not the media's.
    pub(super) fn forget_announced(&self) {
        self.reader.forget_announced();
    }

    /// What it is made of.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn shared_file(&self) -> Arc<BackingFile> {
        Arc::clone(&self.file)
    }
}

impl Disk for FileDisk {
    #[inline]
    fn geometry(&self) -> Geometry {
        Geometry { capacity_bytes: self.reader.len_bytes(), ..self.geometry }
    }

    fn rescan_size(&self) -> Result<u64, GrowError> {
        let served = self.geometry();
        let Some(target) = self.growth.target(file_bytes(&self.file)?, &served)? else {
            return Ok(served.capacity_bytes);
        };
        if served.read_only && space::file_system(&self.file) == Some(FileSystem::OVERLAYFS) {
            return Err(GrowError::Overlay);
        }
        if self.growth.allocate(&self.file, &served, target)? {
            self.syncs.wrote();
            self.flush().map_err(GrowError::Sync)?;
        }
        self.reader.grow(target).map_err(cannot("map the new part"))?;
        Ok(target)
    }

    /// Whatever guests are told: a copy has no blocks.
    fn unit_bytes(&self) -> u32 {
        512
    }

    #[inline]
    fn durability(&self) -> Durability {
        Durability::Page
    }

    #[inline]
    fn prefetch_hint(&self, offset: u64) -> PrefetchHint {
        self.reader.prefetch_hint(offset)
    }

    fn may_wait(&self) -> bool {
        true
    }

    /// The kernel locks the file for each.
    fn changes_exclude_each_other(&self) -> bool {
        true
    }

    /// While it is synced, a write may wait for the file system's journal.
    fn writes_are_quick(&self) -> bool {
        !self.has_server && !self.syncs.is_syncing()
    }

    #[inline]
    fn try_read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> bool {
        let len = into.total_bytes() as u64;
        let Reader::Mapped(mapping) = &self.reader else { return false };
        // What is at the end would be a question to the file's server.
        if len > MAX_SLICE_BYTES || !mapping.is_interior(offset, len) {
            return false;
        }
        let is_read = match *self.knows_residency.get_or_init(|| self.knows_residency()) {
            true => self.resident.has(mapping, offset, len) && mapping.read(offset, into, next).is_ok(),
            false => sys::preadv_nowait(self.file.as_fd(), offset, into),
        };
        if is_read {
            self.bad.remove_good(offset, len);
        }
        is_read
    }

    fn forget_cached(&self) {
        if self.has_server {
            self.resident.forget(0, u64::MAX);
            self.reader.forget_cached(&self.file);
        }
    }

    fn begin_turn(&self) {
        self.resident.begin_turn();
    }

    fn read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        if self.try_read(offset, into, next) {
            return Ok(());
        }
        self.reader.read(&self.file, offset, into).inspect_err(|error| {
            if let Some(at) = IoFailure::of_media(error) {
                self.bad.add(at..at.saturating_add(1));
            }
        })?;
        self.bad.remove_good(offset, into.total_bytes() as u64);
        Ok(())
    }

    fn write(&self, offset: u64, from: Segments<'_>, _next: PrefetchHint) -> Result<(), DiskError> {
        let len = from.total_bytes() as u64;
        self.geometry().check_write(offset, len)?;
        self.reader.check_end(&self.file, offset, len)?;
        copy::touch(from);
        copy::pwritev_all(self.file.as_fd(), offset, from)
            .map_err(self.change_failed("pwritev", offset, len))?;
        self.bad.remove_good(offset, len);
        self.syncs.wrote();
        Ok(())
    }

    #[inline]
    fn try_flush(&self) -> Option<Result<(), DiskError>> {
        self.syncs.try_answer()
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.syncs.sync(|| {
            space::sync_data(&self.file).map_err(|error| IoFailure::of_error(&self.file, None, error))
        })
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.geometry().check_write(offset, len)?;
        if self.unmaps {
            // Only advice: a file system that has no holes keeps the bytes.
            self.fallocate(space::PUNCH, offset, len).map_err(self.change_failed(
                "punching a hole",
                offset,
                len,
            ))?;
            self.syncs.wrote();
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<u64, DiskError> {
        self.geometry().check_write(offset, len)?;
        self.reader.check_end(&self.file, offset, len)?;
        let what = if unmap && self.unmaps { space::PUNCH } else { space::ZERO };
        let is_noted =
            self.fallocate(what, offset, len).map_err(self.change_failed("zeroing a range", offset, len))?;
        if !is_noted {
            copy::pwritev_zeroes(self.file.as_fd(), offset, len)
                .map_err(self.change_failed("pwritev", offset, len))?;
        }
        self.bad.remove_good(offset, len);
        self.syncs.wrote();
        Ok(if is_noted { 0 } else { len })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::copy::testing::{Memory, pattern};
    use crate::disk::BackingKind;

    const LEN: usize = 64 * 4096 + 512;

    fn geometry() -> Geometry {
        Geometry { capacity_bytes: LEN as u64, block_bytes: 512, read_only: false }
    }

    fn disk_of(file: File, bytes: &[u8]) -> FileDisk {
        file.write_all_at(bytes, 0).unwrap();
        FileDisk::new(file, geometry()).unwrap()
    }

    /// On a file system with holes and zero ranges, where there is one.
    #[allow(clippy::print_stderr)]
    fn disk(bytes: &[u8]) -> FileDisk {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let kind = BackingKind::of(&rustix::fs::fstatfs(&file).unwrap());
        if kind.is_written_through_mapping() {
            eprintln!("note: not on an ordinary file system but on {kind}");
        }
        disk_of(file, bytes)
    }

    fn image(disk: &FileDisk) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        disk.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn writes_reach_the_file_and_reads_of_the_mapping() {
        let disk = disk(&pattern(LEN, 0));
        let before = Memory::new(&[0; 5000]);
        disk.read(777, before.segments(), PrefetchHint::NONE).unwrap();
        assert_eq!(before.bytes(), pattern(LEN, 0)[777..5777]);
        let guest = Memory::new(&pattern(5000, 9)).cut(0, &[1000, 0, 4000], 0);
        disk.write(777, guest.segments(), PrefetchHint::NONE).unwrap();
        disk.read(777, before.segments(), PrefetchHint::NONE).unwrap();
        assert_eq!(before.bytes(), guest.bytes());
        disk.fence();
        disk.flush().unwrap();
        let mut expected = pattern(LEN, 0);
        expected[777..5777].copy_from_slice(&guest.bytes());
        assert!(image(&disk) == expected);
        assert_eq!((disk.durability(), disk.geometry()), (Durability::Page, geometry()));
    }

    /// Edges anywhere, on a file system that can zero ranges and on tmpfs, which cannot.
    #[test]
    fn write_zeroes_zeroes_exactly_the_range() {
        let before: Vec<u8> = pattern(LEN, 1).into_iter().map(|byte| byte | 1).collect();
        let ranges =
            [(0, 0), (0, LEN), (512, 512), (4096, 8192), (4000, 4200), (1, 70_001), (LEN - 513, 513)];
        for (start, len) in ranges {
            for unmap in [false, true] {
                for on_tmpfs in [false, true] {
                    let disk = match on_tmpfs {
                        true => disk_of(tempfile::tempfile_in("/dev/shm").unwrap(), &before),
                        false => disk(&before),
                    };
                    disk.write_zeroes(start as u64, len as u64, unmap).unwrap();
                    let mut expected = before.clone();
                    expected[start..start + len].fill(0);
                    assert!(image(&disk) == expected, "{start}+{len} unmap {unmap} tmpfs {on_tmpfs}");
                    let back = Memory::new(&[9; 512]);
                    disk.read(start.min(LEN - 512) as u64, back.segments(), PrefetchHint::NONE).unwrap();
                    let at = start.min(LEN - 512);
                    assert_eq!(back.bytes(), expected[at..at + 512], "through the mapping");
                    assert_eq!(disk.file.metadata().unwrap().len(), LEN as u64);
                }
            }
        }
    }

    #[test]
    fn discard_gives_space_back() {
        let disk = disk(&pattern(LEN, 1));
        disk.flush().unwrap(); // delayed allocation has no blocks before
        let blocks = disk.file.metadata().unwrap().blocks();
        disk.discard(0, 0).unwrap();
        disk.discard(8192, 32 * 4096).unwrap();
        assert_eq!(blocks - disk.file.metadata().unwrap().blocks(), 32 * 8);
        let mut expected = pattern(LEN, 1);
        expected[8192..8192 + 32 * 4096].fill(0);
        assert!(image(&disk) == expected);
    }

    #[test]
    fn what_was_taken_out_of_the_page_cache_is_not_read_at_once() {
        let disk = disk(&pattern(LEN, 1));
        disk.flush().unwrap();
        let room = Memory::new(&[0; 4096]);
        let try_read = |at| disk.try_read(at, room.segments(), PrefetchHint::NONE);
        let changes: [fn(&FileDisk); 3] = [
            |disk| disk.discard(4096, 128 << 10).unwrap(),
            |disk| assert!(disk.write_zeroes(4096, 128 << 10, true).is_ok()),
            |disk| assert!(disk.write_zeroes(4096, 128 << 10, false).is_ok()),
        ];
        for change in changes {
            // All of it is there again, and known to be.
            image(&disk);
            disk.begin_turn();
            assert!(try_read(8192) && try_read(128 << 10));
            change(&disk);
            assert!(!try_read(8192) && !try_read(128 << 10), "to read it is to wait for media");
            assert!(try_read(0) && try_read(200 << 10), "the rest is there");
        }
    }

    /// guest/soak: "GlusterFS, nodes in turn" shows what this is for.
    #[test]
    fn of_a_file_that_others_may_have_changed_nothing_is_kept() {
        let disk = disk(&pattern(LEN, 1));
        disk.flush().unwrap();
        let room = Memory::new(&[0; 4096]);
        let try_read = |disk: &FileDisk| disk.try_read(8192, room.segments(), PrefetchHint::NONE);
        for has_server in [false, true] {
            let disk = FileDisk { has_server, ..disk_of(disk.file.try_clone().unwrap(), &[]) };
            image(&disk);
            disk.begin_turn();
            assert!(try_read(&disk));
            disk.forget_cached();
            assert_eq!(try_read(&disk), !has_server, "{has_server}");
            disk.read(8192, room.segments(), PrefetchHint::NONE).unwrap();
            assert_eq!(room.bytes(), pattern(LEN, 1)[8192..8192 + 4096]);
        }
    }

    #[test]
    fn nothing_outside_is_touched_and_the_file_never_grows() {
        let disk = disk(&pattern(LEN, 1));
        let guest = Memory::new(&[0; 512]);
        for offset in [LEN as u64 - 511, LEN as u64, u64::MAX - 511, u64::MAX] {
            let refused = [
                disk.read(offset, guest.segments(), PrefetchHint::NONE),
                disk.write(offset, guest.segments(), PrefetchHint::NONE),
                disk.discard(offset, 512),
                disk.write_zeroes(offset, 512, false).map(drop),
                disk.write_zeroes(offset, 512, true).map(drop),
            ];
            for result in refused {
                assert!(matches!(result, Err(DiskError::OutOfRange { .. })), "{offset}: {result:?}");
            }
        }
        assert!(image(&disk) == pattern(LEN, 1));
        assert_eq!(disk.file.metadata().unwrap().len(), LEN as u64);
    }

    #[test]
    fn a_read_only_disk_refuses_every_change() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&pattern(LEN, 1), 0).unwrap();
        let disk = FileDisk::new(file, Geometry { read_only: true, ..geometry() }).unwrap();
        let guest = Memory::new(&[0; 512]);
        let refused = [
            disk.write(0, guest.segments(), PrefetchHint::NONE),
            disk.discard(0, 4096),
            disk.write_zeroes(0, 4096, false).map(drop),
            disk.write_zeroes(0, 4096, true).map(drop),
        ];
        for result in refused {
            assert!(matches!(result, Err(DiskError::ReadOnly { .. })), "{result:?}");
        }
        assert!(image(&disk) == pattern(LEN, 1));
        disk.flush().unwrap();
    }

    #[test]
    fn a_failed_write_names_its_call_and_range() {
        let disk = disk(&pattern(LEN, 1));
        let named = tempfile::NamedTempFile::new().unwrap();
        let disk = FileDisk { file: Arc::new(File::open(named.path()).unwrap().into()), ..disk };
        let error = disk.write(0, Memory::new(&[0; 512]).segments(), PrefetchHint::NONE).unwrap_err();
        assert_eq!(error.to_string(), "pwritev of 512 bytes at offset 0: Bad file descriptor (os error 9)");
    }

    #[test]
    fn a_flush_is_answered_at_once_when_nothing_was_written() {
        let disk = disk(&pattern(LEN, 1));
        assert!(disk.initial_writeback());
        assert!(disk.try_flush().is_none(), "a process before may have left something");
        let guest = Memory::new(&pattern(512, 2));
        let changes: [&dyn Fn() -> Result<(), DiskError>; 4] = [
            &|| disk.write(0, guest.segments(), PrefetchHint::NONE),
            &|| disk.discard(0, 4096),
            &|| disk.write_zeroes(0, 512, false).map(drop),
            &|| disk.write_zeroes(0, 4096, true).map(drop),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            disk.flush().unwrap();
            assert!(matches!(disk.try_flush(), Some(Ok(()))), "{index}");
            disk.read(0, guest.segments(), PrefetchHint::NONE).unwrap();
            assert!(matches!(disk.try_flush(), Some(Ok(()))), "a read changes nothing");
            change().unwrap();
            assert!(disk.try_flush().is_none(), "{index}");
        }
    }

    #[test]
    fn ignored_discards_keep_bytes_and_space() {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all_at(&pattern(LEN, 1), 0).unwrap();
        let disk = FileDisk::over(Arc::new(file.into()), geometry(), false).unwrap();
        disk.flush().unwrap();
        let blocks = disk.file.metadata().unwrap().blocks();
        disk.discard(0, 8192).unwrap();
        assert!(image(&disk) == pattern(LEN, 1));
        disk.write_zeroes(0, 8192, true).unwrap();
        assert!(image(&disk)[..8192] == [0; 8192]);
        assert!(disk.file.metadata().unwrap().blocks() >= blocks);
    }
}
