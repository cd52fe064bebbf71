//! The copies themselves, in assembler: every instruction that touches the bytes has a fix-up.
//!
//! All take `rdi` = destination, `rsi` = source, `rdx` = length in bytes, and return in `rax` how many bytes
//! were *not* done. They use no stack and keep `rdi`, `rsi` and `rdx` true at the beginning of each chunk. So
//! a fix-up can start anywhere in them: it does the rest byte by byte, up to the one that cannot be done,
//! and so knows exactly which that is. (If the rest can be done after all, one byte is still reported:
//! a fault is never taken back, since what was done byte by byte is not flushed.)
//!
//! Those that copy whole lines prefetch others on the way, a page ahead: of the source and, behind its end, of what begins
//! at `rcx`. A prefetch has no fix-up because it never faults.
//!
//! The handler of [`fault`](crate::copy::fault) finds the fix-ups in a table of offsets, built beside them.

use std::arch::{asm, global_asm};

/// Loads these registers from the source, then stores them at the destination.
macro_rules! moves {
    ($load:literal, $store:literal, $($register:literal @ $offset:literal),+) => {
        concat!(
            $($load, " ", $register, ", [rsi + ", $offset, "]\n",)+
            $($store, " [rdi + ", $offset, "], ", $register, "\n",)+
        )
    };
}

/// Prepares for [`prefetch`]: `r8` becomes the end of what is prefetched at `rcx`, or at the source's end if that is null.
macro_rules! prefetch_setup {
    () => {
        concat!(
            "mov r8d, ",
            prefetch_distance!(),
            "\ncmp rdx, r8\ncmovb r8, rdx\n",
            "lea rax, [rsi + rdx]\nsub rax, r8\ntest rcx, rcx\ncmovz rcx, rax\nadd r8, rcx\n",
        )
    };
}

/// How many bytes ahead of those that are copied others are prefetched: a page, since the CPU's own prefetcher stops where
/// a page ends. Half of it was as good for long copies and worse for pages.
macro_rules! prefetch_distance {
    () => {
        "4096"
    };
}

/// Prefetches the lines at these offsets of what is copied next: further ones of the source, or behind its end those that
/// were at `rcx`. Into the second-level cache: the first one would lose what is being copied.
macro_rules! prefetch {
    ($($offset:literal),+) => {
        concat!(
            "mov rcx, r8\nsub rcx, rdx\nlea rax, [rsi + ", prefetch_distance!(), "]\ncmp rdx, ", prefetch_distance!(), "\ncmova rcx, rax\n",
            $("prefetcht1 [rcx + ", $offset, "]\n",)+
        )
    };
}

/// Stores one register all over these offsets of the destination.
macro_rules! stores {
    ($store:literal, $register:literal, $($offset:literal),+) => {
        concat!($($store, " [rdi + ", $offset, "], ", $register, "\n",)+)
    };
}

/// Begins a routine.
macro_rules! begin {
    ($name:literal) => {
        concat!(
            ".globl ",
            $name,
            "\n.hidden ",
            $name,
            "\n.type ",
            $name,
            ", @function\n.balign 64\n",
            $name,
            ":\n"
        )
    };
}

/// Notes that a fault from one label up to another goes on at a third, and that a copy from guest memory, or to it, that is to end
/// there goes on at a fourth; at `.` in routines over the media alone, which are not ended.
macro_rules! fixup {
    ($from:literal, $to:literal, $at:literal, $end:literal) => {
        concat!(
            ".pushsection .rodata.vhost_user_pmem_fixups, \"a\", @progbits\n",
            ".long ",
            $from,
            " - .\n.long ",
            $to,
            " - .\n.long ",
            $at,
            " - .\n.long ",
            $end,
            " - .\n.popsection\n"
        )
    };
}

/// A routine over whole lines: `$four` does 256 bytes a turn, then `$one` 64; both use offsets only.
macro_rules! lines {
    ($name:literal, $before:expr, $four:expr, $one:expr, $after:literal, $fixup:literal, $end:literal) => {
        concat!(
            begin!($name),
            $before,
            "\njmp 4f\n.balign 32\n",
            "2:\n",
            $four,
            "add rsi, 256\nadd rdi, 256\nsub rdx, 256\n",
            "4: cmp rdx, 256\njae 2b\ntest rdx, rdx\njz 6f\n",
            "5:\n",
            $one,
            "add rsi, 64\nadd rdi, 64\nsub rdx, 64\njnz 5b\n",
            "6:\n",
            $after,
            "\nxor eax, eax\nret\n",
            fixup!("2b", "6b", $fixup, $end)
        )
    };
}

