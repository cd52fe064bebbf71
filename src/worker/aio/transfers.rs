//! Reads and writes past the page cache that the kernel does while no thread waits for them.
//!
//! Not by io_uring, for two reasons. What has ended there is told by the thread that has submitted it, as task work: a worker's
//! thread that one disk holds up would hold up the requests of all others. And what goes through such a ring is not seen by
//! seccomp. Linux AIO tells from wherever the device's end is told, can do nothing that its callers could not do anyway, and
//! takes as much time (`tests/bench/README.md`).
//!
//! Whatever would wait in `io_submit` fails instead (`RWF_NOWAIT`), and is done by a thread of the disk's. Of devices that know of
//! no such thing, one worker at a time may wait there, and is relieved (`worker/relief.rs`).

#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::context::{Context, Operation, PREAD, PREADV, PWRITE, PWRITEV};
use crate::disk::DirectTransfer;
use crate::limits::bounds::MAX_DIRECT_TRANSFERS;

/// So many are submitted by one call.
const AT_ONCE: usize = 32;

/// What has a transfer done.
pub(in crate::worker) trait Direct {
    /// The transfer: the same each time.
    fn transfer(&self) -> Option<DirectTransfer<'_>>;
}

/// Transfers that are under way, of one worker. Others than its thread may begin some, when it was relieved.
#[derive(Debug)]
pub(in crate::worker) struct Transfers<T: Direct> {
    /// Not dropped before the last has ended: the kernel may write to what they hold.
    under_way: ManuallyDrop<UnderWay<T>>,
    /// Signalled when one has ended.
    event: EventFd,
}

/// - **A4**: what has a transfer done stays in its place, unmoved and unchanged, until that has ended: so its segments, and the
///   memory that they lie in, stay as long.
#[derive(Debug)]
struct UnderWay<T> {
    context: Context,
    places: Mutex<Places<T>>,
}

#[derive(Debug)]
struct Places<T> {
    all: Box<[Option<T>]>,
    free: Vec<usize>,
    /// Room for those that are about to be begun.
    room: Vec<T>,
}

