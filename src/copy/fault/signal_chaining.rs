//! Signal chaining: the handlers that were installed before ours get the signals that are not ours.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use vmm_sys_util::signal::unblock_signal;

/// A handler with three arguments.
type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// A handler with one.
type PlainHandler = extern "C" fn(c_int);

/// Whose handlers are replaced.
const SIGNALS: [c_int; 2] = [libc::SIGBUS, libc::SIGSEGV];

/// What was there before, in the order of [`SIGNALS`]. Complete before our handler can run.
static FORMER: OnceLock<[libc::sigaction; 2]> = OnceLock::new();

/// Puts `handler` in place of what is there.
pub(super) fn install(handler: Handler) -> io::Result<()> {
    let [bus, segv] = SIGNALS.map(|signal| change(signal, None));
    let former = [bus?, segv?];
    FORMER.get_or_init(|| former);
    let action = action_of(handler);
    for signal in SIGNALS {
        change(signal, Some(&action))?;
    }
    Ok(())
}

pub(super) fn action_of(handler: Handler) -> libc::sigaction {
    // SAFETY: F4: all zeroes is a sigaction: the default action, no flags, no mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler as *const () as usize;
    // Not SA_NODEFER: a fault in the handler is a mistake of ours, and the kernel ends the process then.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    action
}

/// Puts `handler` back if the former one, called for a signal that somebody has sent, has given itself up for the
/// default action. Rust's own does: it expects the fault to come again, which a signal that was sent does not, and
/// the next fault of a guest's memory would end the process.
pub(super) fn stay(signal: c_int, handler: Handler) {
    if change(signal, None).is_ok_and(|now| now.sa_sigaction == libc::SIG_DFL) {
        // It cannot fail for a signal that was handled before.
        let _ = change(signal, Some(&action_of(handler)));
    }
}

/// Has a signal that nobody handles ignored from now on.
pub(super) fn ignore(signal: c_int) -> io::Result<()> {
    let mut action = change(signal, None)?;
    if action.sa_sigaction == libc::SIG_DFL {
        action.sa_sigaction = libc::SIG_IGN;
        change(signal, Some(&action))?;
    }
    Ok(())
}

/// Lets the signals reach the handler on this thread and those that it starts. A mask is inherited through exec, and a
/// fault whose signal is blocked ends the process, whoever would have handled it.
pub(super) fn unblock() -> io::Result<()> {
    for signal in SIGNALS {
        unblock_signal(signal).map_err(|error| io::Error::other(error.to_string()))?;
    }
    Ok(())
}

/// Does what would have been done without us. `is_of_instruction`: on return it faults again. Returns whether a
/// handler was called.
///
/// The former handler runs with our mask (the signal itself) and on our stack.
///
/// # Safety
/// The arguments are the ones that the kernel handed to the handler.
pub(super) unsafe fn pass_on(
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
    is_of_instruction: bool,
) -> bool {
    // There always is one: it is set before the handler is.
    let former = FORMER.get().map(|[bus, segv]| if signal == libc::SIGBUS { bus } else { segv });
    let Some(former) = former else {
        default_action(signal, is_of_instruction);
        return false;
    };
    match former.sa_sigaction {
        libc::SIG_IGN if !is_of_instruction => false,
        // The kernel does not let a fault be ignored either.
        libc::SIG_DFL | libc::SIG_IGN => {
            default_action(signal, is_of_instruction);
            false
        }
        _ => {
            // SAFETY: F1: all three are passed on.
            unsafe { call(former, signal, info, context) };
            true
        }
    }
}

/// Calls the handler that was there before, if there was one.
///
/// # Safety
/// The last three arguments are the ones that the kernel handed to the handler.
pub(super) unsafe fn call(
    former: &libc::sigaction,
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
) {
    match former.sa_sigaction {
        libc::SIG_IGN | libc::SIG_DFL => {}
        function if former.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: F1: whoever installed it said by the flag that it takes three arguments, and gets ours.
            let function = unsafe { std::mem::transmute::<usize, Handler>(function) };
            function(signal, info, context);
        }
        function => {
            // SAFETY: F1: whoever installed it said by the missing flag that it takes one argument.
            let function = unsafe { std::mem::transmute::<usize, PlainHandler>(function) };
            function(signal);
        }
    }
}

/// Restores the default action, which then happens: by the same fault, or sent again. It is blocked until the
/// handler returns.
fn default_action(signal: c_int, is_of_instruction: bool) {
    // SAFETY: F4: all zeroes is a sigaction: the default action, no flags, no mask.
    let action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: F4: a valid action; the former one is not asked for.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if !is_of_instruction {
        // SAFETY: F4: no memory is involved.
        unsafe { libc::raise(signal) };
    }
}

/// Asks for a signal's action, and sets it if there is a new one.
pub(super) fn change(signal: c_int, new: Option<&libc::sigaction>) -> io::Result<libc::sigaction> {
    let mut former = MaybeUninit::zeroed();
    let new = new.map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: F4: `new` is null or an action; `former` has room for one.
    if unsafe { libc::sigaction(signal, new, former.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F4: all zeroes was an action already, and the call has filled it.
    Ok(unsafe { former.assume_init() })
}
