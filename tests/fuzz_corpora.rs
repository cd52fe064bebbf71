//! The inputs of `tests/fuzz/corpus` through the fuzz targets, without a fuzzer: those that cover the most, and what was found once
//! (`finding-…`). What each target insists on is said in its file.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::print_stdout)]

mod common;
#[path = "fuzz/targets/mod.rs"]
mod targets;

use std::path::{Path, PathBuf};

use common::guarded::TRIED;

/// One after the other: the targets count the process's descriptors and threads.
#[test]
fn inputs_that_fuzzers_have_made_up_are_harmless() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    for (name, target) in targets::ALL {
        let folder = std::fs::read_dir(corpora.join(name)).unwrap();
        let mut inputs: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(inputs.len() >= 10, "{name} has hardly any inputs");
        let try_all = || {
            for input in &inputs {
                *TRIED.lock().unwrap() = format!("({})", input.display());
                target(&std::fs::read(input).unwrap());
            }
        };
        // What a target keeps from one input to the next ends with its thread.
        std::thread::scope(|scope| scope.spawn(try_all).join()).unwrap();
        println!("{name}: {} inputs", inputs.len());
    }
}