macro_rules! copy64 {
    ($name:literal, $store:literal) => {
        // Registers from 16 on, which need no vzeroupper.
        lines!(
            $name, prefetch_setup!(),
            concat!(
                prefetch!(0, 64, 128, 192),
                moves!("vmovdqu64", $store, "zmm16" @ 0, "zmm17" @ 64, "zmm18" @ 128, "zmm19" @ 192)
            ),
            concat!(prefetch!(0), moves!("vmovdqu64", $store, "zmm16" @ 0)), "", ".Lvhost_user_pmem_rest_copy", ".Lvhost_user_pmem_end"
        )
    };
}

macro_rules! copy32 {
    ($name:literal, $store:literal) => {
        lines!(
            $name, prefetch_setup!(),
            concat!(
                prefetch!(0, 64, 128, 192),
                moves!("vmovdqu", $store, "ymm0" @ 0, "ymm1" @ 32, "ymm2" @ 64, "ymm3" @ 96, "ymm4" @ 128,
                       "ymm5" @ 160, "ymm6" @ 192, "ymm7" @ 224)
            ),
            concat!(prefetch!(0), moves!("vmovdqu", $store, "ymm0" @ 0, "ymm1" @ 32)), "vzeroupper", ".Lvhost_user_pmem_rest_copy_avx",
            ".Lvhost_user_pmem_end_avx"
        )
    };
}

macro_rules! copy16 {
    ($name:literal, $store:literal) => {
        lines!(
            $name, prefetch_setup!(),
            concat!(
                prefetch!(0, 64, 128, 192),
                moves!("movdqu", $store, "xmm0" @ 0, "xmm1" @ 16, "xmm2" @ 32, "xmm3" @ 48, "xmm4" @ 64,
                       "xmm5" @ 80, "xmm6" @ 96, "xmm7" @ 112),
                moves!("movdqu", $store, "xmm0" @ 128, "xmm1" @ 144, "xmm2" @ 160, "xmm3" @ 176,
                       "xmm4" @ 192, "xmm5" @ 208, "xmm6" @ 224, "xmm7" @ 240)
            ),
            concat!(prefetch!(0), moves!("movdqu", $store, "xmm0" @ 0, "xmm1" @ 16, "xmm2" @ 32, "xmm3" @ 48)),
            "", ".Lvhost_user_pmem_rest_copy", ".Lvhost_user_pmem_end"
        )
    };
}

macro_rules! flush {
    ($name:literal, $flush:literal) => {
        concat!(
            begin!($name),
            "test rdx, rdx\njz 3f\n2: ",
            $flush,
            " [rdi]\nadd rdi, 64\nsub rdx, 64\njnz 2b\n",
            "3: mov rax, rdx\nret\n",
            fixup!("2b", "3b", "3b", ".")
        )
    };
}

