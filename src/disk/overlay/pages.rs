//! Where the bytes of each page of an overlay are, and who may change that.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// What is copied, or given back, at once.
pub(super) const PAGE_BYTES: u64 = PAGE as u64;
/// The same, of memory.
pub(super) const PAGE: usize = 4096;

/// Pages that one word has the states of, two bits each.
const PAGES_OF_WORD: u64 = 32;
/// Words that are allocated together: the states of 64 MiB in 4 KiB.
const WORDS_OF_PART: usize = 512;
/// Locks of pages. Two pages may have the same one.
const LOCKS: usize = 64;

/// Where the bytes of a page are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the base: nothing was written.
    Base,
    /// Nowhere: it reads as zeroes.
    Nowhere,
    /// In the overlay's memory.
    Upper,
}

impl Place {
    const fn bits(self) -> u64 {
        match self {
            Self::Base => 0,
            Self::Nowhere => 1,
            Self::Upper => 2,
        }
    }

    const fn of(bits: u64) -> Self {
        match bits {
            0 => Self::Base,
            1 => Self::Nowhere,
            _ => Self::Upper,
        }
    }
}

type Part = Box<[AtomicU64; WORDS_OF_PART]>;

/// Where the bytes of each page are. Nothing is allocated for parts that nobody has written to.
#[derive(Debug)]
pub(super) struct Pages {
    parts: Box<[OnceLock<Part>]>,
    locks: [Mutex<()>; LOCKS],
}

impl Pages {
    /// For a disk of so many bytes, all of them in the base.
    pub(super) fn new(capacity_bytes: u64) -> Self {
        let words = capacity_bytes.div_ceil(PAGE_BYTES * PAGES_OF_WORD);
        let parts = usize::try_from(words).unwrap_or(usize::MAX).div_ceil(WORDS_OF_PART);
        Self {
            parts: (0..parts).map(|_| OnceLock::new()).collect(),
            locks: std::array::from_fn(|_| Mutex::new(())),
        }
    }

    fn place_of(page: u64) -> (usize, usize, u32) {
        let word = page / PAGES_OF_WORD;
        let part = usize::try_from(word / WORDS_OF_PART as u64).unwrap_or(usize::MAX);
        // Both are remainders of small numbers.
        let (word, shift) = ((word % WORDS_OF_PART as u64) as usize, (page % PAGES_OF_WORD) as u32 * 2);
        (part, word, shift)
    }

    /// Where the bytes of a page are; outside of the disk, in the base, which refuses them.
    #[inline]
    pub(super) fn place(&self, page: u64) -> Place {
        let (part, word, shift) = Self::place_of(page);
        let Some(part) = self.parts.get(part).and_then(OnceLock::get) else { return Place::Base };
        let bits = part.get(word).map_or(0, |word| word.load(Ordering::Acquire));
        Place::of(bits >> shift & 3)
    }

    /// Where the bytes of a range are, if they are all in the same place.
    #[inline]
    pub(super) fn place_of_all(&self, offset: u64, len: u64) -> Option<Place> {
        let (first, last) = (offset / PAGE_BYTES, offset.saturating_add(len.saturating_sub(1)) / PAGE_BYTES);
        let place = self.place(first);
        (first.saturating_add(1)..=last).all(|page| self.place(page) == place).then_some(place)
    }

    /// Only who has this changes where the bytes of the page are.
    pub(super) fn lock(&self, page: u64) -> MutexGuard<'_, ()> {
        let lock = usize::try_from(page % LOCKS as u64).unwrap_or(0);
        let [first, ..] = &self.locks;
        self.locks.get(lock).unwrap_or(first).lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes of the page, whose lock the caller has, are there from now on; they must be there before.
    pub(super) fn set(&self, page: u64, place: Place) {
        let (part, word, shift) = Self::place_of(page);
        let Some(part) = self.parts.get(part) else { return };
        let part = part.get_or_init(|| Box::new([const { AtomicU64::new(0) }; WORDS_OF_PART]));
        let Some(word) = part.get(word) else { return };
        let with = |bits: u64| bits & !(3 << shift) | place.bits() << shift;
        // Other pages of the word change meanwhile.
        let mut before = word.load(Ordering::Relaxed);
        while let Err(now) =
            word.compare_exchange_weak(before, with(before), Ordering::Release, Ordering::Relaxed)
        {
            before = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_has_a_place_of_its_own() {
        let pages = Pages::new(130 << 20);
        assert_eq!(pages.place(u64::MAX), Place::Base);
        let written = [0, 1, 31, 32, 16_383, 16_384, (130 << 8) - 1];
        for (at, page) in written.into_iter().enumerate() {
            let _lock = pages.lock(page);
            pages.set(page, if at % 2 == 0 { Place::Upper } else { Place::Nowhere });
        }
        for page in 0..130 << 8 {
            let expected = match written.iter().position(|it| *it == page) {
                Some(at) if at % 2 == 0 => Place::Upper,
                Some(_) => Place::Nowhere,
                None => Place::Base,
            };
            assert_eq!(pages.place(page), expected, "{page}");
        }
        assert_eq!(pages.place_of_all(0, 4096), Some(Place::Upper));
        assert_eq!(pages.place_of_all(4095, 2), None);
        assert_eq!(pages.place_of_all(8192, 20_000), Some(Place::Base));
        assert_eq!(pages.place_of_all(8192, 0), Some(Place::Base));
        // One that is outside is not noted anywhere.
        pages.set(u64::MAX / PAGE_BYTES, Place::Upper);
        assert_eq!(pages.place(u64::MAX / PAGE_BYTES), Place::Base);
    }
}