impl<T: Direct> Transfers<T> {
    /// # Errors
    /// The kernel has no AIO for us, or no descriptor is left.
    pub(in crate::worker) fn new() -> io::Result<Self> {
        let count = u32::from(MAX_DIRECT_TRANSFERS);
        let all: Box<[Option<T>]> = (0..count).map(|_| None).collect();
        let places = Mutex::new(Places { free: (0..all.len()).collect(), all, room: Vec::new() });
        let under_way = ManuallyDrop::new(UnderWay { context: Context::new(count)?, places });
        match EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC) {
            Ok(event) => Ok(Self { under_way, event }),
            Err(error) => {
                // Nothing is under way.
                drop(ManuallyDrop::into_inner(under_way));
                Err(error)
            }
        }
    }

    /// What is signalled, and never read: to be waited for edge-triggered.
    pub(in crate::worker) const fn event(&self) -> &EventFd {
        &self.event
    }

    /// Whether some have ended. Costs two loads.
    #[inline]
    pub(in crate::worker) fn has_ended(&self) -> bool {
        self.under_way.context.has_ended()
    }

    /// Begins them, in order, and waits for that if it may. Those that cannot be begun are `left`.
    ///
    /// # Errors
    /// Why the first of these could not be begun, although there was room for it.
    pub(in crate::worker) fn begin(
        &self,
        items: impl Iterator<Item = T>,
        may_wait: bool,
        mut left: impl FnMut(T),
    ) -> io::Result<()> {
        let mut room = std::mem::take(&mut self.places().room);
        room.extend(items);
        let result = self.begin_all(&mut room, may_wait);
        room.drain(..).for_each(&mut left);
        self.places().room = room;
        result
    }

    fn begin_all(&self, items: &mut Vec<T>, may_wait: bool) -> io::Result<()> {
        while !items.is_empty() {
            let mut operations = [Operation::default(); AT_ONCE];
            let count = self.take_places(items, &mut operations, may_wait);
            if count == 0 {
                break;
            }
            let (begun, result) = self.submit(operations.get_mut(..count).unwrap_or_default());
            if begun < count {
                let refused = operations.get(begun..count).unwrap_or_default();
                let mut places = self.places();
                items.splice(0..0, refused.iter().filter_map(|operation| places.leave(operation.data)));
                return result;
            }
        }
        Ok(())
    }

    /// Puts items into places, as many as there are operations, and says what is to be done.
    fn take_places(&self, items: &mut Vec<T>, operations: &mut [Operation], may_wait: bool) -> usize {
        let mut places = self.places();
        let most = items.len().min(operations.len()).min(places.free.len());
        let mut count = 0;
        let mut refused = Vec::new();
        for item in items.drain(..most) {
            let Some(number) = places.take(item, &mut refused) else { continue };
            let transfer = places.all.get(number).and_then(|place| place.as_ref()?.transfer());
            match (transfer, operations.get_mut(count)) {
                (Some(transfer), Some(operation)) => {
                    let flags = if may_wait { 0 } else { libc::RWF_NOWAIT };
                    *operation = self.operation(&transfer, number as u64).with_flags(flags);
                    count += 1;
                }
                _ => refused.extend(places.leave(number as u64)),
            }
        }
        // They have no transfer that could be done.
        items.append(&mut refused);
        count
    }

    fn operation(&self, transfer: &DirectTransfer<'_>, data: u64) -> Operation {
        let DirectTransfer { file, offset, data: segments, is_write } = transfer;
        let (opcode, buffer, len) = match segments.as_slice() {
            [one] => (if *is_write { PWRITE } else { PREAD }, one.ptr().expose_provenance(), one.len()),
            list => (if *is_write { PWRITEV } else { PREADV }, list.as_ptr().expose_provenance(), list.len()),
        };
        let mut operation = Operation::signalling(opcode, file.as_raw_fd(), self.event.as_raw_fd());
        (operation.data, operation.buffer, operation.len) = (data, buffer as u64, len as u64);
        // One that is too large is refused by the kernel.
        operation.offset = i64::try_from(*offset).unwrap_or(-1);
        operation
    }

    /// Submits them. Returns how many are begun, and what is wrong with the next one.
    fn submit(&self, operations: &mut [Operation]) -> (usize, io::Result<()>) {
        let mut list = [std::ptr::null_mut(); AT_ONCE];
        list.iter_mut().zip(operations.iter_mut()).for_each(|(pointer, operation)| *pointer = operation);
        let count = operations.len().min(AT_ONCE);
        let mut begun = 0;
        while let Some(rest) = list.get_mut(begun..count).filter(|rest| !rest.is_empty()) {
            // SAFETY: A2, A4: what they read and write belongs to items that are in their places. Each pointer leads to one.
            match unsafe { self.under_way.context.submit(rest) } {
                Ok(0) => return (begun, Err(io::ErrorKind::WouldBlock.into())),
                Ok(more) => begun += more,
                Err(error) => return (begun, Err(error)),
            }
        }
        (begun, Ok(()))
    }

    /// Takes those that have ended, one by one, with how many bytes were transferred; none where it has failed.
    pub(in crate::worker) fn reap(&self, mut ended: impl FnMut(T, Option<usize>)) {
        loop {
            let mut places = self.places();
            // SAFETY: A3: the lock is held.
            let Some(next) = (unsafe { self.under_way.context.next_ended() }) else { return };
            let item = places.leave(next.data);
            drop(places);
            if let Some(item) = item {
                ended(item, usize::try_from(next.result).ok());
            }
        }
    }

    fn places(&self) -> MutexGuard<'_, Places<T>> {
        self.under_way.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Places<T> {
    /// Puts an item into a place; it is refused where there is none.
    fn take(&mut self, item: T, refused: &mut Vec<T>) -> Option<usize> {
        let number = self.free.pop();
        match number.and_then(|number| self.all.get_mut(number)) {
            Some(place) => *place = Some(item),
            None => refused.push(item),
        }
        number
    }

    /// Takes an item out of its place.
    fn leave(&mut self, number: u64) -> Option<T> {
        let number = usize::try_from(number).ok()?;
        let item = self.all.get_mut(number)?.take()?;
        self.free.push(number);
        Some(item)
    }
}

