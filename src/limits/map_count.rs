//! Mappings that peers may cause: a part of `vm.max_map_count`, so that the process has others to go on with.
//!
//! An allocation that finds no memory ends the process, and so does a thread that finds none for its signal stack. So
//! mappings are charged before they are made, and refused while there are still enough for both.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::limits::bounds::{MEMORY_MAPPING_QUARTERS, THREAD_MAPPING_QUARTERS};

/// Mappings that a process may have (`vm.max_map_count`) where the kernel does not say.
const DEFAULT_MAPPINGS: usize = 65_530;

/// Mappings that are charged in this process.
static CHARGED: AtomicUsize = AtomicUsize::new(0);

/// What mappings are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Memory that a peer shares: refused once [`MEMORY_MAPPING_QUARTERS`] are charged, for either purpose.
    Memory,
    /// Threads: refused at [`THREAD_MAPPING_QUARTERS`], so that a peer with much memory does not keep others out.
    Thread,
}

/// Mappings that count until this is dropped.
#[derive(Debug)]
pub(crate) struct Charge(usize);

impl Charge {
    /// Charges so many mappings, which are made because a peer wants something.
    ///
    /// # Errors
    /// What is left is for the other purpose, or for the process itself.
    pub(crate) fn new(purpose: Purpose, mappings: usize) -> io::Result<Self> {
        let quarter = max_map_count() / 4;
        match purpose {
            Purpose::Memory => Self::below(MEMORY_MAPPING_QUARTERS * quarter, mappings),
            Purpose::Thread => Self::below(THREAD_MAPPING_QUARTERS * quarter, mappings),
        }
    }

    fn below(most: usize, mappings: usize) -> io::Result<Self> {
        let add = |charged: usize| charged.checked_add(mappings).filter(|sum| *sum <= most);
        match CHARGED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(_) => Ok(Self(mappings)),
            Err(_) => Err(io::Error::other(format!(
                "{most} mappings are in use in this process, and the others are kept for what it cannot do without; \
                 raise vm.max_map_count"
            ))),
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        CHARGED.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Mappings that this process may have (`vm.max_map_count`).
pub(super) fn max_map_count() -> usize {
    static ALL: OnceLock<usize> = OnceLock::new();
    *ALL.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
        text.trim().parse().unwrap_or(DEFAULT_MAPPINGS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_charged_is_free_again_when_the_charge_is_dropped() {
        // Other tests charge some meanwhile.
        let most = max_map_count() + 1_000_000;
        let first = Charge::below(most, most - 1000).unwrap();
        let error = Charge::below(most, 1001).unwrap_err().to_string();
        assert!(error.contains("vm.max_map_count"), "{error}");
        assert!(Charge::below(most, usize::MAX).is_err());
        drop(first);
        Charge::below(most, most - 1000).unwrap();
    }
}
