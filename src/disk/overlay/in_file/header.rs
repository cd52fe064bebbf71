//! How the file of an overlay tells what it is.
//!
//! ```text
//! 0         pages that were written, each at its offset; holes elsewhere
//! end       index of the process: two bits a page, in words of 8 bytes      (`end` is the disk's size in whole pages)
//! + index   index that is kept: the same, as it was with the last flush
//! + index   two headers of 4 KiB, of which the one with the higher number counts
//! ```
//!
//! All numbers are little-endian. A header is written where the older one was, so that one is whole whenever power fails; its sum
//! tells which are.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;

use crate::disk::overlay::pages::PAGE_BYTES;

const MAGIC: [u8; 16] = *b"pmem overlay\r\n\x1a\0";
const VERSION: u32 = 1;
/// What of a header is used: the fields below, and their sum.
const LEN: usize = 96;
const SUMMED: usize = LEN - 8;

/// Where the parts of the file are, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) live: u64,
    pub(super) kept: u64,
    pub(super) headers: [u64; 2],
    /// Of the file.
    pub(super) len: u64,
    /// Words of an index.
    pub(super) words: u64,
}

impl Layout {
    /// That of a disk of so many bytes; none for more than a file can have.
    pub(super) fn of(capacity_bytes: u64) -> Option<Self> {
        let pages = capacity_bytes.div_ceil(PAGE_BYTES);
        let words = pages.div_ceil(32);
        let index = words.checked_mul(8)?.checked_next_multiple_of(PAGE_BYTES)?;
        let live = pages.checked_mul(PAGE_BYTES)?;
        let kept = live.checked_add(index)?;
        let first = kept.checked_add(index)?;
        let second = first.checked_add(PAGE_BYTES)?;
        let len = second.checked_add(PAGE_BYTES)?;
        i64::try_from(len).ok()?;
        Some(Self { live, kept, headers: [first, second], len, words })
    }
}

/// Which base an overlay was made over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseStamp {
    len_bytes: u64,
    modified: (i64, i64),
}

impl BaseStamp {
    /// That of a file or device.
    pub fn of(metadata: &Metadata) -> Self {
        // A device's node is changed by all kinds of things.
        let modified = if metadata.is_file() { (metadata.mtime(), metadata.mtime_nsec()) } else { (0, 0) };
        Self { len_bytes: metadata.len(), modified }
    }

    #[cfg(test)]
    pub(super) const fn for_test(len_bytes: u64, second: i64) -> Self {
        Self { len_bytes, modified: (second, 0) }
    }

    /// Its length in bytes, and the second in which it was changed last, counted from 1970.
    pub const fn parts(&self) -> (u64, i64) {
        (self.len_bytes, self.modified.0)
    }
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The higher, the later.
    pub(super) number: u64,
    pub(super) capacity_bytes: u64,
    pub(super) base: BaseStamp,
    /// The run of the system in which the live index holds.
    pub(super) boot: [u8; 16],
}

impl Header {
    pub(super) fn to_bytes(self) -> [u8; LEN] {
        let Self { number, capacity_bytes, base, boot } = self;
        let mut fields = MAGIC.to_vec();
        fields.extend(VERSION.to_le_bytes());
        fields.extend(u32::try_from(PAGE_BYTES).unwrap_or(0).to_le_bytes());
        for word in [number, capacity_bytes, base.len_bytes] {
            fields.extend(word.to_le_bytes());
        }
        for word in [base.modified.0, base.modified.1] {
            fields.extend(word.to_le_bytes());
        }
        fields.extend(boot);
        fields.resize(SUMMED, 0);
        fields.extend(sum(&fields).to_le_bytes());
        let mut bytes = [0; LEN];
        bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        bytes
    }

    /// None if these are not one, or not whole.
    ///
    /// # Errors
    /// One of another version: its number.
    pub(super) fn of_bytes(bytes: &[u8; LEN]) -> Result<Option<Self>, u32> {
        let (fields, expected) = bytes.split_at(SUMMED);
        let mut rest = Fields(fields);
        if rest.take() != Some(MAGIC) || Some(sum(fields)) != Fields(expected).take().map(u64::from_le_bytes)
        {
            return Ok(None);
        }
        let version = rest.take().map_or(0, u32::from_le_bytes);
        let page_bytes = rest.take().map_or(0, u32::from_le_bytes);
        if version != VERSION || u64::from(page_bytes) != PAGE_BYTES {
            return Err(version);
        }
        let mut word = || rest.take().map_or(0, u64::from_le_bytes);
        let (number, capacity_bytes, len_bytes) = (word(), word(), word());
        let mut word = || rest.take().map_or(0, i64::from_le_bytes);
        let modified = (word(), word());
        let boot = rest.take().unwrap_or_default();
        Ok(Some(Self { number, capacity_bytes, base: BaseStamp { len_bytes, modified }, boot }))
    }

    pub(super) const LEN: usize = LEN;
}

/// Bytes that are taken from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }
}

/// FNV-1a of 64 bits: it tells what was written in part.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        number: 7,
        capacity_bytes: 1 << 30,
        base: BaseStamp { len_bytes: 1 << 31, modified: (-5, 999_999_999) },
        boot: [3; 16],
    };

    #[test]
    fn what_is_said_is_read_and_what_is_not_whole_is_not() {
        let bytes = HEADER.to_bytes();
        assert_eq!(Header::of_bytes(&bytes), Ok(Some(HEADER)));
        for at in 0..LEN {
            let mut torn = bytes;
            torn[at] ^= 0x40;
            assert_eq!(Header::of_bytes(&torn), Ok(None), "{at}");
        }
        assert_eq!(Header::of_bytes(&[0; LEN]), Ok(None));
    }

    #[test]
    fn another_version_is_told_from_what_is_none() {
        let mut bytes = HEADER.to_bytes();
        bytes[16] = 2;
        let expected = sum(&bytes[..SUMMED]).to_le_bytes();
        bytes[SUMMED..].copy_from_slice(&expected);
        assert_eq!(Header::of_bytes(&bytes), Err(2));
    }

    #[test]
    fn parts_follow_one_another_in_whole_pages() {
        let layout = Layout::of((1 << 30) + 512).unwrap();
        let (live, index) = ((1 << 30) + 4096, (64 << 10) + 4096);
        assert_eq!((layout.live, layout.kept, layout.words), (live, live + index, 8193));
        assert_eq!(layout.headers, [live + 2 * index, live + 2 * index + 4096]);
        assert_eq!(layout.len, live + 2 * index + 8192);
        assert_eq!(Layout::of(u64::MAX), None);
    }
}
