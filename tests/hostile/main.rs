//! What hostile peers try: guests' drivers, front-ends, and other users of the machine. Each case is a row of one table: what
//! is tried, what becomes of it, and what the log says. Meanwhile the front-end of another disk of the same daemon, on the same
//! worker, reads back and compares all that it writes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout, clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;
mod driver;
mod front_end;
mod neighbour;
mod table;
mod target;

use target::Target;

#[test]
fn each_case_has_its_answer_and_no_neighbour_notices() {
    let mut target = Target::start();
    let rows: Vec<_> = [driver::rows(), front_end::rows()].into_iter().flatten().collect();
    let counts = target.try_rows(&rows).finish();
    assert!(counts.values().sum::<usize>() >= 150);
    let log = target.stop();
    for vague in ["panicked", "invalid message", "invalid parameters", "inactive feature"] {
        assert!(!log.contains(vague), "{vague}:\n{log}");
    }
}
