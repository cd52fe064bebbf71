//! Faults of memory that is not there any more, or bad: contained where they happen.
//!
//! The kernel reports them as `SIGBUS` (a truncated file, a full file system, a bad cell) in the thread that
//! touched the memory. Three things can be done:
//!
//! 1. The fault is in one of the copy routines: it goes on at its fix-up, which returns how much is missing. Guest memory
//!    that its front-end has taken away is marked as lost besides; of a page that went bad only who needs it is told.
//! 2. It is elsewhere, but in guest memory: somebody reads a ring, or marks a page in a dirty log. The range is marked
//!    as lost ([`WatchedRange::has_faulted`]), so that its owner stops using it, and zeroes are put in place of all of
//!    it. That is never done over the media: a guest would read zeroes that it did not write.
//! 3. It is foreign: the handler that was installed before gets it, or the default action happens.
//!
//! The handler takes no lock and allocates nothing: it reads constants, atomics of static tables and what the
//! kernel hands to it, and makes a few system calls at most. It runs on the thread's alternate stack
//! ([`AltStack`]), with the signal blocked: a fault in the handler itself ends the process.
//!
//! And memory may be taken away again and again while a copy goes on: then another thread has that [ended](interruption).
//!
//! Guest memory that is not there *yet* is another matter: who touches it waits ([`Userfault`]).
//!
//! What `unsafe` here relies on:
//!
//! - **F1**: what the handler is called with is the kernel's, good until it returns, and this call's alone: it is installed
//!   with `SA_SIGINFO`, and nobody else calls it (`signal_chaining`).
//! - **F2**: `errno` has a place in every thread, and the handler leaves it as it has found it.
//! - **F3**: a range that is registered as guest memory consists of whole pages that stay mapped until it is dropped; no Rust
//!   reference leads there but to atomics; the spare bytes before it are used by nobody. Who registers it guarantees that
//!   ([`WatchedRange::guest`]).
//! - **F4**: `sigaction`, `stack_t` and `rusage` of all zeroes are valid ones, and each call reads or writes one of them, or none.
//! - **F5**: the mapping of an [`AltStack`] is its own from when it is made until it is dropped.
//! - **F6**: an ioctl of userfaultfd(2) reads and writes the structure that its opcode names, and changes when memory
//!   answers, not what.
//! - **F7**: what a thread's `interruption::CURRENT` points to is kept by the guard that has set it, which sets it to null when it is
//!   dropped, on that thread.

#![allow(unsafe_code)]

pub mod action_optional;
mod alt_stack;
pub mod interruption;
mod ranges;
mod signal_chaining;
mod userfault;

use std::ffi::{c_int, c_void};
use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;

pub use alt_stack::AltStack;
#[cfg(test)]
pub(super) use ranges::offset_in_media;
pub use ranges::{WatchedRange, losses};
pub use userfault::Userfault;

/// `si_code` of a `SIGBUS` that only says that a page has gone bad: nothing has touched it yet.
const BUS_MCEERR_AO: c_int = 5;

/// `si_code` of a `SIGBUS` of a page that its file does not have: it was truncated, or there is no room for the page.
const BUS_ADRERR: c_int = 2;

/// Contains faults from now on, in the whole process. Once is enough; to do it again does no harm, and is needed on
/// threads that this one has not started: there the signals may be blocked.
///
/// `SIGXFSZ` is ignored from then on unless somebody handles it: what would make a file longer than this process may
/// (`ulimit -f`) is an error then (`EFBIG`), and not the end of all disks.
///
/// # Errors
/// The error of `sigaction` or `pthread_sigmask`, which have no reason to fail.
pub fn install() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*installed {
        signal_chaining::install(on_fault)?;
        signal_chaining::ignore(libc::SIGXFSZ)?;
        *installed = true;
    }
    signal_chaining::unblock()
}

/// The handler.
extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: F1: what the kernel says of the signal.
    let what = unsafe { &*info };
    // SAFETY: F1: some bytes are always there; they are an address where the code says that it is a fault.
    let (code, address) = (what.si_code, unsafe { what.si_addr() }.addr());
    let is_about_bad_page = signal == libc::SIGBUS && code == BUS_MCEERR_AO;
    // A signal that a process has sent says nothing about the instruction that it interrupts.
    let is_of_instruction = code > 0 && !is_about_bad_page;
    // SAFETY: F1: the context is passed on.
    if is_of_instruction && unsafe { mend(context) } {
        if signal == libc::SIGBUS && code == BUS_ADRERR {
            ranges::note_lost(address);
        }
        return;
    }
    if signal == libc::SIGBUS && is_of_instruction && ranges::replace_lost(address) {
        return;
    }
    if is_about_bad_page && ranges::is_watched(address) {
        // Nothing has touched the page yet. A thread that listens can keep others away from it.
        action_optional::record(address);
        return;
    }
    // SAFETY: F1: all three are passed on.
    let was_handled = unsafe { signal_chaining::pass_on(signal, info, context, is_of_instruction) };
    if was_handled && !is_of_instruction {
        signal_chaining::stay(signal, on_fault);
    }
}

/// Lets the interrupted routine go on at its fix-up, if it is one of ours.
///
/// # Safety
/// `context` is what the kernel handed to the handler.
#[cfg(target_arch = "x86_64")]
unsafe fn mend(context: *mut c_void) -> bool {
    // SAFETY: F1: the context is passed on.
    unsafe { go_on(context, super::x86_64::kernels::fixup_of) }
}

/// Lets the interrupted routine go on where this says, if it knows the instruction.
///
/// # Safety
/// `context` is what the kernel handed to the handler.
#[cfg(target_arch = "x86_64")]
unsafe fn go_on(context: *mut c_void, at: fn(usize) -> Option<usize>) -> bool {
    const RIP: usize = libc::REG_RIP as usize;
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: F1: the registers, which the kernel loads when the handler returns.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let Some(ip) = registers.get_mut(RIP) else { return false };
    let address = usize::try_from(ip.cast_unsigned()).ok();
    let Some(place) = address.and_then(at) else { return false };
    *ip = (place as u64).cast_signed();
    true
}

/// There are no routines with fix-ups.
#[cfg(not(target_arch = "x86_64"))]
const unsafe fn mend(_context: *mut c_void) -> bool {
    false
}
