//! What hostile peers try: guests' drivers, front-ends, and other users of the machine. Each case is a row of one table: what
//! is tried, what becomes of it, and what the log says. Meanwhile the front-end of another disk of the same daemon, on the same
//! worker, reads back and compares all that it writes.
//!
//! `ROW=words` tries only the rows that have these words in their name.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout, clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;
mod disturbed;
mod driver;
mod front_end;
mod leaks;
mod local_users;
mod neighbour;
mod table;
mod target;

use table::Row;
use target::{Target, alone};

/// All rows, or those with these words (`ROW=`).
fn rows() -> Vec<Row> {
    let words = std::env::var("ROW").unwrap_or_default();
    let all = [driver::rows(), front_end::rows(), local_users::rows()].into_iter().flatten();
    all.filter(|row| row.name.contains(&words)).collect()
}

#[test]
fn each_case_has_its_answer_and_no_neighbour_notices() {
    let _alone = alone();
    let mut target = Target::start();
    let neighbour = target.neighbour();
    let counts = target.try_rows(&rows(), &neighbour).finish();
    assert!(std::env::var("ROW").is_ok() || counts.values().sum::<usize>() >= 150);
    neighbour.stop();
    let log = target.daemon.stop_for_log();
    for vague in ["panicked", "invalid message", "invalid parameters", "inactive feature"] {
        assert!(!log.contains(vague), "{vague}:\n{log}");
    }
}
