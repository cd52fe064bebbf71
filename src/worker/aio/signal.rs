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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, Once, PoisonError, TryLockError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::context::{Context, Operation, PREAD};

/// Operations at a time: one.
const DEPTH: u32 = 1;

/// A context was tried out and works: then others need not be tried.
static HAS_WORKED: AtomicBool = AtomicBool::new(false);

/// A context that makes signals, used by one thread at a time.
#[derive(Debug)]
struct Signals {
    context: Context,
    /// What is read: an eventfd, into no bytes, which is refused at once (EINVAL).
    own: EventFd,
}

impl Signals {
    /// # Errors
    /// As [`Context::new`], or the kernel does not do what is asked of it here.
    fn new() -> io::Result<Self> {
        let own = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let mut signals = Self { context: Context::new(DEPTH)?, own };
        if !HAS_WORKED.load(Ordering::Relaxed) {
            signals.try_out()?;
            HAS_WORKED.store(true, Ordering::Relaxed);
        }
        Ok(signals)
    }

    /// # Errors
    /// A signal does not arrive.
    fn try_out(&mut self) -> io::Result<()> {
        let tried = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        // More often than completions fit into the ring: each must be consumed.
        for _ in 0..1000 {
            self.signal(tried.as_raw_fd())?;
            tried.read()?;
        }
        Ok(())
    }

    #[inline]
    fn signal(&mut self, event: RawFd) -> io::Result<()> {
        let mut operation = Operation::signalling(PREAD, self.own.as_raw_fd(), event);
        // SAFETY: A2: such a read has ended when the call returns, and it has no buffer.
        let begun = unsafe { self.context.submit(&mut [&raw mut operation]) }?;
        if begun != 1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        // How the read ended does not matter.
        self.context.forget_ended();
        Ok(())
    }
}

thread_local! {
    /// The context of a thread that signals often.
    static OWN: RefCell<Option<Signals>> = const { RefCell::new(None) };
}

/// The context of all other threads, one after the other; none where the kernel has none for us.
static SHARED: LazyLock<Mutex<Option<Signals>>> = LazyLock::new(|| Mutex::new(open()));

fn open() -> Option<Signals> {
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
    Signals::new().inspect_err(told).ok()
}

/// The calling thread has a context of its own from now on, until it ends or this is dropped.
#[derive(Debug)]
pub(in crate::worker) struct OwnContext;

impl OwnContext {
    pub(in crate::worker) fn on_this_thread() -> Self {
        OWN.set(open());
        Self
    }
}

impl Drop for OwnContext {
    fn drop(&mut self) {
        OWN.set(None);
    }
}

/// Makes the context that threads without one of their own use: later there may be none to be had, as any user of the machine can
/// use up `fs.aio-max-nr`.
pub(crate) fn prepare() {
    LazyLock::force(&SHARED);
}

/// Adds one to an eventfd's counter, if there is room.
///
/// # Errors
/// There is no AIO for us; or this is no eventfd.
#[inline]
pub(in crate::worker) fn signal(event: BorrowedFd<'_>) -> io::Result<()> {
    OWN.with_borrow_mut(|own| match own {
        Some(context) => context.signal(event.as_raw_fd()),
        None => signal_by_shared(event.as_raw_fd()),
    })
}

/// With the shared context; if another thread is at a signal that takes long, with one for this signal.
fn signal_by_shared(event: RawFd) -> io::Result<()> {
    let mut shared = match SHARED.try_lock() {
        Ok(shared) => shared,
        Err(TryLockError::Poisoned(error)) => error.into_inner(),
        Err(TryLockError::WouldBlock) => match Signals::new() {
            Ok(mut context) => return context.signal(event),
            // Others have used them all up: it waits.
            Err(_) => SHARED.lock().unwrap_or_else(PoisonError::into_inner),
        },
    };
    match shared.as_mut() {
        Some(context) => context.signal(event),
        None => Err(io::ErrorKind::Unsupported.into()),
    }
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
