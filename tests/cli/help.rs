//! What it says about itself.

use std::process::Command;

use super::{run, stdout};

/// The keys of `--disk` that have a row of their own, as the README's table has them.
fn keys() -> Vec<String> {
    let tables = stdout(&run(["reference"]));
    let rows = tables.split_once("<!-- table: keys -->").unwrap().1.split("<!--").next().unwrap().lines();
    let names = rows.filter_map(|row| row.strip_prefix("| `")?.split_once('='));
    let names: Vec<_> = names.map(|(name, _)| name.to_owned()).collect();
    assert!(names.len() > 20 && names.contains(&"slow-ms".to_owned()), "{names:?}");
    names
}

const OPTIONS: [&str; 27] = [
    "--config",
    "--check",
    "--require-durable",
    "--deep-flush",
    "--disk",
    "--workers",
    "--poll-max-us",
    "--cpus",
    "--numa",
    "--metrics",
    "--metrics-listen",
    "--control",
    "--allow",
    "--no-symlinks",
    "--exit-on-disconnect",
    "--stop-timeout",
    "--socket-path",
    "--fd",
    "--blk-file",
    "--read-only",
    "--print-capabilities",
    "--log",
    "--log-format",
    "--sandbox",
    "--user",
    "--group",
    "--sandbox-check",
];

/// Those of the load generator.
#[cfg(feature = "bench")]
const BENCH_OPTIONS: [&str; 19] = [
    "--socket",
    "--against",
    "--rw",
    "--rwmixread",
    "--fsync",
    "--bs",
    "--iodepth",
    "--numqueues",
    "--size",
    "--runtime",
    "--rounds",
    "--poll",
    "--event",
    "--packed",
    "--verify",
    "--server-pid",
    "--against-pid",
    "--json",
    "--plot",
];

/// The rows of "Exit codes:", the one table of them.
fn exit_codes(help: &str) -> Vec<(u8, String)> {
    let table = help.split_once("Exit codes:\n").expect("a table of exit codes").1;
    table
        .lines()
        .map(|line| line.trim().split_once("  ").unwrap())
        .map(|(code, meaning)| (code.parse().unwrap(), meaning.to_owned()))
        .collect()
}

#[test]
fn every_help_shows_every_exit_code_and_fits_100_columns() {
    let codes = exit_codes(&stdout(&run(["--help"])));
    assert_eq!(codes.iter().map(|(code, _)| *code).collect::<Vec<_>>(), (0..=15).collect::<Vec<_>>());
    let commands = ["serve", "info", "ctl", "top", "bench"]
        .into_iter()
        .filter(|name| *name != "bench" || cfg!(feature = "bench"));
    for args in commands.map(|name| [name, "--help"]) {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(exit_codes(&stdout(&output)), codes, "{args:?}");
        for line in stdout(&output).lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }
}

#[test]
fn help_lists_every_key_and_option() {
    let serve = stdout(&run(["serve", "--help"]));
    let all = stdout(&run(["--help"])) + &serve;
    for key in keys() {
        assert!(serve.contains(&format!("\n  {key}=")), "{key}");
    }
    for option in OPTIONS {
        assert!(all.contains(&format!("{option} ")) || all.contains(&format!("{option}\n")), "{option}");
    }
    let listed = all.lines().filter_map(|line| line.strip_prefix("      --"));
    for option in listed.filter_map(|line| line.split([' ', '[', '=']).next()) {
        let is_known = |known: &&str| known.strip_prefix("--") == Some(option);
        assert!(OPTIONS.iter().any(is_known), "this test does not know --{option}");
    }
}

#[cfg(feature = "bench")]
#[test]
fn the_load_generators_options_are_in_help_and_manual() {
    let help = stdout(&run(["bench", "--help"]));
    let own = help.split_once("Logging:").expect("the options of every command come behind").0;
    let listed = own.lines().filter(|line| line.starts_with("      --"));
    assert_eq!(listed.count(), BENCH_OPTIONS.len(), "{help}");
    let page = stdout(&run(["man"])).replace("\\-", "-");
    let section = page.split_once("vhost-user-pmem bench").expect("a section").1;
    for option in BENCH_OPTIONS {
        assert!(
            help.contains(&format!("      {option} ")) || help.contains(&format!("      {option}\n")),
            "{option}"
        );
        assert!(section.contains(&format!("\\fB{option}\\fR")), "{option}");
    }
}

