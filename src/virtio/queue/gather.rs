//! Chains that another program's queue has popped: how programs with queues of their own use a device.

#![allow(unsafe_code)]

use std::sync::Arc;

use super::chain::{Chain, Head};
use super::chain_builder::{ChainBuilder, segment_buffer};
use super::error::RingError;
use crate::copy::Segment;
use crate::virtio::memory::{MemoryTable, Translator};

/// What a descriptor says of its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub len_bytes: u32,
    /// The device may write it, and not read it.
    pub is_writable: bool,
}

/// Makes chains of buffers whose descriptors another program has read (scatter-gather), one chain at a time.
#[derive(Debug)]
pub struct Gatherer {
    memory: Translator,
    segments: Vec<Segment>,
}

// SAFETY: Q5: the segments are what is left of the last chain.
unsafe impl Send for Gatherer {}

impl Gatherer {
    /// Chains in `memory`.
    pub fn new(memory: Arc<MemoryTable>) -> Self {
        Self { memory: Translator::new(memory), segments: segment_buffer() }
    }

    /// The chain that begins with the descriptor `head` and has these buffers, in the driver's order. It is checked as
    /// one that was popped from a ring of ours; that the chain is whole is for the caller to know.
    ///
    /// # Errors
    /// [`RingError::NoStatus`]: there is no place for a status.
    pub fn gather(
        &mut self,
        head: u16,
        buffers: impl IntoIterator<Item = Buffer>,
    ) -> Result<Chain<'_>, RingError> {
        let Self { memory, segments } = self;
        let mut builder = ChainBuilder::default();
        for Buffer { address, len_bytes, is_writable } in buffers {
            builder.push(address, len_bytes, is_writable, memory, segments);
        }
        // SAFETY: Q4: `push` was given these segments and this memory, and nothing else.
        unsafe { builder.build(Head::new(head), segments, memory) }
    }
}
