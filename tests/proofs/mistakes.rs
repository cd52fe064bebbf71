//! Mistakes that each proof must find: a file, a piece of it, and what is put in its place. A piece that is there no more, or
//! twice, fails the build: then the mistake is to be planted anew.

pub struct Mistake {
    pub name: &'static str,
    pub edits: &'static [(&'static str, &'static str, &'static str)],
}

/// The code as it is.
pub const NONE: Mistake = Mistake { name: "as_it_is", edits: &[] };

const SPLIT: &str = "virtio/queue/split.rs";
const PACKED: &str = "virtio/queue/packed/mod.rs";
const SLOTS: &str = "virtio/queue/packed/slots.rs";
const SYNCS: &str = "disk/durability/syncs.rs";
const MAILBOX: &str = "worker/mailbox.rs";
const RUN: &str = "worker/run.rs";
const FLUSH: &str = "disk/durability/flush.rs";

const CALL_FENCE: &str = "fence(Ordering::SeqCst);\n        if self.event_idx {";
const KICK_FENCE: &str = "fence(Ordering::SeqCst);\n        self.has_available()";

pub const RINGS: &[Mistake] = &[
    Mistake { name: "split_publish_without_fence", edits: &[(SPLIT, CALL_FENCE, "if self.event_idx {")] },
    Mistake { name: "split_arm_without_fence", edits: &[(SPLIT, KICK_FENCE, "self.has_available()")] },
    Mistake {
        name: "split_arm_without_another_look",
        edits: &[(SPLIT, KICK_FENCE, "fence(Ordering::SeqCst);\n        false")],
    },
    Mistake {
        name: "split_used_index_relaxed",
        edits: &[(SPLIT, "store(new.to_le(), Ordering::Release)", "store(new.to_le(), Ordering::Relaxed)")],
    },
    Mistake {
        name: "split_available_index_relaxed",
        edits: &[(
            SPLIT,
            "let index = u16::from_le(self.available_word(2).load(Ordering::Acquire));",
            "let index = u16::from_le(self.available_word(2).load(Ordering::Relaxed));",
        )],
    },
    Mistake {
        name: "split_event_one_late",
        edits: &[(
            "virtio/queue/notify.rs",
            "new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)",
            "new.wrapping_sub(event).wrapping_sub(2) < new.wrapping_sub(old)",
        )],
    },
    Mistake {
        name: "split_completions_in_one_slot",
        edits: &[(
            SPLIT,
            "usize::from(self.next_used & self.mask)",
            "usize::from(self.published & self.mask)",
        )],
    },
    Mistake {
        name: "packed_publish_without_fence",
        edits: &[(PACKED, "fence(Ordering::SeqCst);\n        self.wants_call", "self.wants_call")],
    },
    Mistake { name: "packed_arm_without_fence", edits: &[(PACKED, KICK_FENCE, "self.has_available()")] },
    Mistake {
        name: "packed_arm_without_another_look",
        edits: &[(PACKED, KICK_FENCE, "fence(Ordering::SeqCst);\n        false")],
    },
    Mistake {
        name: "packed_slots_relaxed",
        edits: &[
            (
                SLOTS,
                "u64::from_le(self.second_half(slot).load(Ordering::Acquire))",
                "u64::from_le(self.second_half(slot).load(Ordering::Relaxed))",
            ),
            (
                SLOTS,
                "u16::from_le(self.flags(at.slot).load(Ordering::Acquire))",
                "u16::from_le(self.flags(at.slot).load(Ordering::Relaxed))",
            ),
        ],
    },
    Mistake {
        name: "packed_event_of_the_wrong_pass",
        edits: &[(PACKED, "if is_same_pass { 0 }", "if !is_same_pass { 0 }")],
    },
    Mistake {
        name: "packed_marks_of_the_wrong_pass",
        edits: &[(PACKED, "OURS | if head.wrap {", "OURS | if self.next_avail.wrap {")],
    },
    Mistake {
        name: "packed_slots_stay_taken",
        edits: &[(PACKED, "self.taken_slots.wrapping_sub(slots)", "self.taken_slots.wrapping_sub(1)")],
    },
];

