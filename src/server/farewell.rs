//! What the log and the metrics say of a front-end that has left, or was not let in.

use std::sync::PoisonError;

use crate::disk::Disk;
use crate::limits::budget::Exceeded;
use crate::log::{Cause, kinds};
use crate::vhost_user::{Hangup, SessionContext, SessionId};

/// There is no place for it.
pub(super) fn turned_away<D: Disk>(context: &SessionContext<D>) {
    context.front_ends.count_closed();
    if let Some(suppressed) = context.log_limit.admit(Cause::NoRoom) {
        let (disk, most) = (&context.device.identity().name, context.most_front_ends());
        tracing::warn!(name: kinds::FRONT_END_REFUSED, disk, most, suppressed, "a front-end is turned away: too many are connected");
    }
}

/// What all front-ends of its disk may have is used up.
pub(super) fn no_budget<D: Disk>(context: &SessionContext<D>, error: &Exceeded) {
    context.front_ends.count_closed();
    if let Some(suppressed) = context.log_limit.admit(Cause::NoRoom) {
        let disk = &context.device.identity().name;
        tracing::warn!(name: kinds::FRONT_END_REFUSED, disk, %error, suppressed, "a front-end is turned away");
    }
}

/// It has said nothing, and another one has come.
pub(super) fn made_room<D: Disk>(context: &SessionContext<D>) {
    context.front_ends.count_closed();
    if let Some(suppressed) = context.log_limit.admit(Cause::MadeRoom) {
        let disk = &context.device.identity().name;
        tracing::warn!(disk, suppressed, "a connection that has sent nothing is closed to make room");
    }
}

/// It has begun its first message, and not gone on.
pub(super) fn given_up<D: Disk>(context: &SessionContext<D>) {
    context.front_ends.count_closed();
}

/// It has left, or was hung up on.
pub(super) fn left<D: Disk>(session: SessionId, context: &SessionContext<D>, hangup: &Hangup) {
    let disk = &context.device.identity().name;
    let limit = &context.log_limit;
    let totals = context.totals.lock().unwrap_or_else(PoisonError::into_inner).sum();
    match hangup {
        Hangup::Left => {
            if let Some(suppressed) = limit.admit(Cause::Left) {
                tracing::info!(name: kinds::FRONT_END_LEFT, disk, session, suppressed, "the front-end left");
            }
        }
        hangup => {
            context.front_ends.count_closed();
            if let Some(suppressed) = limit.admit(Cause::HungUp) {
                tracing::warn!(name: kinds::FRONT_END_LEFT, disk, session, reason = %hangup, suppressed, "closed the connection of the front-end");
            }
        }
    }
    let Some(suppressed) = limit.admit(Cause::Served) else { return };
    tracing::info!(
        disk,
        reads = totals.reads,
        read_bytes = totals.read_bytes,
        writes = totals.writes,
        written_bytes = totals.written_bytes,
        zeroed_bytes = totals.zeroed_bytes,
        media_written_bytes = totals.media_written_bytes,
        flushes = totals.flushes,
        others = totals.others,
        failures = totals.failures,
        broken_rings = totals.broken_rings,
        suppressed,
        "served so far"
    );
}
