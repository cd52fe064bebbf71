//! A signal to an eventfd that cannot block, whatever its other end has done to it.
//!
//! A write to an eventfd blocks while its counter is full (eventfd(2)), and a front-end that shares it decides that: it can
//! fill the counter and clear `O_NONBLOCK`, which is a flag of the open file that both share. To ask poll(2) first leaves a
//! gap. A signal that the kernel itself makes never blocks, and a full counter stays full. So we submit a read by Linux AIO
//! that fails at once, and have its end signalled to the eventfd (`IOCB_FLAG_RESFD`, which takes nothing but eventfds).

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex, Once, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// `IOCB_CMD_PREAD`, `IOCB_FLAG_RESFD` (`linux/aio_abi.h`).
const PREAD: u16 = 0;
const RESFD: u32 = 1;

/// How the kernel marks a ring of completions that user space may read.
const RING_MAGIC: u32 = 0xa10a_10a1;

/// Operations at a time: one.
const DEPTH: libc::c_long = 1;

/// `struct iocb` of little- and big-endian machines alike, but for the order of `key` and `rw_flags`, which are zero.
#[repr(C, align(8))]
#[derive(Debug, Default)]
struct Operation {
    data: u64,
    key_and_rw_flags: u64,
    opcode: u16,
    priority: i16,
    fd: RawFd,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    signalled: RawFd,
}
const _: () = assert!(size_of::<Operation>() == 64);

/// The head of `struct aio_ring`, which the kernel maps where the context's number says.
#[repr(C)]
struct Completions {
    id: u32,
    count: u32,
    head: AtomicU32,
    tail: AtomicU32,
    magic: u32,
    compatible: u32,
    incompatible: u32,
    header_bytes: u32,
}

/// A context was tried out and works: then others need not be tried.
static HAS_WORKED: AtomicBool = AtomicBool::new(false);

/// An AIO context, used by one thread at a time.
///
/// - **A1**: its number, and the ring of completions that is mapped there, are good from `io_setup` until `io_destroy` in the drop.
/// - **A2**: an operation is done with when `io_submit` returns, as such a read has ended by then; it has no buffer.
#[derive(Debug)]
struct Context {
    /// Its number, which is also where its ring of completions is.
    id: usize,
    /// What is read: an eventfd, into no bytes, which is refused at once (EINVAL).
    own: EventFd,
    operation: Box<Operation>,
}

impl Context {
    /// # Errors
    /// The kernel has no AIO, or no room for a context (`fs.aio-max-nr`), or it does not do what is asked of it here.
    fn new() -> io::Result<Self> {
        let own = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let operation = Box::new(Operation { opcode: PREAD, flags: RESFD, ..Operation::default() });
        let mut id: usize = 0;
        // SAFETY: A1: the kernel writes the number to a place that is ours.
        if unsafe { libc::syscall(libc::SYS_io_setup, DEPTH, &raw mut id) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut context = Self { id, own, operation };
        let Completions { magic, incompatible, .. } = context.completions();
        if (*magic, *incompatible) != (RING_MAGIC, 0) {
            return Err(io::Error::other("its ring of completions is of another kind"));
        }
        if !HAS_WORKED.load(Ordering::Relaxed) {
            context.try_out()?;
            HAS_WORKED.store(true, Ordering::Relaxed);
        }
        Ok(context)
    }

    /// # Errors
    /// A signal does not arrive.
    fn try_out(&mut self) -> io::Result<()> {
        let tried = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        // More often than completions fit into the ring: each must be consumed.
        for _ in 0..DEPTH.saturating_mul(1000) {
            self.signal(tried.as_raw_fd())?;
            tried.read()?;
        }
        Ok(())
    }

    fn completions(&self) -> &Completions {
        let place: *const Completions = std::ptr::with_exposed_provenance(self.id);
        // SAFETY: A1: page-aligned and longer than that. What the kernel changes in it is atomic.
        unsafe { &*place }
    }

    #[inline]
    fn signal(&mut self, event: RawFd) -> io::Result<()> {
        self.operation.fd = self.own.as_raw_fd();
        self.operation.signalled = event;
        let mut operation: *mut Operation = &raw mut *self.operation;
        // SAFETY: A2: one operation, which is borrowed.
        let done = unsafe { libc::syscall(libc::SYS_io_submit, self.id, 1_usize, &raw mut operation) };
        if done != 1 {
            return Err(io::Error::last_os_error());
        }
        // Consumes the completion; how the read ended does not matter.
        let ring = self.completions();
        ring.head.store(ring.tail.load(Ordering::Acquire), Ordering::Release);
        Ok(())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: A1: nothing uses its ring any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}

thread_local! {
    /// The context of a thread that signals often.
    static OWN: RefCell<Option<Context>> = const { RefCell::new(None) };
}

/// The context of all other threads; none where the kernel has none for us.
static SHARED: LazyLock<Mutex<Option<Context>>> = LazyLock::new(|| Mutex::new(open()));

fn open() -> Option<Context> {
    static TOLD: Once = Once::new();
    let told = |error: &io::Error| {
        TOLD.call_once(|| {
            tracing::warn!(
                %error,
                "no asynchronous I/O to call drivers with: a front-end that fills its own counter at the wrong moment can \
                 hold up the disks of its worker; raise fs.aio-max-nr, or allow io_setup and io_submit"
            );
        });
    };
    Context::new().inspect_err(told).ok()
}

/// The calling thread has a context of its own from now on, until it ends or this is dropped.
#[derive(Debug)]
pub(super) struct OwnContext;

impl OwnContext {
    pub(super) fn on_this_thread() -> Self {
        OWN.set(open());
        Self
    }
}

impl Drop for OwnContext {
    fn drop(&mut self) {
        OWN.set(None);
    }
}

/// Adds one to an eventfd's counter, if there is room.
///
/// # Errors
/// There is no AIO for us; or this is no eventfd.
#[inline]
pub(super) fn signal(event: BorrowedFd<'_>) -> io::Result<()> {
    OWN.with_borrow_mut(|own| match own {
        Some(context) => context.signal(event.as_raw_fd()),
        None => match SHARED.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(context) => context.signal(event.as_raw_fd()),
            None => Err(io::ErrorKind::Unsupported.into()),
        },
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn count(event: BorrowedFd<'_>) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(event, &mut count).unwrap();
        u64::from_ne_bytes(count)
    }

    #[test]
    fn each_signal_counts_and_a_full_counter_stays_full() {
        for own in [false, true] {
            let _own = own.then(OwnContext::on_this_thread);
            // Blocking: a write would not come back.
            let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            (0..1000).for_each(|_| signal(event.as_fd()).unwrap());
            assert_eq!(count(event.as_fd()), 1000);
            rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            (0..3).for_each(|_| signal(event.as_fd()).unwrap());
            assert!(count(event.as_fd()) >= u64::MAX - 1);
            signal(event.as_fd()).unwrap();
            assert_eq!(count(event.as_fd()), 1, "and once it is read, it counts again");
        }
    }

    #[test]
    fn nothing_else_is_taken_for_an_eventfd() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let (pipe, _other) = io::pipe().unwrap();
        assert!(signal(null.as_fd()).is_err() && signal(pipe.as_fd()).is_err());
    }

    #[test]
    fn threads_without_a_context_of_their_own_share_one() {
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| signal(event.as_fd()).unwrap()));
            }
        });
        assert_eq!(count(event.as_fd()), 4000);
    }
}