#[rustfmt::skip]
global_asm!(
    ".section .rodata.vhost_user_pmem_fixups, \"a\", @progbits",
    ".globl vhost_user_pmem_fixups", ".hidden vhost_user_pmem_fixups",
    ".balign 4", "vhost_user_pmem_fixups:",
    ".section .text.vhost_user_pmem_kernels, \"ax\", @progbits",

    // A request's header and its status, in conventions of their own: see `load16` and `store1`.
    begin!("vhost_user_pmem_load16"),
    "2: mov rax, [rsi]", "mov rdx, [rsi + 8]", "3: xor ecx, ecx", "ret",
    "4: mov ecx, 1", "ret", fixup!("2b", "3b", "4b", "4b"),
    begin!("vhost_user_pmem_store1"),
    "2: mov [rdi], al", "3: xor ecx, ecx", "ret",
    "4: mov ecx, 1", "ret", fixup!("2b", "3b", "4b", "4b"),

    // At most 64 bytes, of which some may be read twice; what arrives is from either time.
    begin!("vhost_user_pmem_copy_small"),
    "2: cmp rdx, 16", "jb 6f", "cmp rdx, 32", "ja 5f",
    "movdqu xmm0, [rsi]", "movdqu xmm1, [rsi + rdx - 16]",
    "movdqu [rdi], xmm0", "movdqu [rdi + rdx - 16], xmm1", "xor eax, eax", "ret",
    "5: movdqu xmm0, [rsi]", "movdqu xmm1, [rsi + 16]",
    "movdqu xmm2, [rsi + rdx - 32]", "movdqu xmm3, [rsi + rdx - 16]",
    "movdqu [rdi], xmm0", "movdqu [rdi + 16], xmm1",
    "movdqu [rdi + rdx - 32], xmm2", "movdqu [rdi + rdx - 16], xmm3", "xor eax, eax", "ret",
    "6: cmp rdx, 8", "jb 7f",
    "mov rax, [rsi]", "mov rcx, [rsi + rdx - 8]", "mov [rdi], rax", "mov [rdi + rdx - 8], rcx",
    "xor eax, eax", "ret",
    "7: cmp rdx, 4", "jb 8f",
    "mov eax, [rsi]", "mov ecx, [rsi + rdx - 4]", "mov [rdi], eax", "mov [rdi + rdx - 4], ecx",
    "xor eax, eax", "ret",
    "8: cmp rdx, 2", "jae 3f", "test rdx, rdx", "jz 9f",
    "movzx eax, byte ptr [rsi]", "mov [rdi], al", "xor eax, eax", "ret",
    "3: movzx eax, word ptr [rsi]", "movzx ecx, byte ptr [rsi + rdx - 1]",
    "mov [rdi], ax", "mov [rdi + rdx - 1], cl",
    "9: xor eax, eax", "ret",
    fixup!("2b", "9b", ".Lvhost_user_pmem_rest_copy", ".Lvhost_user_pmem_end"),

    // Any length, by the CPU's own loop, which keeps count by itself.
    begin!("vhost_user_pmem_copy_rep"),
    "mov rcx, rdx", "2: rep movsb", "3: mov rax, rcx", "ret", fixup!("2b", "3b", "3b", "3b"),
    begin!("vhost_user_pmem_fill"),
    "mov rcx, rdx", "xor eax, eax", "2: rep stosb", "3: mov rax, rcx", "ret", fixup!("2b", "3b", "3b", "."),

    copy16!("vhost_user_pmem_copy16", "movdqu"),
    copy32!("vhost_user_pmem_copy32", "vmovdqu"),
    copy64!("vhost_user_pmem_copy64", "vmovdqu64"),
    copy16!("vhost_user_pmem_stream16", "movntdq"),
    copy32!("vhost_user_pmem_stream32", "vmovntdq"),
    copy64!("vhost_user_pmem_stream64", "vmovntdq"),
    lines!(
        "vhost_user_pmem_zero16", "pxor xmm0, xmm0",
        stores!("movntdq", "xmm0", 0, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240),
        stores!("movntdq", "xmm0", 0, 16, 32, 48), "", ".Lvhost_user_pmem_rest_zero", "."
    ),
    lines!(
        "vhost_user_pmem_zero32", "vpxor xmm0, xmm0, xmm0",
        stores!("vmovntdq", "ymm0", 0, 32, 64, 96, 128, 160, 192, 224),
        stores!("vmovntdq", "ymm0", 0, 32), "vzeroupper", ".Lvhost_user_pmem_rest_zero_avx", "."
    ),
    lines!(
        "vhost_user_pmem_zero64", "vpxord zmm16, zmm16, zmm16",
        stores!("vmovntdq", "zmm16", 0, 64, 128, 192),
        stores!("vmovntdq", "zmm16", 0), "", ".Lvhost_user_pmem_rest_zero", "."
    ),

    flush!("vhost_user_pmem_clwb", "clwb"),
    flush!("vhost_user_pmem_clflushopt", "clflushopt"),
    flush!("vhost_user_pmem_clflush", "clflush"),

    // The rest, byte by byte, after a fault: at least one is reported.
    ".Lvhost_user_pmem_rest_copy_avx:", "vzeroupper",
    ".Lvhost_user_pmem_rest_copy:", "mov rcx, rdx", "2: rep movsb",
    "3: mov rax, rcx", "cmp rax, 1", "adc rax, 0", "ret", fixup!("2b", "3b", "3b", "3b"),
    ".Lvhost_user_pmem_rest_zero_avx:", "vzeroupper",
    ".Lvhost_user_pmem_rest_zero:", "mov rcx, rdx", "xor eax, eax", "2: rep stosb",
    "3: mov rax, rcx", "cmp rax, 1", "adc rax, 0", "ret", fixup!("2b", "3b", "3b", "."),

    // It is to end: the rest is reported as it is, or a chunk more, and at least one byte.
    ".Lvhost_user_pmem_end_avx:", "vzeroupper",
    ".Lvhost_user_pmem_end:", "mov rax, rdx", "cmp rax, 1", "adc rax, 0", "ret",

    ".section .rodata.vhost_user_pmem_fixups, \"a\", @progbits",
    ".globl vhost_user_pmem_fixups_end", ".hidden vhost_user_pmem_fixups_end",
    "vhost_user_pmem_fixups_end:",
    ".text",
);

