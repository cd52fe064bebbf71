//! What stands in a ring that waits for its media.

use std::collections::VecDeque;

use super::times::WaitsFor;
use crate::disk::Ticket;
use crate::failpoint;
use crate::virtio::blk::{HeldRequest, PendingRequest, Span};
use crate::virtio::queue::Completion;

/// A request that was taken from the ring and is not published.
#[derive(Debug)]
pub(super) enum Entry {
    /// It has to wait for one before it.
    Unbegun(Box<PendingRequest>, Span),
    /// A thread of the disk's has it.
    InFlight(Span),
    /// It is done but for a flush, which is begun or not.
    Unflushed(HeldRequest, Option<Ticket>),
    /// It is done, and waits for those before it.
    Done(Completion),
    /// It was given up before it was done: the ring is stopped.
    Abandoned,
}

impl Entry {
    /// The bytes that it is still at.
    pub(super) const fn span(&self) -> Option<&Span> {
        match self {
            Self::Unbegun(_, span) | Self::InFlight(span) => Some(span),
            Self::Unflushed(..) | Self::Done(_) | Self::Abandoned => None,
        }
    }

    /// What it waits for.
    pub(super) const fn waits_for(&self) -> WaitsFor {
        match self {
            Self::InFlight(_) => WaitsFor::Media,
            Self::Unflushed(_, Some(_)) => WaitsFor::Flush,
            Self::Unbegun(..) | Self::Unflushed(_, None) | Self::Done(_) | Self::Abandoned => WaitsFor::Order,
        }
    }
}

/// What may be taken in a turn still.
pub(super) struct Left {
    pub(super) requests: u16,
    pub(super) bytes: i64,
}

/// Those that wait for a flush which may be begun: a flush when all before it are done, a write that is to persist at once.
pub(super) fn unbegun_flushes(
    entries: &mut VecDeque<Entry>,
    is_leaving: bool,
) -> impl Iterator<Item = &mut Option<Ticket>> {
    let is_hasty = failpoint::has_hasty_flushes();
    let mut are_done = !is_leaving;
    entries.iter_mut().filter_map(move |entry| match entry {
        Entry::Unflushed(held, ticket) => {
            (ticket.is_none() && !is_leaving && (are_done || is_hasty || !held.is_flush())).then_some(ticket)
        }
        Entry::Unbegun(..) | Entry::InFlight(_) => {
            are_done = false;
            None
        }
        Entry::Done(_) | Entry::Abandoned => None,
    })
}
