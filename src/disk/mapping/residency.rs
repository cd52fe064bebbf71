//! Which pages of a mapping are in memory.

#![allow(unsafe_code)]

use std::ops::Range;

use super::Mapping;

impl Mapping {
    /// Whether all of a range is before the last page: then nobody is asked how long the file is when it is read.
    #[inline]
    pub(in crate::disk) fn is_interior(&self, offset: u64, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| self.interior_at(offset, len).is_some())
    }
}

/// Asks the kernel which pages of a range, that begins with a page, are in the page cache and need not be read (`mincore(2)`):
/// the lowest bit of each answer says so. Returns the answers, as many as there is room for; none outside of the mapping.
///
/// Of a file that this process neither owns nor may write, the kernel says that all are.
pub(in crate::disk) fn residency<'a>(mapping: &Mapping, range: Range<u64>, room: &'a mut [u8]) -> &'a [u8] {
    let page_bytes = rustix::param::page_size();
    let most = (room.len() * page_bytes) as u64;
    let end = range.end.min(range.start.saturating_add(most));
    let Some((start, len)) = mapping.pages(&(range.start..end)) else { return &[] };
    let Some(answers) = room.get_mut(..len.div_ceil(page_bytes)) else { return &[] };
    // SAFETY: V1: `pages` has checked the range. R2: to ask changes no byte. There is a byte of `answers` for each page.
    match unsafe { libc::mincore(start, len, answers.as_mut_ptr()) } {
        0 => answers,
        _ => &[],
    }
}
