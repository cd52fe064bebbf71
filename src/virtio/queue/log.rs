//! What a ring writes to guest memory while a live migration copies it, marked in the dirty log.
//!
//! Bytes are stored, then marked, then published by the used index, which is stored last and marked right after. A front-end
//! that clears a mark and copies the page afterwards either has the bytes or finds the page marked again. What a back-end
//! that dies between store and mark has not marked is marked by the next one, which begins with the whole used ring. A
//! packed ring's used descriptors are stored when they are published, and marked right after.

use std::sync::Arc;

use super::chain::{Chain, HeldStatus};
use super::chain_builder::MAX_CHAIN_SEGMENTS;
use super::layout::RingLayout;
use crate::copy::Segments;
use crate::limits::bounds::MAX_CHAIN;
use crate::virtio::memory::{DirtyLog, MemoryTable};

/// One ring's access to the log: made when the ring starts, dropped when it stops or logging ends.
#[derive(Debug)]
pub struct RingLog {
    log: Arc<DirtyLog>,
    memory: Arc<MemoryTable>,
    /// Guest-physical address of the used ring, or of a packed ring's device area (`SET_VRING_ADDR`); none if it is not to be logged.
    used_start: Option<u64>,
    /// Where the chain that is executed may be written to: address and length in bytes.
    written: Vec<(u64, u64)>,
    /// Addresses of the status bytes of held requests, which are stored later.
    held: Vec<u64>,
}

impl RingLog {
    /// For a ring in `memory`. `used_start` is the guest-physical address of its used ring, if that is to be logged.
    pub fn new(
        log: Arc<DirtyLog>,
        memory: Arc<MemoryTable>,
        layout: &RingLayout,
        used_start: Option<u64>,
    ) -> Self {
        let held = usize::try_from(layout.size).unwrap_or(usize::MAX).min(usize::from(MAX_CHAIN));
        let (written, held) = (Vec::with_capacity(MAX_CHAIN_SEGMENTS + 1), Vec::with_capacity(held));
        Self { log, memory, used_start, written, held }
    }

    /// The log itself.
    pub const fn dirty_log(&self) -> &Arc<DirtyLog> {
        &self.log
    }

    /// Remembers where a chain may be written to, before it is taken apart.
    pub fn note(&mut self, chain: &Chain<'_>) {
        self.note_parts(chain.writable, chain.status.ptr());
    }

    /// As [`note`](Self::note), of a slice of a request: what it is written to, if it is a read, and its status.
    pub fn note_slice(&mut self, writable: Segments<'_>, status: &HeldStatus) {
        self.note_parts(writable, status.ptr());
    }

    fn note_parts(&mut self, writable: Segments<'_>, status: *const u8) {
        self.written.clear();
        let data = writable.as_slice().iter().map(|segment| (segment.ptr().cast_const(), segment.len()));
        for (host, len) in data.chain([(status, 1)]) {
            if let Some(address) = self.memory.guest_address(host) {
                self.written.push((address, len as u64));
            }
        }
    }

    /// The chain noted last has been executed: marks what may have been written. If it `is_held` its status
    /// comes later.
    pub fn executed(&mut self, is_held: bool) {
        for &(address, len_bytes) in &self.written {
            self.log.mark(address, len_bytes);
        }
        if let Some((address, len_bytes)) = self.written.last()
            && is_held
        {
            self.held.push(address.saturating_add(len_bytes.saturating_sub(1)));
        }
    }

    /// The status of all held requests has been stored.
    pub fn settled(&mut self) {
        for address in self.held.drain(..) {
            self.log.mark(address, 1);
        }
    }

    /// Marks bytes of a packed ring, wherever they are mapped.
    pub(super) fn mark_mapped(&self, host: *const u8, len_bytes: u64) {
        if self.used_start.is_some()
            && let Some(address) = self.memory.guest_address(host)
        {
            self.log.mark(address, len_bytes);
        }
    }

    /// Marks bytes of a split ring's used ring, counted from its start.
    pub(super) fn mark_used(&self, offset: u64, len_bytes: u64) {
        if let Some(start) = self.used_start {
            self.log.mark(start.saturating_add(offset), len_bytes);
        }
    }
}
