//! What the C library's allocator would look up while disks are served.
//!
//! What `unsafe` here relies on:
//!
//! - **S1**: there is one thread.

#![allow(unsafe_code)]

/// Tells the C library's allocator how many arenas it may have: as many as it would choose (mallopt(3)), for which it would
/// look up the number of CPUs while disks are served.
pub(super) fn fix_arenas() {
    #[cfg(target_env = "gnu")]
    {
        const OF_A_CPU: usize = 8;
        let cpus = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        let most = i32::try_from(cpus.saturating_mul(OF_A_CPU)).unwrap_or(i32::MAX);
        // SAFETY: S1: it takes any number, and is called before there is another thread.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, most) };
    }
}