/// One entry of the table: offsets from the field itself.
#[repr(C)]
struct Fixup {
    from: i32,
    to: i32,
    at: i32,
    end: i32,
}

unsafe extern "C" {
    static vhost_user_pmem_fixups: Fixup;
    static vhost_user_pmem_fixups_end: Fixup;
}

/// Declares the routines under the names they are called by here.
macro_rules! kernels {
    ($($(#[$doc:meta])* $name:ident $(($next:ident))? = $symbol:literal;)+) => {
        unsafe extern "C" {
            $($(#[$doc])*
            #[link_name = $symbol]
            pub(in crate::copy) fn $name(dst: *mut u8, src: *const u8, len: usize $(, $next: *const u8)?) -> usize;)+
        }
    };
}

kernels! {
    /// Copies at most 64 bytes.
    copy_small = "vhost_user_pmem_copy_small";
    /// Copies any number of bytes by `rep movsb`.
    copy_rep = "vhost_user_pmem_copy_rep";
    /// Stores any number of zero bytes by `rep stosb`; the source is ignored.
    fill = "vhost_user_pmem_fill";
    /// Copies multiples of 64 bytes by moves of 16.
    copy16(next) = "vhost_user_pmem_copy16";
    /// Copies multiples of 64 bytes by moves of 32 (AVX).
    copy32(next) = "vhost_user_pmem_copy32";
    /// Copies multiples of 64 bytes by moves of 64 (AVX-512F).
    copy64(next) = "vhost_user_pmem_copy64";
    /// Copies multiples of 64 bytes to whole lines by non-temporal stores of 16.
    stream16(next) = "vhost_user_pmem_stream16";
    /// Copies multiples of 64 bytes to whole lines by non-temporal stores of 32 (AVX).
    stream32(next) = "vhost_user_pmem_stream32";
    /// Copies multiples of 64 bytes to whole lines by non-temporal stores of 64 (AVX-512F).
    stream64(next) = "vhost_user_pmem_stream64";
    /// Zeroes whole lines by non-temporal stores of 16; the source is ignored.
    zero16(next) = "vhost_user_pmem_zero16";
    /// Zeroes whole lines by non-temporal stores of 32 (AVX); the source is ignored.
    zero32(next) = "vhost_user_pmem_zero32";
    /// Zeroes whole lines by non-temporal stores of 64 (AVX-512F); the source is ignored.
    zero64(next) = "vhost_user_pmem_zero64";
    /// Writes whole lines back; the source is ignored.
    clwb = "vhost_user_pmem_clwb";
    /// Writes whole lines back and drops them; the source is ignored.
    clflushopt = "vhost_user_pmem_clflushopt";
    /// Writes whole lines back and drops them, in order; the source is ignored.
    clflush = "vhost_user_pmem_clflush";
}

unsafe extern "C" {
    fn vhost_user_pmem_load16();
    fn vhost_user_pmem_store1();
}

/// Two words, each read once; `None` if they cannot be read.
///
/// It leaves all registers but three alone, which a call by the rules of C would not.
///
/// # Safety
/// 16 bytes must be mapped at `src`. (The file behind the mapping may have been truncated: then the result says so.)
#[inline(always)]
pub(in crate::copy) unsafe fn load16(src: *const u8) -> Option<[u64; 2]> {
    let (first, second, is_lost): (u64, u64, u32);
    // SAFETY: C2: 16 bytes. C3: the routine reads them, writes these registers and nothing else.
    unsafe {
        asm!(
            "call {routine}", routine = sym vhost_user_pmem_load16, in("rsi") src,
            out("rax") first, out("rdx") second, out("ecx") is_lost, options(readonly),
        );
    }
    (is_lost == 0).then_some([first, second])
}

/// Stores one byte. Returns whether it could be.
///
/// # Safety
/// A byte must be mapped at `dst` for writes. (The file behind the mapping may have been truncated: then the result says so.)
#[inline(always)]
pub(in crate::copy) unsafe fn store1(dst: *mut u8, byte: u8) -> bool {
    let is_lost: u32;
    // SAFETY: C2: one byte. C3: the routine writes it and one register.
    unsafe {
        asm!(
            "call {routine}", routine = sym vhost_user_pmem_store1, in("rdi") dst, in("al") byte,
            out("ecx") is_lost,
        );
    }
    is_lost == 0
}

/// Where to go on when the instruction at `address` faulted, if it is one of these routines.
///
/// Used in the signal handler: reads constants, nothing else.
pub(in crate::copy) fn fixup_of(address: usize) -> Option<usize> {
    find(address).map(|fixup| target(&fixup.at))
}

/// Where to go on when the copy that has the instruction at `address` is to end, if it is one from guest memory or to it. Used as
/// [`fixup_of`].
pub(in crate::copy) fn end_of(address: usize) -> Option<usize> {
    find(address).filter(|fixup| fixup.end != 0).map(|fixup| target(&fixup.end))
}

fn target(field: &i32) -> usize {
    (&raw const *field).addr().wrapping_add_signed(*field as isize)
}

fn find(address: usize) -> Option<&'static Fixup> {
    let (first, end) = (&raw const vhost_user_pmem_fixups, &raw const vhost_user_pmem_fixups_end);
    let mut entry = first;
    while entry < end {
        // SAFETY: C3: whole entries between the two symbols, which are constants.
        let fixup = unsafe { &*entry };
        if (target(&fixup.from)..target(&fixup.to)).contains(&address) {
            return Some(fixup);
        }
        entry = entry.wrapping_add(1);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::line::{Kernel, LineKernel};

    /// Every routine has a fix-up behind its entry (within two lines), and nothing else has.
    #[test]
    fn every_routine_is_in_the_table_and_foreign_code_is_not() {
        let own: [unsafe extern "C" fn(); 2] = [vhost_user_pmem_load16, vhost_user_pmem_store1];
        let all: [Kernel; 6] = [copy_small, copy_rep, fill, clwb, clflushopt, clflush];
        let lines: [LineKernel; 9] =
            [copy16, copy32, copy64, stream16, stream32, stream64, zero16, zero32, zero64];
        let entries = all.map(|kernel| kernel as *const () as usize).into_iter();
        let entries = entries.chain(lines.map(|kernel| kernel as *const () as usize));
        for entry in entries.chain(own.map(|kernel| kernel as *const () as usize)) {
            assert!((entry..entry + 128).any(|address| fixup_of(address).is_some()), "{entry:#x}");
            assert_eq!(fixup_of(entry.wrapping_sub(1)), None, "{entry:#x}: padding before it");
        }
        let copies = [copy_small, copy_rep].map(|kernel| kernel as *const () as usize);
        let lines = [copy16, copy32, copy64, stream16, stream32, stream64];
        let copies = copies.into_iter().chain(lines.map(|kernel| kernel as *const () as usize));
        for entry in copies.chain(own.map(|kernel| kernel as *const () as usize)) {
            let first = (entry..).find(|address| fixup_of(*address).is_some()).unwrap();
            let ends =
                (first..).take_while(|address| fixup_of(*address).is_some()).all(|it| end_of(it).is_some());
            assert!(ends, "{entry:#x}: a copy can be ended wherever it can fault");
        }
        let media = [fill, clwb, clflushopt, clflush].map(|kernel| kernel as *const () as usize);
        let zeroes = [zero16, zero32, zero64].map(|kernel| kernel as *const () as usize);
        for entry in media.into_iter().chain(zeroes) {
            let first = (entry..).find(|address| fixup_of(*address).is_some()).unwrap();
            assert_eq!(end_of(first), None, "{entry:#x}: guest memory has no part in it");
        }
        for address in [0, 1, fixup_of as *const () as usize, usize::MAX, usize::MAX / 2] {
            assert_eq!(fixup_of(address), None);
        }
    }
}
