//! What a CPU may do with a guest's number before it knows that the number is out of bounds (Spectre variant 1).
//!
//! A branch that refuses an address or an index is guessed, and until it is decided the CPU goes on as if the number were
//! fine: it reads anywhere in this process, where other guests' memory is as well, and what it touches then can depend on
//! what it has read. A mask, made by arithmetic, is not guessed. It is applied with [`below`]
//! - to guest addresses that are looked up among all regions, after a miss of the cache;
//! - to a request's type, where the compiler makes a table of jumps of it.
//!
//! It is not needed
//! - for offsets on the disk: no address and no branch depends on the bytes that are copied, and a prefetch of a wrong address
//!   depends on nothing but the number that the guest has sent itself;
//! - for pages of a dirty log: an atomic read-modify-write is not begun before it is certain;
//! - for indices of a packed ring and of a ring's two indices: they are our own, or masked by the size of the ring anyway;
//! - for what only a front-end says (ring addresses, configuration space): once a message, and no address depends on what is
//!   read there.
//!
//! It is *not done* where nearly every request passes: for guest addresses that the cache of extents has, and for indices of a
//! split ring's table and of indirect ones. Masks there (a power of two of each region in the cache, so that one `and` does it;
//! the size of the ring) took 15.2 instructions of a 4 KiB request, 264.8 where 250 are allowed (`ci/bench instructions
//! --budget`, 30 November 2026). Guests that must not learn of each other even so are served by a process each, as the README
//! says: then there is nothing of others to read.
//!
//! - **M5**: the assembler here works on the registers that it names, and touches no memory.

#![allow(unsafe_code)]

/// `index` if it is less than `bound`, else 0, without a branch: also before the CPU knows which.
#[inline]
pub(in crate::virtio) fn below(index: u64, bound: u64) -> u64 {
    index & ones_if_less(index, bound)
}

/// All bits if `index` is less than `bound`, else none. In assembler, as the compiler knows what callers have checked, and
/// would leave it out.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
fn ones_if_less(index: u64, bound: u64) -> u64 {
    let mask: u64;
    // SAFETY: M5: two instructions on three registers.
    unsafe {
        std::arch::asm!(
            "cmp {index}, {bound}", "sbb {mask}, {mask}",
            index = in(reg) index, bound = in(reg) bound, mask = out(reg) mask,
            options(pure, nomem, nostack),
        );
    }
    mask
}

/// The same for other CPUs, and for Miri: the borrow of a subtraction, hidden from the compiler.
#[cfg(any(not(target_arch = "x86_64"), miri))]
#[inline(always)]
fn ones_if_less(index: u64, bound: u64) -> u64 {
    let (index, bound) = (std::hint::black_box(index), std::hint::black_box(bound));
    let borrow = (!index & bound) | ((!index | bound) & index.wrapping_sub(bound));
    std::hint::black_box(borrow >> 63).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive(index: u64, bound: u64) -> u64 {
        if index < bound { index } else { 0 }
    }

    #[test]
    fn both_sides_of_each_bound_are_as_a_branch_has_them() {
        let bounds = [0, 1, 2, 3, 16, 255, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, u64::MAX - 1, u64::MAX];
        for bound in bounds {
            let near = [bound.wrapping_sub(2), bound.wrapping_sub(1), bound, bound.wrapping_add(1)];
            for index in near.into_iter().chain(bounds) {
                assert_eq!(below(index, bound), naive(index, bound), "{index:#x} below {bound:#x}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_number_is_as_a_branch_has_it(index: u64, bound: u64, by in -2..3_i64) {
            prop_assert_eq!(below(index, bound), naive(index, bound));
            let near = bound.wrapping_add_signed(by);
            prop_assert_eq!(below(near, bound), naive(near, bound));
        }
    }
}
