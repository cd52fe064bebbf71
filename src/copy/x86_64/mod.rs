//! The routines for x86_64: what the CPU has, and assembler whose faults can be mended.

pub(super) mod cpu;
pub(super) mod kernels;
