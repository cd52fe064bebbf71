//! Bounds are defined in one file, and each has a row in the table that the README shows.

use std::fs;
use std::path::{Path, PathBuf};

use super::root;

/// Constants elsewhere whose names are those of bounds, and why users are not told of them.
const OTHERS: &[(&str, &str)] = &[
    ("EXHAUSTED_PAUSE", "a pause between two attempts; nobody is refused anything by it"),
    ("MAX_DEPTH", "layers of device-mapper that are searched for persistent memory"),
    ("MAX_RUNS", "a tuning of the flusher: more runs are joined"),
    ("MAX_IDLE_CHECKS", "a tuning of polling: the ring goes back to its kick"),
    ("MAX_CHAIN_SEGMENTS", "made of MAX_CHAIN"),
    ("MAX_SEGMENTS", "segments given to one system call; further ones are given to the next"),
    ("MAX_PENDING", "pages of a machine check that are handled at once; further ones are handled next"),
    ("MAX_BYTES", "room for an attribute that only this program writes"),
    ("MOST_BYTES", "room for a packet between two processes of ours"),
    ("MOST_PACKETS", "more than a socket has room for"),
    ("MOST_LETTERS", "of a file's name in a line of the log; the rest is left out"),
    ("MOST", "chains that are taken at once: a tuning"),
    ("SEG_MAX", "a default, which the table of keys says"),
    ("MOST_SECONDS", "of the load generator's command line"),
    ("MAX_RATE", "of what an operator limits guests to: as in QEMU"),
    ("MAX_BURST_SECONDS", "the same"),
    ("NO_LIMIT_BYTES", "what a control group says that has no limit"),
];

/// Places whose constants no peer of the daemon meets: tools of developers, and what asks a daemon for something.
const TOOLS: [&str; 3] = ["src/tools", "src/cli/top", "src/cli/ctl_client.rs"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Names of the constants that a text defines, those of its tests aside.
fn constants(text: &str) -> Vec<&str> {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let definition = |line: &str| {
        let start = line.find("const ")?;
        let is_definition = line[..start].trim().is_empty() || line[..start].trim().starts_with("pub");
        is_definition.then_some(start + "const ".len())
    };
    let name = |line| definition(line).and_then(|start| line[start..].split_once(": ")).map(|(name, _)| name);
    text.lines().filter_map(name).collect()
}

fn is_a_bound(name: &str) -> bool {
    let words: Vec<_> = name.split('_').collect();
    ["MAX", "MOST", "LIMIT", "TIMEOUT", "PATIENCE", "DEADLINE", "EXHAUSTED"]
        .iter()
        .any(|word| words.contains(word))
}

#[test]
fn every_bound_is_in_the_table() {
    let table = fs::read_to_string(root().join("src/limits/table.rs")).unwrap();
    let bounds = fs::read_to_string(root().join("src/limits/bounds.rs")).unwrap();
    let bounds = constants(&bounds);
    assert!(bounds.len() > 40, "{bounds:?}");
    let is_word =
        |name: &str| table.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
    for name in bounds {
        assert!(is_word(name), "{name} of src/limits/bounds.rs has no row in src/limits/table.rs");
    }
}

#[test]
fn no_bound_is_defined_elsewhere() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let (mut seen, mut unknown) = (Vec::new(), Vec::new());
    for path in files {
        let place = path.strip_prefix(root()).unwrap();
        if place.ends_with("limits/bounds.rs") || TOOLS.iter().any(|folder| place.starts_with(folder)) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for name in constants(&text).into_iter().filter(|name| is_a_bound(name)) {
            match OTHERS.iter().find(|(other, _)| other == &name) {
                Some((other, _)) => seen.push(other),
                None => unknown.push(format!("{name} of {}", place.display())),
            }
        }
    }
    assert!(
        unknown.is_empty(),
        "bounds belong into src/limits/bounds.rs, with a row in src/limits/table.rs; what is none has its reason here: {unknown:#?}"
    );
    for (name, _) in OTHERS {
        assert!(seen.contains(&name), "{name} is excused and does not exist");
    }
}

#[test]
fn bounds_are_recognised() {
    let text = "pub const MAX_ONE: u8 = 1;\n    const TWO_TIMEOUT: Duration = X;\nconst MAXIMAL: u8 = 3;\n// const MAX_4: u8 = 4;\n";
    assert_eq!(constants(text), ["MAX_ONE", "TWO_TIMEOUT", "MAXIMAL"]);
    assert!(is_a_bound("MAX_ONE") && is_a_bound("TWO_TIMEOUT") && !is_a_bound("MAXIMAL"));
}
