//! A stack for the handler.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::null_mut;

/// More than a signal frame of any x86_64 (11 KiB with AMX), our handler and one that it calls.
const STACK_BYTES: usize = 64 << 10;

/// Below it, so that running over the end is a fault and nothing worse.
const GUARD_BYTES: usize = 64 << 10;

/// The alternate signal stack of the thread that made it; given back when dropped, on that thread.
///
/// The standard library gives one to each thread it starts, if it handles stack overflows: in a Rust program
/// it does, and [`on_this_thread`](Self::on_this_thread) then has nothing to do. Its stack is as large as the
/// kernel asks for this CPU's registers and at least 8 KiB, of which our handler needs less than 1. In another
/// program that embeds this library it may not be so.
#[derive(Debug)]
pub struct AltStack {
    base: *mut c_void,
    /// It belongs to one thread.
    not_send: PhantomData<*mut ()>,
}

impl AltStack {
    /// Gives this thread an alternate stack. `None` if it has one, or there is no memory: the handler
    /// then runs on the stack of the thread, which does as well unless that has overflowed.
    pub fn on_this_thread() -> Option<Self> {
        let mut current = MaybeUninit::<libc::stack_t>::zeroed();
        // SAFETY: F4: there is no new stack, and room for what the kernel says of the present one.
        let asked = unsafe { libc::sigaltstack(std::ptr::null(), current.as_mut_ptr()) };
        // SAFETY: F4: all zeroes are a stack_t already.
        let current = unsafe { current.assume_init() };
        if asked != 0 || current.ss_flags & libc::SS_DISABLE == 0 {
            return None;
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
        let total = GUARD_BYTES + STACK_BYTES;
        // SAFETY: F5: the kernel chooses an address that is free.
        let base = unsafe { libc::mmap(null_mut(), total, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return None;
        }
        let this = Self { base, not_send: PhantomData };
        let stack = base.wrapping_byte_add(GUARD_BYTES);
        // SAFETY: F5: this part of our own mapping, which nobody uses yet.
        let opened = unsafe { libc::mprotect(stack, STACK_BYTES, libc::PROT_READ | libc::PROT_WRITE) };
        let new = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: STACK_BYTES };
        // SAFETY: F5: the memory stays until the guard is dropped, which takes it back first.
        let set = opened == 0 && unsafe { libc::sigaltstack(&raw const new, null_mut()) } == 0;
        set.then_some(this)
    }
}

impl Drop for AltStack {
    fn drop(&mut self) {
        let none = libc::stack_t { ss_sp: null_mut(), ss_flags: libc::SS_DISABLE, ss_size: STACK_BYTES };
        // SAFETY: F4: no memory is given; if another stack was set since, it was not by us and goes as well.
        unsafe { libc::sigaltstack(&raw const none, null_mut()) };
        // SAFETY: F5: it is no signal stack any more.
        unsafe { libc::munmap(self.base, GUARD_BYTES + STACK_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn current() -> libc::stack_t {
        let mut current = MaybeUninit::<libc::stack_t>::zeroed();
        // SAFETY: there is no new stack, and room for the present one.
        assert_eq!(unsafe { libc::sigaltstack(std::ptr::null(), current.as_mut_ptr()) }, 0);
        // SAFETY: filled by the call.
        unsafe { current.assume_init() }
    }

    /// What the documentation says of the standard library.
    #[test]
    fn threads_of_the_standard_library_have_a_stack_that_suffices() {
        std::thread::Builder::new()
            .spawn(|| {
                assert!(AltStack::on_this_thread().is_none());
                let stack = current();
                assert_eq!(stack.ss_flags & libc::SS_DISABLE, 0);
                // SAFETY: no memory is involved.
                let minimum = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
                assert!(stack.ss_size >= minimum.max(8192), "{} of {minimum}", stack.ss_size);
            })
            .unwrap()
            .join()
            .unwrap();
    }

    #[test]
    fn a_thread_without_one_gets_one_until_the_guard_is_dropped() {
        std::thread::spawn(|| {
            let library = current();
            let none = libc::stack_t { ss_flags: libc::SS_DISABLE, ..library };
            // SAFETY: no memory is given; the library's stack is set again below.
            assert_eq!(unsafe { libc::sigaltstack(&raw const none, null_mut()) }, 0);
            let guard = AltStack::on_this_thread().unwrap();
            assert_eq!((current().ss_flags, current().ss_size), (0, STACK_BYTES));
            assert!(AltStack::on_this_thread().is_none());
            drop(guard);
            assert_eq!(current().ss_flags, libc::SS_DISABLE);
            // SAFETY: the library's own stack, which it keeps for the thread's life.
            assert_eq!(unsafe { libc::sigaltstack(&raw const library, null_mut()) }, 0);
        })
        .join()
        .unwrap();
    }
}
