//! What `--log debug` shows of a session: each message and how it was answered, what was negotiated, rings that start
//! and stop. These lines are not limited: who asks for them wants them all. Nobody pays for them who does not.

use std::fmt;

use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};

use super::message::Message;
use super::writer_lock::SessionId;
use crate::virtio::blk::features;
use crate::virtio::queue::RingLayout;

/// A message, as it is shown once it has been answered.
#[derive(Debug)]
pub(super) struct Line {
    request: String,
    ring: Option<u32>,
    bytes: usize,
    descriptors: usize,
    needs_reply: bool,
}

impl Line {
    /// None if nobody wants to see it.
    pub(super) fn of(message: &Message) -> Option<Self> {
        tracing::enabled!(tracing::Level::DEBUG).then(|| Self {
            request: message.request_name(),
            ring: ring(message),
            bytes: message.payload().len(),
            descriptors: message.files.len().saturating_add(message.refused.len()),
            needs_reply: message.needs_reply(),
        })
    }

    /// With how it was answered.
    pub(super) fn show(self, disk: &str, session: SessionId, answer: &impl fmt::Display) {
        let Self { request, ring, bytes, descriptors, needs_reply } = self;
        let answer = answer.to_string();
        tracing::debug!(disk, session, request, ring, bytes, descriptors, needs_reply, answer, "message");
    }
}

/// The ring that a message is about: 8 bits of it where a descriptor comes along.
fn ring(message: &Message) -> Option<u32> {
    use FrontendReq as R;
    let first = message.payload().first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))?;
    match R::try_from(message.code).ok()? {
        R::SET_VRING_NUM
        | R::SET_VRING_ADDR
        | R::SET_VRING_BASE
        | R::GET_VRING_BASE
        | R::SET_VRING_ENABLE => Some(first),
        R::SET_VRING_KICK | R::SET_VRING_CALL | R::SET_VRING_ERR => Some(first & 0xff),
        _ => None,
    }
}

/// `SET_FEATURES`: what is in force from now on, and what was not offered.
pub(super) fn negotiated(disk: &str, session: SessionId, known: u64, asked_for: u64) {
    let features = Features(known);
    let ignored = (asked_for & !known != 0).then_some(Features(asked_for & !known));
    let ignored = ignored.map(tracing::field::display);
    tracing::debug!(disk, session, %features, ignored, "features are negotiated");
}

/// `SET_PROTOCOL_FEATURES`.
pub(super) fn negotiated_protocol(disk: &str, session: SessionId, known: u64, asked_for: u64) {
    let features = ProtocolFeatures(known);
    let ignored = (asked_for & !known != 0).then_some(ProtocolFeatures(asked_for & !known));
    let ignored = ignored.map(tracing::field::display);
    tracing::debug!(disk, session, %features, ignored, "protocol features are negotiated");
}

/// A ring is given to a worker.
pub(super) fn ring_starts(disk: &str, session: SessionId, ring: u16, layout: &RingLayout, is_logged: bool) {
    let RingLayout { kind, size, base, event_idx, indirect, .. } = layout;
    tracing::debug!(disk, session, ring, ?kind, size, base, event_idx, indirect, is_logged, "a ring starts");
}

/// A ring is taken back.
pub(super) fn ring_stops(disk: &str, session: SessionId, ring: u16, base: u32) {
    tracing::debug!(disk, session, ring, base, "a ring stops");
}

/// Virtio feature bits in words.
struct Features(u64);

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = (0..u64::BITS).filter(|bit| self.0 >> bit & 1 != 0);
        words(f, bits.map(|bit| features::name(bit).map_or_else(|| format!("bit {bit}"), str::to_owned)))
    }
}

/// Protocol feature bits in words.
pub(super) struct ProtocolFeatures(pub(super) u64);

impl fmt::Display for ProtocolFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = (0..u64::BITS).filter(|bit| self.0 >> bit & 1 != 0);
        let name = |bit: u32| {
            let feature = VhostUserProtocolFeatures::from_bits_retain(1 << bit);
            let known = feature.iter_names().next().map(|(name, _)| name.to_owned());
            known.unwrap_or_else(|| format!("bit {bit}"))
        };
        words(f, bits.map(name))
    }
}

fn words(f: &mut fmt::Formatter<'_>, words: impl Iterator<Item = String>) -> fmt::Result {
    let words: Vec<_> = words.collect();
    f.write_str(&words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_names() {
        assert_eq!(Features(0).to_string(), "");
        assert_eq!(
            Features(1 << 2 | 1 << 9 | 1 << 32 | 1 << 60).to_string(),
            "SEG_MAX FLUSH VERSION_1 bit 60"
        );
        assert_eq!(Features(1 << 26 | 1 << 30).to_string(), "LOG_ALL PROTOCOL_FEATURES");
        assert_eq!(ProtocolFeatures(1 | 1 << 9 | 1 << 63).to_string(), "MQ CONFIG bit 63");
    }
}