pub const FLUSHES: &[Mistake] = &[
    Mistake { name: "wrote_without_fence", edits: &[(SYNCS, "copy::full_fence();", "")] },
    Mistake {
        name: "sync_without_fence",
        edits: &[(SYNCS, "fence(Ordering::SeqCst);\n            sync()", "sync()")],
    },
    Mistake {
        name: "cleared_after_the_sync",
        edits: &[
            (SYNCS, "self.dirty.store(false, Ordering::SeqCst);\n", ""),
            (
                SYNCS,
                "DiskError::Sync { operation: self.operation, source })?;\n        }",
                "DiskError::Sync { operation: self.operation, source })?;\n            self.dirty.store(false, Ordering::SeqCst);\n        }",
            ),
        ],
    },
    Mistake {
        name: "in_flight_looked_at_first",
        edits: &[(
            SYNCS,
            "self.dirty.load(Ordering::SeqCst) || self.in_flight.load(Ordering::SeqCst) != 0",
            "self.in_flight.load(Ordering::SeqCst) != 0 || self.dirty.load(Ordering::SeqCst)",
        )],
    },
    Mistake { name: "other_outcome_not_awaited", edits: &[(SYNCS, "drop(self.syncing.write());", "")] },
    Mistake {
        name: "covers_what_came_during_the_sync",
        edits: &[(
            FLUSH,
            "self.finished.store(covered, Ordering::Release);",
            "let covered = covered.max(self.requests().last);\n        self.finished.store(covered, Ordering::Release);",
        )],
    },
    Mistake {
        name: "wakes_before_it_is_finished",
        edits: &[
            (FLUSH, "self.finished.store(covered, Ordering::Release);\n", ""),
            (
                FLUSH,
                "waker.wake();\n        }",
                "waker.wake();\n        }\n        self.finished.store(covered, Ordering::Release);",
            ),
        ],
    },
    Mistake {
        name: "failure_noted_too_late",
        edits: &[(
            FLUSH,
            "Err(error) if !self.has_failed.swap(true, Ordering::AcqRel) => {",
            "Err(error) if !self.has_failed.load(Ordering::Acquire) => {\n                self.finished.store(covered, Ordering::Release);\n                self.has_failed.store(true, Ordering::Release);",
        )],
    },
];

pub const MAILBOXES: &[Mistake] = &[
    Mistake {
        name: "woken_before_the_flag",
        edits: &[(
            MAILBOX,
            "self.is_woken.store(true, Ordering::Release);",
            "let _ = self.event.write(1);\n        self.is_woken.store(true, Ordering::Release);\n        return;",
        )],
    },
    Mistake {
        name: "flag_cleared_behind_the_mailbox",
        edits: &[(
            RUN,
            "if self.inbox.waker.take_wake() {\n                match self.wake_up() {\n                    Some(runner) => self = runner,\n                    None => return,\n                }\n",
            "if self.inbox.waker.is_woken() {\n                match self.wake_up() {\n                    Some(runner) => self = runner,\n                    None => return,\n                }\n                self.inbox.waker.take_wake();\n",
        )],
    },
    Mistake {
        name: "woken_before_the_command",
        edits: &[(
            MAILBOX,
            "let _ = self.commands.send(command);",
            "self.waker.wake();\n        let _ = self.commands.send(command);\n        return;",
        )],
    },
    Mistake {
        name: "armed_without_another_look",
        edits: &[(
            RUN,
            "            if slot.ring.arm() {\n                return true;\n            }",
            "            let _ = slot.ring.arm();",
        )],
    },
    Mistake {
        name: "held_ring_forgotten",
        edits: &[(RUN, "self.poll_from_now_on(number, State::Held);", "let _ = number;")],
    },
];
