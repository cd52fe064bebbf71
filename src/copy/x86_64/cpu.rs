//! What this CPU has, by CPUID; the standard library knows the vector units only.

use std::arch::x86_64::{__cpuid, __cpuid_count};

/// CPUID leaf 1, EDX: `clflush`.
const CLFLUSH: u32 = 1 << 19;
/// CPUID leaf 7, EBX: `clflushopt`, `clwb`.
const CLFLUSHOPT: u32 = 1 << 23;
const CLWB: u32 = 1 << 24;

/// The instructions that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::copy) struct Cpu {
    /// Stores of 64 bytes, and the operating system keeps their registers.
    pub(in crate::copy) avx512f: bool,
    /// Moves of 32 bytes, likewise.
    pub(in crate::copy) avx: bool,
    /// Writes a line back and may keep it.
    pub(in crate::copy) clwb: bool,
    /// Writes a line back and drops it, unordered.
    pub(in crate::copy) clflushopt: bool,
    /// Writes a line back and drops it, one after the other.
    pub(in crate::copy) clflush: bool,
}

impl Cpu {
    /// Asks the CPU.
    // Not unsafe any more since Rust 1.92; every x86_64 has the instruction.
    #[allow(unused_unsafe, unsafe_code)]
    pub(in crate::copy) fn detect() -> Self {
        // SAFETY: C4: every x86_64 has CPUID, and leaf 0 of it.
        let most = unsafe { __cpuid(0) }.eax;
        // SAFETY: C4: every x86_64 has leaf 1.
        let basic = unsafe { __cpuid(1) };
        // SAFETY: C4: a leaf that is not there is not asked for.
        let extended = (most >= 7).then(|| unsafe { __cpuid_count(7, 0) });
        let ebx = extended.map_or(0, |leaf| leaf.ebx);
        Self {
            avx512f: is_x86_feature_detected!("avx512f"),
            avx: is_x86_feature_detected!("avx"),
            clwb: ebx & CLWB != 0,
            clflushopt: ebx & CLFLUSHOPT != 0,
            clflush: basic.edx & CLFLUSH != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel has asked the same CPU.
    #[test]
    fn the_cpu_is_what_the_kernel_says() {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = info.lines().find(|line| line.starts_with("flags")).unwrap();
        let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
        let expected = Cpu {
            avx512f: has("avx512f"),
            avx: has("avx"),
            clwb: has("clwb"),
            clflushopt: has("clflushopt"),
            clflush: has("clflush"),
        };
        assert_eq!(Cpu::detect(), expected);
    }
}
