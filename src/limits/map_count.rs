//! What no peer may use up: the mappings and the address space that this process needs to go on.
//!
//! An allocation that finds no memory ends the process, and so does a thread that finds none for its signal stack. So
//! whatever a peer can cause is refused while there is still enough for both.

use crate::limits::bounds::{
    MEMORY_MAPPING_QUARTERS, MIN_FREE_ADDRESS_SPACE_BYTES, MIN_THREAD_ADDRESS_SPACE_BYTES,
    THREAD_MAPPING_QUARTERS,
};
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use vm_memory::mmap::MmapRegion;

/// Mappings that a process may have (`vm.max_map_count`) where the kernel does not say.
const USUAL_MAPPINGS: usize = 65_530;

/// What has been claimed in this process.
static CLAIMED: AtomicUsize = AtomicUsize::new(0);

/// What mappings are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Memory that a peer shares: up to half of all that the process may have, with the threads.
    Memory,
    /// Threads: up to three quarters. Who has come first with much memory does not keep others out.
    Thread,
}

/// Mappings that are somebody's until this is dropped.
#[derive(Debug)]
pub(crate) struct Claim(usize);

impl Claim {
    /// So many mappings, made by us because a peer wants something.
    ///
    /// # Errors
    /// The others are left for something else, or for the process itself.
    pub(crate) fn new(what: Use, mappings: usize) -> io::Result<Self> {
        let quarter = all() / 4;
        match what {
            Use::Memory => Self::below(MEMORY_MAPPING_QUARTERS * quarter, mappings),
            Use::Thread => Self::below(THREAD_MAPPING_QUARTERS * quarter, mappings),
        }
    }

    fn below(most: usize, mappings: usize) -> io::Result<Self> {
        let add = |claimed: usize| claimed.checked_add(mappings).filter(|sum| *sum <= most);
        match CLAIMED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(_) => Ok(Self(mappings)),
            Err(_) => Err(io::Error::other(format!(
                "{most} mappings are in use in this process, and the others are kept for what it cannot do without; \
                 raise vm.max_map_count"
            ))),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// An error unless there is some address space left.
pub(crate) fn check_address_space(what: Use) -> io::Result<()> {
    let bytes = match what {
        Use::Memory => MIN_FREE_ADDRESS_SPACE_BYTES,
        Use::Thread => MIN_THREAD_ADDRESS_SPACE_BYTES,
    };
    MmapRegion::<()>::new(bytes).map(drop).map_err(|error| {
        io::Error::other(format!("less than {bytes} bytes of address space are left (ulimit -v): {error}"))
    })
}

/// Mappings that this process may have.
fn all() -> usize {
    static ALL: OnceLock<usize> = OnceLock::new();
    *ALL.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
        text.trim().parse().unwrap_or(USUAL_MAPPINGS)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_claimed_is_had_again_when_it_is_dropped() {
        // Other tests claim some meanwhile.
        let most = all() + 1_000_000;
        let first = Claim::below(most, most - 1000).unwrap();
        let error = Claim::below(most, 1001).unwrap_err().to_string();
        assert!(error.contains("vm.max_map_count"), "{error}");
        assert!(Claim::below(most, usize::MAX).is_err());
        drop(first);
        Claim::below(most, most - 1000).unwrap();
        check_address_space(Use::Memory).unwrap();
    }
}
