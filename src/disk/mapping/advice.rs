//! What the kernel is told of a mapping's pages. No byte changes by it.

use std::ffi::c_void;
use std::io;

use rustix::mm::Advice;

/// `madvise(2)`: gather pages into huge ones now (Linux 6.1).
const MADV_COLLAPSE: libc::c_int = 25;

/// Address and length of pages that a mapping of a file has answered; none if there are none.
type Pages = Option<(*mut c_void, usize)>;

/// Gives an advice that changes no byte.
///
/// # Errors
/// The error of `madvise(2)`.
pub(super) fn advise(pages: Pages, advice: Advice) -> io::Result<()> {
    let Some((start, len)) = pages else { return Ok(()) };
    // SAFETY: V1: the mapping has checked the range. R2: what was stored there is in the file, and neither lost nor changed.
    unsafe { rustix::mm::madvise(start, len, advice) }.map_err(Into::into)
}

/// Collapses pages into huge ones.
///
/// # Errors
/// The error of `madvise(2)`.
pub(super) fn collapse(pages: Pages) -> io::Result<()> {
    let Some((start, len)) = pages else { return Ok(()) };
    // SAFETY: V1: the mapping has checked the range. R2: collapsing changes no byte.
    match unsafe { libc::madvise(start, len, MADV_COLLAPSE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
