//! The words of a ring in a guest's memory. Inside of a model they are loom's atomics, so that a read may find an old value and
//! threads may be switched at each; elsewhere they are memory.
//!
//! Words that share a cell (the halves of a packed ring's slot) are stored by a read-modify-write, which loom takes to see the
//! newest value: only the driver or only the device stores to a slot at a time.

use std::cell::RefCell;
use std::rc::Rc;

use loom::sync::atomic::AtomicU64 as Cell;

/// A range of memory in a model.
struct Area {
    start: usize,
    cell_bytes: usize,
    cells: Vec<Cell>,
}

thread_local! {
    /// Those of the model that runs; loom runs all its threads in one.
    static AREAS: RefCell<Option<Rc<Vec<Area>>>> = const { RefCell::new(None) };
}

/// The model has these areas: where, how many bytes a cell, how many cells; all zeroes.
pub fn begin(areas: &[(usize, usize, usize)]) {
    let area = |&(start, cell_bytes, count): &(usize, usize, usize)| Area {
        start,
        cell_bytes,
        cells: (0..count).map(|_| Cell::new(0)).collect(),
    };
    AREAS.set(Some(Rc::new(areas.iter().map(area).collect())));
}

/// It is over.
pub fn end() {
    AREAS.set(None);
}

fn is_modelled() -> bool {
    AREAS.with_borrow(Option::is_some)
}

/// What is in the cell there, and where in it: bits to shift, and a mask. `None`: it is memory.
fn find<T>(at: usize, len: usize, then: impl FnOnce(&Cell, usize, u64) -> T) -> Option<T> {
    let areas = AREAS.with_borrow(Clone::clone)?;
    let area = areas.iter().find(|it| (it.start..it.start + it.cell_bytes * it.cells.len()).contains(&at))?;
    let (index, offset) = ((at - area.start) / area.cell_bytes, (at - area.start) % area.cell_bytes);
    assert!(offset + len <= area.cell_bytes, "a word over two cells");
    let mask = if len == area.cell_bytes { u64::MAX } else { (1 << (len * 8)) - 1 };
    Some(then(&area.cells[index], offset * 8, mask))
}

fn load(at: usize, len: usize, order: atomic::Ordering) -> Option<u64> {
    find(at, len, |cell, shift, mask| cell.load(order) >> shift & mask)
}

fn store(at: usize, len: usize, value: u64, order: atomic::Ordering) -> Option<()> {
    find(at, len, |cell, shift, mask| {
        if mask == u64::MAX {
            return cell.store(value, order);
        }
        let change = |old: u64| Some(old & !(mask << shift) | value << shift);
        let _ = cell.fetch_update(order, atomic::Ordering::Relaxed, change);
    })
}

/// Reads memory that is written by the other side.
///
/// # Safety
/// As `read_volatile`.
pub unsafe fn read<T: Copy>(at: *const T) -> T {
    match load(at.addr(), size_of::<T>(), atomic::Ordering::Relaxed) {
        // SAFETY: `T` is a number of as many bytes.
        Some(value) => unsafe { (&raw const value).cast::<T>().read_unaligned() },
        // SAFETY: as the caller says.
        None => unsafe { at.read_volatile() },
    }
}

/// Writes memory that is read by the other side.
///
/// # Safety
/// As `write_volatile`.
pub unsafe fn write<T: Copy + Into<u64>>(at: *mut T, value: T) {
    if store(at.addr(), size_of::<T>(), value.into(), atomic::Ordering::Relaxed).is_none() {
        // SAFETY: as the caller says.
        unsafe { at.write_volatile(value) };
    }
}

/// In place of `std::sync::atomic`.
pub mod atomic {
    pub use std::sync::atomic::Ordering;

    pub fn fence(order: Ordering) {
        if super::is_modelled() { loom::sync::atomic::fence(order) } else { std::sync::atomic::fence(order) }
    }

    macro_rules! word {
        ($name:ident, $number:ty) => {
            /// A word in place: it is known by its address.
            #[repr(transparent)]
            pub struct $name(std::sync::atomic::$name);

            impl $name {
                /// # Safety
                /// As that of the standard library.
                pub unsafe fn from_ptr<'a>(at: *mut $number) -> &'a Self {
                    // SAFETY: as the caller says; the layouts are the same.
                    unsafe { &*at.cast() }
                }

                pub fn load(&self, order: Ordering) -> $number {
                    super::load(self.0.as_ptr().addr(), size_of::<$number>(), order)
                        .map_or_else(|| self.0.load(order), |value| value as $number)
                }

                pub fn store(&self, value: $number, order: Ordering) {
                    super::store(self.0.as_ptr().addr(), size_of::<$number>(), value.into(), order)
                        .unwrap_or_else(|| self.0.store(value, order));
                }

                /// Only where a ring is started, and nobody else is there.
                pub fn compare_exchange(
                    &self,
                    current: $number,
                    new: $number,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$number, $number> {
                    if !super::is_modelled() {
                        return self.0.compare_exchange(current, new, success, failure);
                    }
                    let found = self.load(failure);
                    if found != current {
                        return Err(found);
                    }
                    self.store(new, Ordering::Relaxed);
                    Ok(found)
                }
            }
        };
    }

    word!(AtomicU16, u16);
    word!(AtomicU32, u32);
    word!(AtomicU64, u64);
}