#[test]
fn a_build_without_the_load_generator_does_not_mention_it() {
    let texts = [&["--help"][..], &["-h"], &["serve", "--help"], &["info", "--help"], &["man"]];
    let mentions = |args| stdout(&run(args)).contains("bench");
    assert_eq!(texts.into_iter().any(mentions), cfg!(feature = "bench"));
    let called = run(["bench", "--socket", "/nonexistent"]);
    assert_eq!(called.status.code(), Some(if cfg!(feature = "bench") { 12 } else { 2 }), "{called:?}");
}

#[test]
fn the_manual_page_is_complete() {
    let output = run(["man"]);
    assert_eq!(output.status.code(), Some(0));
    let page = stdout(&output).replace("\\-", "-");
    assert!(page.contains(".TH vhost-user-pmem 1"), "{page}");
    assert!(page.contains(".SH DESCRIPTION\nServe a persistent-memory file"), "{page}");
    assert!(!page.contains('`'), "marks of code are not for readers of the page");
    for key in keys() {
        assert!(page.contains(&format!("\\fB{key}\\fR=")), "{key}");
    }
    for option in OPTIONS {
        assert!(page.contains(&format!("\\fB{option}\\fR")), "{option}");
    }
    for (code, meaning) in exit_codes(&stdout(&run(["--help"]))) {
        assert!(page.contains(&format!("\\fB{code}\\fR\n{meaning}")), "{code} {meaning}");
    }
}

#[test]
fn each_command_has_a_page() {
    let commands = ["serve", "info", "ctl", "top", "bench"];
    for name in commands.into_iter().filter(|name| *name != "bench" || cfg!(feature = "bench")) {
        let page = stdout(&run(["man", name])).replace("\\-", "-");
        let help = stdout(&run([name, "--help"]));
        assert!(page.contains(&format!(".TH vhost-user-pmem-{name} 1")), "{page}");
        assert!(page.contains(&format!(".SH NAME\nvhost-user-pmem-{name} - ")), "{page}");
        let synopsis = page.split_once(".SH SYNOPSIS").unwrap().1.split_once(".SH").unwrap().0;
        assert!(synopsis.lines().skip(1).all(|line| line == ".PP" || line.contains(name)), "{synopsis}");
        let options = help.lines().filter_map(|line| line.strip_prefix("      --"));
        let mut count = 0;
        for option in options.map(|line| line.split([' ', '[', '=']).next().unwrap()) {
            assert!(page.contains(&format!("\\fB--{option}\\fR")), "{name}: no --{option} in {page}");
            count += 1;
        }
        assert!(count > 4 || ["info", "ctl"].contains(&name), "{help}");
        assert_eq!(keys().iter().all(|key| page.contains(&format!("\\fB{key}\\fR="))), name == "serve");
        assert_eq!(page.matches("EXIT STATUS").count(), 1, "{page}");
        assert!(!page.contains('`'), "marks of code are not for readers of the page");
    }
    assert_eq!(run(["man", "nonsense"]).status.code(), Some(2));
}

#[test]
fn shells_complete_commands_and_options() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&run(["completions", shell]));
        for word in
            ["serve", "info", "metrics-listen", "blk-file", "sandbox", "ctl", "top", "disconnect", "drain"]
        {
            assert!(script.contains(word), "{shell}: no {word}");
        }
        assert!(!script.contains("reference"), "{shell}: a hidden command is offered");
    }
    assert_eq!(run(["completions", "nonsense"]).status.code(), Some(2));
    // What a person gets who presses the tabulator.
    let script = stdout(&run(["completions", "bash"]));
    for (words, expected) in [
        ("vhost-user-pmem s", "serve"),
        ("vhost-user-pmem serve --metrics-l", "--metrics-listen"),
        ("vhost-user-pmem ctl rem", "remove"),
    ] {
        let ask = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n\
             $(complete -p vhost-user-pmem | sed 's/.* -F \\([^ ]*\\).*/\\1/') vhost-user-pmem \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let output = Command::new("bash").args(["-c", &ask]).output().unwrap();
        assert_eq!(stdout(&output).trim(), expected, "{output:?}");
    }
}

#[test]
fn the_version_is_that_of_the_package() {
    let output = run(["--version"]);
    assert_eq!(stdout(&output), concat!("vhost-user-pmem ", env!("CARGO_PKG_VERSION"), "\n"));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn capabilities_are_those_of_the_specification() {
    // "Other options and arguments should be ignored", wrong ones too.
    for args in [
        &["--print-capabilities"][..],
        &["--fd=3", "--socket-path=/x", "--print-capabilities"],
        &["--print-capabilities", "--unknown", "word"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(output.stderr.is_empty(), "{args:?}");
        let capabilities: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let expected = serde_json::json!({ "type": "block", "features": ["read-only", "blk-file"] });
        assert_eq!(capabilities, expected, "{args:?}");
    }
}
