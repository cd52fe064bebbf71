//! What a request asks for, as it is named where it is slow.

use super::latency::Timed;
use super::pending::Span;
use super::units::SECTOR_BYTES;
use crate::disk::executor::TaskName;
use crate::virtio::queue::Header;

/// What a request asks for, and of which bytes of the disk.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// None where that is not timed.
    pub what: Option<Timed>,
    /// Where it begins, as its driver says.
    pub offset: u64,
    /// How many.
    pub len_bytes: u64,
}

impl Asked {
    /// Nothing is known of it.
    pub const UNKNOWN: Self = Self { what: None, offset: 0, len_bytes: 0 };

    /// By the header of a request, and how long its data is.
    #[inline]
    pub fn of(header: &Header, len_bytes: u64) -> Self {
        let [_, sector] = *header;
        Self { what: Timed::of(header), offset: sector.saturating_mul(SECTOR_BYTES), len_bytes }
    }

    /// It is about these.
    #[must_use]
    pub const fn at(self, span: Span) -> Self {
        Self { offset: span.offset(), len_bytes: span.len_bytes(), ..self }
    }

    /// It is about those of a request that is done in slices.
    #[must_use]
    pub const fn of_slices(self, name: TaskName) -> Self {
        Self { offset: name.offset, len_bytes: name.len_bytes, ..self }
    }
}
