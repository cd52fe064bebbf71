//! A descriptor chain from where it is popped to where it is completed.

#![allow(unsafe_code)]

use std::sync::Arc;

use super::error::RingError;
use crate::copy::{self, Segments};
use crate::virtio::memory::MemoryTable;

/// What every block request begins with, as two little-endian words: type and reserved; sector (VIRTIO 1.2
/// §5.2.6).
pub type Header = [u64; 2];

/// Its length.
pub(super) const HEADER_BYTES: u32 = 16;

/// A chain that the driver expects back. It is not `Clone` and only becomes a [`Completion`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a popped chain must be completed"]
pub struct Head(u16);

impl Head {
    pub(super) const fn new(index: u16) -> Self {
        Self(index)
    }

    /// Finishes the chain; `written_bytes` counts from the start of its device-writable part
    /// (VIRTIO 1.2 §2.7.8.2).
    pub const fn complete(self, written_bytes: u32) -> Completion {
        Completion { head: self.0, written_bytes }
    }
}

/// A finished chain, to be stored in the used ring.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a completion must be given back to its ring"]
pub struct Completion {
    head: u16,
    written_bytes: u32,
}

impl Completion {
    /// Index of the chain's first descriptor.
    pub const fn head(&self) -> u16 {
        self.head
    }

    /// Bytes written without a gap from the start of the device-writable part.
    pub const fn written_bytes(&self) -> u32 {
        self.written_bytes
    }
}

/// What is wrong with a chain that has a place for its status: the request fails, the ring goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// VIRTIO 1.2 §2.7.4.2.
    #[error("a readable descriptor follows a writable one")]
    ReadableAfterWritable,
    /// No data in a descriptor.
    #[error("a descriptor of no bytes")]
    Empty,
    /// A buffer that is not (wholly) guest memory.
    #[error("a buffer outside guest memory")]
    Unmapped,
    /// VIRTIO 1.2 §2.7.5.3.1: no table in a table, no chain behind a table, only if negotiated.
    #[error("an indirect table where none is allowed")]
    Indirect,
    /// Its length is no multiple of 16.
    #[error("an indirect table with a part of a descriptor")]
    IndirectLength,
    /// More descriptors than [`MAX_CHAIN`](super::MAX_CHAIN).
    #[error("more than 1024 descriptors in one chain")]
    TooMany,
    /// VIRTIO 1.2 §2.7.5.2: 4 GiB at most.
    #[error("more than 4 GiB in one chain")]
    TooLong,
    /// VIRTIO 1.2 §5.2.6: 16 bytes.
    #[error("no header, or one that cannot be read")]
    NoHeader,
}

/// Where a block request's status goes: the last byte of the device-writable part (VIRTIO 1.2 §5.2.6).
#[derive(Debug)]
pub struct StatusByte<'a> {
    byte: *mut u8,
    table: &'a Arc<MemoryTable>,
}

impl<'a> StatusByte<'a> {
    /// Vouches for the byte.
    ///
    /// # Safety
    /// It lies in `table`, and no Rust reference to it exists.
    #[inline]
    pub(super) const unsafe fn new(byte: *mut u8, table: &'a Arc<MemoryTable>) -> Self {
        Self { byte, table }
    }

    /// Host address.
    pub(super) const fn ptr(&self) -> *const u8 {
        self.byte
    }

    /// What it lies in.
    pub(super) const fn table(&self) -> &Arc<MemoryTable> {
        self.table
    }
}

/// Where a status goes, now or after a flush.
pub trait Status {
    /// Writes the status.
    ///
    /// # Errors
    /// [`RingError::GuestMemoryLost`]: the page that it is in is lost.
    fn store(self, status: u8) -> Result<(), RingError>;

    /// Keeps the place for later: the guest's memory stays mapped as long.
    fn hold(self) -> HeldStatus;
}

impl Status for StatusByte<'_> {
    #[inline]
    fn store(self, status: u8) -> Result<(), RingError> {
        // SAFETY: Q4: the byte was vouched for, and its table is borrowed.
        if unsafe { copy::store_byte(self.byte, status) } { Ok(()) } else { Err(RingError::GuestMemoryLost) }
    }

    fn hold(self) -> HeldStatus {
        HeldStatus { byte: self.byte, table: self.table.clone() }
    }
}

/// A [`StatusByte`] of a request that waits for a flush, or takes several turns.
#[derive(Debug)]
pub struct HeldStatus {
    byte: *mut u8,
    table: Arc<MemoryTable>,
}

// SAFETY: Q4: the byte lies in the table that is held with it. Q2: only the owner of this value writes it.
unsafe impl Send for HeldStatus {}

impl HeldStatus {
    /// Host address.
    pub(super) const fn ptr(&self) -> *const u8 {
        self.byte
    }
}

impl Status for HeldStatus {
    fn store(self, status: u8) -> Result<(), RingError> {
        // SAFETY: Q4: the byte that a status byte was made with, and its table is still held.
        unsafe { StatusByte::new(self.byte, &self.table) }.store(status)
    }

    fn hold(self) -> HeldStatus {
        self
    }
}

/// A popped chain, its descriptors read: it borrows the ring until its parts are used up.
#[derive(Debug)]
pub struct Chain<'a> {
    /// To be completed.
    pub head: Head,
    /// The first readable bytes, read once.
    pub header: Header,
    /// Why the request must fail, whatever it asks; the header is worth nothing then.
    pub flaw: Option<Flaw>,
    /// What else the driver sends; nothing where there is a flaw.
    pub readable: Segments<'a>,
    /// Room for what the device sends, without the status byte; none where there is a flaw.
    pub writable: Segments<'a>,
    /// Where the status goes. It is there: a chain without one breaks its ring.
    pub status: StatusByte<'a>,
    /// Bytes before the status byte as the driver declared them.
    pub data_bytes: u64,
}
