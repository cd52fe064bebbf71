//! What the log says of a front-end that has left.

use std::sync::PoisonError;

use crate::disk::Disk;
use crate::log::{Cause, kinds};
use crate::vhost_user::{Hangup, SessionContext, SessionId};

pub(super) fn farewell<D: Disk>(session: SessionId, context: &SessionContext<D>, hangup: &Hangup) {
    let disk = &context.device.identity().name;
    let limit = &context.log_limit;
    let totals = *context.totals.lock().unwrap_or_else(PoisonError::into_inner);
    match hangup {
        Hangup::Left => {
            if let Some(suppressed) = limit.admit(Cause::Left) {
                tracing::info!(name: kinds::FRONT_END_LEFT, disk, session, suppressed, "the front-end left");
            }
        }
        hangup => {
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