impl<T: Direct> Drop for Transfers<T> {
    fn drop(&mut self) {
        let places = self.places();
        let are_all_free = places.free.len() == places.all.len();
        drop(places);
        if are_all_free {
            // SAFETY: A4: nothing is under way, and this value is not used any more.
            unsafe { ManuallyDrop::drop(&mut self.under_way) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::copy::testing::{Memory, pattern};

    const BYTES: usize = 64 << 10;

    struct Whole {
        file: File,
        memory: Memory,
        offset: u64,
        is_write: bool,
    }

    impl Direct for Whole {
        fn transfer(&self) -> Option<DirectTransfer<'_>> {
            let Self { file, memory, offset, is_write } = self;
            let (file, data) = (file.as_fd(), memory.segments());
            Some(DirectTransfer { file, offset: *offset, data, is_write: *is_write })
        }
    }

    fn end_all(transfers: &Transfers<Whole>, mut count: usize) -> Vec<(Whole, Option<usize>)> {
        let mut ended = Vec::new();
        while count > 0 {
            transfers.reap(|item, bytes| {
                ended.push((item, bytes));
                count -= 1;
            });
            std::thread::yield_now();
        }
        ended
    }

    fn whole(file: &File, offset: u64, bytes: &[u8], lens: &[usize], is_write: bool) -> Whole {
        Whole {
            file: file.try_clone().unwrap(),
            memory: Memory::new(bytes).cut(0, lens, 0),
            offset,
            is_write,
        }
    }

    #[test]
    fn what_is_begun_ends_with_its_bytes_and_is_signalled() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&pattern(BYTES, 1), 0).unwrap();
        let transfers = Transfers::new().unwrap();
        // More than are submitted at once.
        let offsets: Vec<u64> = (0..70_u64).map(|number| number % 16 * 4096).collect();
        let reads = offsets.iter().map(|offset| whole(&file, *offset, &[0; 4096], &[4096], false));
        let mut items: Vec<_> = reads.collect();
        items.push(whole(&file, 512, &[0; 1536], &[512, 1024], false));
        items.push(whole(&file, BYTES as u64, &pattern(1024, 9), &[512, 512], true));
        items.push(whole(&file, 1 << 40, &[0; 512], &[512], false));
        transfers.begin(items.into_iter(), false, |_| unreachable!("there is room")).unwrap();
        let ended = end_all(&transfers, offsets.len() + 3);
        let mut is_written = false;
        for (item, bytes) in &ended {
            let Whole { memory, offset, is_write, .. } = item;
            match (*offset, *is_write) {
                (0x100_0000_0000, _) => assert_eq!(*bytes, Some(0), "behind the end"),
                // Not each file system writes without waiting for its locks.
                (_, true) => is_written = *bytes == Some(1024),
                (offset, false) => {
                    let (start, len) = (usize::try_from(offset).unwrap(), memory.bytes().len());
                    assert_eq!(*bytes, Some(len));
                    assert!(memory.bytes() == pattern(BYTES, 1)[start..start + len], "{start}");
                }
            }
        }
        assert_eq!(transfers.event().read().unwrap(), ended.len() as u64);
        let mut written = [0; 1024];
        assert_eq!(file.read_exact_at(&mut written, BYTES as u64).is_ok(), is_written);
        assert!(!is_written || written[..] == pattern(1024, 9));
    }

    #[test]
    fn what_cannot_be_begun_is_left_in_its_order() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&pattern(BYTES, 1), 0).unwrap();
        let reader = File::open("/proc/self/fd/".to_owned() + &file.as_raw_fd().to_string()).unwrap();
        let transfers = Transfers::new().unwrap();
        let items = vec![
            whole(&file, 0, &[0; 512], &[512], false),
            whole(&reader, 512, &pattern(512, 2), &[512], true),
            whole(&file, 1024, &[0; 512], &[512], false),
        ];
        let mut left = Vec::new();
        let error = transfers.begin(items.into_iter(), false, |item| left.push(item)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        assert_eq!(left.iter().map(|item| item.offset).collect::<Vec<_>>(), [512, 1024]);
        assert_eq!(end_all(&transfers, 1)[0].1, Some(512));
        // No more than there is room for.
        let room = usize::from(MAX_DIRECT_TRANSFERS);
        let many = (0..room + 2).map(|_| whole(&file, 0, &[0; 512], &[512], false));
        left.clear();
        transfers.begin(many, false, |item| left.push(item)).unwrap();
        assert_eq!(left.len(), 2);
        assert_eq!(end_all(&transfers, room).len(), room);
    }
}
