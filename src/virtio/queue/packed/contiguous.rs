//! Chains of the common shape in a packed ring.

use super::{Descriptor, INDIRECT, NEXT, PackedQueue, WRITE};
use crate::virtio::memory::{BufferKind, Translator};
use crate::virtio::queue::chain::HEADER_BYTES;
use crate::virtio::queue::chain_builder::{DESCRIPTOR_BYTES, read_halves};
use crate::virtio::queue::contiguous::{ChainAddresses, MappedChain};

impl PackedQueue {
    /// Takes the next chain if it is contiguous; unless it `FILLS_CACHE`, only if the translator's cache has its parts.
    #[inline(always)]
    pub(super) fn next_contiguous<const FILLS_CACHE: bool>(
        &mut self,
        mapped: &mut MappedChain,
        memory: &mut Translator,
    ) -> Option<()> {
        let (id, addresses, length) = self.contiguous(FILLS_CACHE, memory)?;
        mapped.map(FILLS_CACHE, id, addresses, memory)?;
        self.note_taken(length);
        Some(())
    }

    /// Where the mapped of the next chain are, if it is available and contiguous, with its buffer id and its length in
    /// slots. If not, the walk begins anew with
    /// it: nothing that was read here is used then.
    #[inline(always)]
    fn contiguous(&self, fills_cache: bool, memory: &mut Translator) -> Option<(u16, ChainAddresses, u16)> {
        if !self.is_available(self.next_avail) || self.taken_slots >= self.size {
            return None;
        }
        let first = self.read(self.next_avail.slot);
        match first.flags & (INDIRECT | NEXT | WRITE) {
            NEXT if self.size.wrapping_sub(self.taken_slots) >= 3 => {
                let second = self.read(self.next_avail.advance(1, self.size).slot);
                let third = self.read(self.next_avail.advance(2, self.size).slot);
                let has_flags = |it: &Descriptor, flags| it.flags & (INDIRECT | NEXT | WRITE) == flags;
                if !has_flags(&second, NEXT | second.flags & WRITE) || !has_flags(&third, WRITE) {
                    return None;
                }
                Some((third.id, addresses([first, second, third])?, 3))
            }
            INDIRECT if self.indirect && first.len_bytes == 3 * DESCRIPTOR_BYTES => {
                let table = memory.translate(
                    fills_cache,
                    BufferKind::Request,
                    first.address,
                    u64::from(first.len_bytes),
                )?;
                let mapped = [0, 1, 2].map(|index| {
                    // SAFETY: the table's three descriptors are mapped, as the translator says.
                    let halves =
                        unsafe { read_halves(table.wrapping_add(index * DESCRIPTOR_BYTES as usize)) };
                    Descriptor::of(halves)
                });
                Some((first.id, addresses(mapped)?, 1))
            }
            _ => None,
        }
    }
}

/// The mapped of a chain, if they are a header, data and a status; of their flags only the direction counts.
#[inline(always)]
fn addresses([header, data, status]: [Descriptor; 3]) -> Option<ChainAddresses> {
    let is_header = header.flags & WRITE == 0 && header.len_bytes == HEADER_BYTES;
    if !is_header || status.flags & WRITE == 0 || status.len_bytes != 1 {
        return None;
    }
    Some(ChainAddresses {
        header: header.address,
        data: data.address,
        data_bytes: data.len_bytes,
        flags: data.flags,
        status: status.address,
    })
}
