//! Which pages of an overlay's file were written: twice, so that the end of the process and that of the machine lose nothing.
//!
//! The *live* index is written before a change is seen: a process that ends leaves it in the page cache, exact. The file system may
//! have it on media before the pages that it tells of, so that it is not believed once the machine has been started anew. The
//! *kept* one is: a flush writes it when all pages that it will tell of are safe, and is answered when it is safe itself.
//! Each word of 8 bytes holds by itself, so that no order among them matters.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::header::Layout;
use crate::disk::overlay::pages::{PAGE_BYTES, Pages, Place};

/// Words that are read or written at once.
const WORDS_AT_ONCE: usize = 8192;

/// A file, as far as an index needs one.
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// # Errors
    /// Those of `pread(2)`; the file is shorter.
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;

    /// # Errors
    /// Those of `pwrite(2)`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes sure that a part can be written later.
    ///
    /// # Errors
    /// Those of `fallocate(2)`.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Whether a part has bytes of its own, and is no hole.
    fn has_bytes(&self, offset: u64, len: u64) -> bool;

    /// # Errors
    /// That of `fstat(2)`.
    fn len(&self) -> io::Result<u64>;

    /// What was written is safe when it returns.
    ///
    /// # Errors
    /// Those of `fdatasync(2)`.
    fn sync(&self) -> io::Result<()>;
}

/// Both of them.
#[derive(Debug)]
pub(super) struct Index<S> {
    store: S,
    layout: Layout,
    /// Words that the kept index does not have as they are.
    changed: Mutex<BTreeSet<u64>>,
    /// Pages of the indices that have their space.
    allocated: Mutex<BTreeSet<u64>>,
    /// Held by who writes the kept one.
    keeping: Mutex<()>,
}

impl<S: Store> Index<S> {
    pub(super) fn new(store: S, layout: Layout) -> Self {
        let (changed, allocated, keeping) = Default::default();
        Self { store, layout, changed, allocated, keeping }
    }

    pub(super) const fn store(&self) -> &S {
        &self.store
    }

    /// Reads what is true of both, into `pages` of which none was written: the live index, if the system has run all the time, and
    /// otherwise the kept one, which the live one is made to say then.
    ///
    /// # Errors
    /// Those of the file.
    pub(super) fn load(&self, pages: &Pages, is_live: bool) -> io::Result<()> {
        let mut first = 0;
        while first < self.layout.words {
            let count = (self.layout.words - first).min(WORDS_AT_ONCE as u64);
            let (live, kept) =
                (self.read(self.layout.live, first, count)?, self.read(self.layout.kept, first, count)?);
            for ((word, live), kept) in (first..).zip(live).zip(kept) {
                let is = if is_live { self.checked(word, live, kept) } else { kept };
                if is != live {
                    self.store.write_at(&is.to_le_bytes(), at(self.layout.live, word))?;
                }
                if is != 0 {
                    pages.set_word(word, is);
                }
                if is != kept {
                    lock(&self.changed).insert(word);
                }
            }
            first += count;
        }
        Ok(())
    }

    /// A word of the live index, as far as it can be true: a page that was written has bytes. If a file system has lost what it had
    /// not written, the machine need not have.
    fn checked(&self, word: u64, live: u64, kept: u64) -> u64 {
        (0..32).fold(live, |states, page| {
            let (mask, number) = (3 << (2 * page), word.saturating_mul(32).saturating_add(page));
            let is_written = live & mask == Place::Upper.bits() << (2 * page) && live & mask != kept & mask;
            let is_there = || self.store.has_bytes(number.saturating_mul(PAGE_BYTES), PAGE_BYTES);
            if is_written && !is_there() { states & !mask | kept & mask } else { states }
        })
    }

    fn read(&self, part: u64, first: u64, count: u64) -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; usize::try_from(count.saturating_mul(8)).unwrap_or(0)];
        self.store.read_at(&mut bytes, at(part, first))?;
        Ok(bytes.as_chunks().0.iter().map(|word| u64::from_le_bytes(*word)).collect())
    }

    /// A word is about to be this. Neither this nor the flush that keeps it needs more space from then on.
    ///
    /// # Errors
    /// Those of the file; nothing has changed then.
    pub(super) fn note(&self, word: u64, states: u64) -> io::Result<()> {
        let page = word.saturating_mul(8) / PAGE_BYTES;
        if !lock(&self.allocated).contains(&page) {
            for part in [self.layout.live, self.layout.kept] {
                self.store.allocate(part.saturating_add(page.saturating_mul(PAGE_BYTES)), PAGE_BYTES)?;
            }
            lock(&self.allocated).insert(page);
        }
        self.store.write_at(&states.to_le_bytes(), at(self.layout.live, word))
    }

    /// Has a word changed: who sees what `set` does finds that the word is to be kept.
    pub(super) fn change(&self, word: u64, set: impl FnOnce()) {
        let mut changed = lock(&self.changed);
        changed.insert(word);
        set();
    }

    /// Whether the kept index is as it should be.
    pub(super) fn is_kept(&self) -> bool {
        lock(&self.changed).is_empty() && self.keeping.try_lock().is_ok()
    }

    /// Keeps all changes before this, once `sync_pages` has made the pages safe.
    ///
    /// # Errors
    /// Those of `sync_pages`, and of the file; the next flush tries it again.
    pub(super) fn keep<E: From<io::Error>>(
        &self,
        states: impl Fn(u64) -> u64,
        sync_pages: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let _keeping = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        let states: Vec<(u64, u64)> = {
            let mut changed = lock(&self.changed);
            std::mem::take(&mut *changed).into_iter().map(|word| (word, states(word))).collect()
        };
        let kept = sync_pages().and_then(|()| Ok(self.write_kept(&states)?));
        if kept.is_err() {
            lock(&self.changed).extend(states.iter().map(|(word, _)| word));
        }
        kept
    }

    fn write_kept(&self, states: &[(u64, u64)]) -> io::Result<()> {
        if states.is_empty() {
            return Ok(());
        }
        for run in states.chunk_by(|(before, _), (word, _)| before.saturating_add(1) == *word) {
            let bytes: Vec<u8> = run.iter().flat_map(|(_, states)| states.to_le_bytes()).collect();
            let first = run.first().map_or(0, |(word, _)| *word);
            self.store.write_at(&bytes, at(self.layout.kept, first))?;
        }
        self.store.sync()
    }
}

/// Where a word of an index is.
const fn at(part: u64, word: u64) -> u64 {
    part.saturating_add(word.saturating_mul(8))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
