//! When to call the driver, and when it is to kick: pure functions of the two indices.

/// `avail.flags`: the driver does not want to be called (VIRTIO 1.2 §2.7.6, `VIRTQ_AVAIL_F_NO_INTERRUPT`).
pub(super) const NO_INTERRUPT: u16 = 1;

/// `used.flags`: the device does not want to be kicked (VIRTIO 1.2 §2.7.8, `VIRTQ_USED_F_NO_NOTIFY`).
pub(super) const NO_NOTIFY: u16 = 1;

/// Whether an index that went from `old` to `new` passed `event` (VIRTIO 1.2 §2.7.10, `vring_need_event`).
#[inline]
pub(super) const fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::passed;
    use proptest::prelude::*;

    proptest! {
        /// The naive twin: walk from `old` to `new` and look for the event.
        #[test]
        fn an_event_is_passed_when_the_walk_meets_it(event: u16, old: u16, steps in 0_u16..2048) {
            let new = old.wrapping_add(steps);
            let met = (0..steps).any(|step| old.wrapping_add(step) == event);
            prop_assert_eq!(passed(event, new, old), met);
        }
    }
}
