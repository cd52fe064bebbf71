//! Where the bytes of each page of an overlay are, and who may change that.

use std::ops::Range;
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
    /// In the overlay's memory, or file.
    Upper,
}

impl Place {
    pub(super) const fn bits(self) -> u64 {
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
pub(in crate::disk) struct Pages {
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

    /// Only who has this changes where the bytes of the page are, and of others that its word has the states of.
    pub(super) fn lock(&self, page: u64) -> MutexGuard<'_, ()> {
        let lock = usize::try_from(page / PAGES_OF_WORD % LOCKS as u64).unwrap_or(0);
        let [first, ..] = &self.locks;
        self.locks.get(lock).unwrap_or(first).lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the word that has the state of a page.
    pub(super) const fn word_of(page: u64) -> u64 {
        page / PAGES_OF_WORD
    }

    /// The first page behind those of the same word.
    pub(super) const fn end_of_word(page: u64) -> u64 {
        (page / PAGES_OF_WORD).saturating_add(1).saturating_mul(PAGES_OF_WORD)
    }

    /// The states of the pages of a word.
    pub(super) fn word(&self, word: u64) -> u64 {
        let (part, word, _) = Self::place_of(word.saturating_mul(PAGES_OF_WORD));
        let part = self.parts.get(part).and_then(OnceLock::get);
        part.and_then(|part| part.get(word)).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// The same if these pages, all of one word, were there.
    pub(super) fn word_with(&self, pages: Range<u64>, place: Place) -> u64 {
        let before = self.word(Self::word_of(pages.start));
        pages.fold(before, |states, page| {
            let (_, _, shift) = Self::place_of(page);
            states & !(3 << shift) | place.bits() << shift
        })
    }

    /// These are the states of the pages of a word, whose lock the caller has, from now on: their bytes must be there before.
    pub(super) fn set_word(&self, word: u64, states: u64) {
        let (part, word, _) = Self::place_of(word.saturating_mul(PAGES_OF_WORD));
        let Some(part) = self.parts.get(part) else { return };
        let part = part.get_or_init(|| Box::new([const { AtomicU64::new(0) }; WORDS_OF_PART]));
        if let Some(word) = part.get(word) {
            word.store(states, Ordering::Release);
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
            let place = if at % 2 == 0 { Place::Upper } else { Place::Nowhere };
            pages.set_word(Pages::word_of(page), pages.word_with(page..page + 1, place));
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
        assert_eq!(Pages::end_of_word(31), 32);
        let zeroed = pages.word_with(4..32, Place::Nowhere);
        pages.set_word(0, zeroed);
        assert_eq!((pages.place(1), pages.place(3)), (Place::Nowhere, Place::Base));
        assert_eq!(pages.place_of_all(4 * 4096, 28 * 4096), Some(Place::Nowhere));
        // One that is outside is not noted anywhere.
        pages.set_word(Pages::word_of(u64::MAX / PAGE_BYTES), u64::MAX);
        assert_eq!(pages.place(u64::MAX / PAGE_BYTES), Place::Base);
    }
}
