//! Address space (`RLIMIT_AS`, `ulimit -v`) that is left for the process when peers have theirs.

use std::io;

use vm_memory::mmap::MmapRegion;

/// Tries whether so many bytes can be mapped.
///
/// # Errors
/// Less is left.
pub(crate) fn check(bytes: usize) -> io::Result<()> {
    MmapRegion::<()>::new(bytes).map(drop).map_err(|error| {
        io::Error::other(format!("less than {bytes} bytes of address space are left (ulimit -v): {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::bounds::MIN_FREE_ADDRESS_SPACE_BYTES;

    #[test]
    fn address_space_that_no_process_has_is_not_left() {
        check(MIN_FREE_ADDRESS_SPACE_BYTES).unwrap();
        let error = check(1 << 62).unwrap_err().to_string();
        assert!(error.contains("ulimit -v"), "{error}");
    }
}
