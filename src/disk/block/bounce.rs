//! A buffer that a device can reach, for guest memory that it cannot.

/// Bytes that begin at a multiple of the device's unit.
#[derive(Debug)]
pub(super) struct BounceBuffer {
    bytes: Vec<u8>,
    unit_bytes: usize,
}

impl BounceBuffer {
    /// One of `len_bytes`, rounded up to whole units.
    pub(super) fn new(len_bytes: usize, unit_bytes: usize) -> Self {
        Self { bytes: vec![0; len_bytes.next_multiple_of(unit_bytes) + unit_bytes], unit_bytes }
    }

    /// The first bytes of it, as many as there are or `len`.
    pub(super) fn part(&mut self, len: u64) -> &mut [u8] {
        let start = self.bytes.as_ptr().addr().next_multiple_of(self.unit_bytes) - self.bytes.as_ptr().addr();
        let most = self.bytes.len() - self.unit_bytes;
        let len = usize::try_from(len).unwrap_or(most).min(most);
        self.bytes.get_mut(start..start + len).unwrap_or_default()
    }
}
