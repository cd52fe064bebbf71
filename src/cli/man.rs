//! `vhost-user-pmem man`: the manual pages, made of the same texts as help and the README, and of `man/manual.md`.

mod chapters;

use std::io::Write;

use clap::{Arg, Args, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use crate::api::metrics::FAMILIES;
use crate::cli::exit::{Exit, Failure};
use crate::cli::usage::{NAME, USAGE};
use crate::config::keys::Key;
use crate::limits::table;

const SIGNALS: [(&str, &str); 3] = [
    (
        "SIGTERM",
        "Ends the server: it finishes the requests that it has begun, removes the sockets and exits with code 0.",
    ),
    ("SIGINT", "The same. A second one ends the process at once."),
    (
        "SIGHUP",
        "Reads the sizes of files and devices again: disks without size= grow with them, and guests are told. Reads Linux's \
         lists of bad media again, too; and with --control or --allow the configuration file: disks are added, made larger and \
         removed, or the log says why nothing has changed.",
    ),
];

const ENVIRONMENT: [(&str, &str); 7] = [
    ("VHOST_USER_PMEM_LOG", "What to log when there is no --log."),
    (
        "VHOST_USER_PMEM_COPY",
        "How bytes are copied: nt64, nt32 or nt16 (non-temporal stores of that many bytes) or portable. By default what suits the CPU.",
    ),
    (
        "LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES",
        "Sockets that the service manager passes. Each belongs to the disk that has its name, or whose socket= is its path.",
    ),
    ("NOTIFY_SOCKET", "Where to tell the service manager that every socket listens (READY=1)."),
    ("FDSTORE", "If it is set and not 0, the service manager is given the sockets to keep for the next run."),
    ("VHOST_USER_PMEM_CONTROL", "The control socket for ctl and top when there is no --control."),
    ("NO_COLOR", "If it is set and not empty, the log on a terminal, and top, have no colours."),
];

const EXAMPLES: &[(&str, &str)] = &[
    (
        "Create a disk of 20 GiB and serve it:",
        "vhost-user-pmem serve --disk path=/mnt/pmem/db0.img,socket=/run/db0.sock,size=20G",
    ),
    (
        "Serve two disks from one process, one of them read-only:",
        "vhost-user-pmem serve --disk path=/srv/a.img,socket=/run/a.sock \
         --disk path=/srv/b.img,socket=/run/b.sock,readonly=on",
    ),
    (
        "Serve metrics as well, and read them:",
        "vhost-user-pmem serve --disk path=/srv/a.img,socket=/run/a.sock --metrics=/run/metrics.sock & \
         curl --unix-socket /run/metrics.sock http://localhost/metrics",
    ),
    (
        "Start a server that disks can be added to, add one, and limit what its guest takes:",
        "vhost-user-pmem serve --control /run/pmem.sock --allow /srv --allow /run & \
         vhost-user-pmem ctl --control /run/pmem.sock add path=/srv/a.img,socket=/run/a.sock,size=20G; \
         vhost-user-pmem ctl --control /run/pmem.sock limit a iops=5000",
    ),
    (
        "The way that management software starts a back-end program:",
        "vhost-user-pmem --socket-path=/run/a.sock --blk-file=/srv/a.img --read-only",
    ),
    #[cfg(feature = "bench")]
    (
        "Compare two back-ends whose disks may be overwritten:",
        "vhost-user-pmem bench --socket /run/a.sock --against /run/other.sock --rw randwrite --plot plot.svg",
    ),
];

/// What stands in the margin of each page.
const MANUAL: &str = "User Commands";

const HEADINGS: [&str; 3] = ["Back-end program", "Logging", "Sandbox"];

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// A command: its page alone
    #[arg(value_parser = command_with_page)]
    command: Option<String>,
}

fn command_with_page(name: &str) -> Result<String, String> {
    match name {
        "serve" | "info" | "ctl" | "top" => Ok(name.to_owned()),
        "bench" if cfg!(feature = "bench") => Ok(name.to_owned()),
        _ => Err("there is no such command".to_owned()),
    }
}

/// Writes a page in roff to standard output.
pub(super) fn print(args: &ManArgs, mut command: Command) -> Result<(), Failure> {
    command.build();
    let one = args.command.as_ref().and_then(|name| command.find_subcommand(name));
    let mut text = Vec::new();
    let written = match one {
        Some(one) => page_of(one, &mut text),
        None => page(&command, &mut text),
    };
    let mut out = std::io::stdout().lock();
    written.and_then(|()| out.write_all(&text)).and_then(|()| out.flush()).map_err(Failure::Output)
}

/// The page of a command: what the whole page says of it, and what it shares with the others.
fn page_of(command: &Command, out: &mut impl Write) -> std::io::Result<()> {
    let title = format!("{NAME}-{}", command.get_name());
    let man = Man::new(command.clone()).title(title).section("1").manual(MANUAL).date("");
    man.render_title(out)?;
    man.render_name_section(out)?;
    let mut roff = Roff::new();
    synopsis(&mut roff, |rest| rest.split(' ').next() == Some(command.get_name()));
    roff.control("SH", ["DESCRIPTION"]);
    about(&mut roff, command);
    roff.control("SH", ["OPTIONS"]);
    options(&mut roff, command.get_arguments().filter(|arg| arg.get_help_heading().is_none()));
    tasks(&mut roff, command);
    keys(&mut roff, command);
    under_headings(&mut roff, command);
    exit_status(&mut roff);
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold(NAME), roman("(1) has metrics, limits, signals, and chapters about how it is used.")]);
    roff.to_writer(out)
}

fn page(command: &Command, out: &mut impl Write) -> std::io::Result<()> {
    let man = Man::new(command.clone()).section("1").manual(MANUAL).date("");
    man.render_title(out)?;
    man.render_name_section(out)?;
    let mut roff = Roff::new();
    synopsis(&mut roff, |_| true);
    roff.control("SH", ["DESCRIPTION"]);
    about(&mut roff, command);
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        commands_options(&mut roff, subcommand);
    }
    under_headings(&mut roff, command);
    endings(&mut roff);
    roff.to_writer(out)
}

/// Options that stand under a heading of their own.
fn under_headings(roff: &mut Roff, command: &Command) {
    for heading in HEADINGS {
        let mut args =
            command.get_arguments().filter(|arg| arg.get_help_heading() == Some(heading)).peekable();
        if args.peek().is_some() {
            roff.control("SH", [heading.to_uppercase().as_str()]);
            options(roff, args);
        }
    }
}

fn synopsis(roff: &mut Roff, is_shown: impl Fn(&str) -> bool) {
    roff.control("SH", ["SYNOPSIS"]);
    for rest in USAGE.iter().filter(|rest| is_shown(rest)) {
        roff.control("PP", []);
        roff.text([bold(NAME), roman(format!(" {rest}"))]);
    }
}

/// The section of a subcommand.
fn commands_options(roff: &mut Roff, command: &Command) {
    roff.control("SH", [format!("{} {}", NAME, command.get_name()).as_str()]);
    about(roff, command);
    options(roff, command.get_arguments().filter(|arg| arg.get_help_heading().is_none()));
    tasks(roff, command);
    keys(roff, command);
}

/// What stands behind the name of a command.
fn tasks(roff: &mut Roff, command: &Command) {
    for task in command.get_subcommands().filter(|task| !task.is_hide_set()) {
        roff.control("SS", [format!("{} {}", command.get_name(), task.get_name()).as_str()]);
        about(roff, task);
        options(roff, task.get_arguments().filter(|arg| !arg.is_global_set()));
    }
}

fn keys(roff: &mut Roff, command: &Command) {
    if command.get_name() == "serve" {
        roff.control("SS", ["Keys of --disk"]);
        for key in Key::listed() {
            let head = vec![bold(key.name()), roman("="), italic(key.form())];
            entry(roff, head, &key.sentence());
        }
    }
}

fn about(roff: &mut Roff, command: &Command) {
    if let Some(about) = command.get_long_about().or(command.get_about()) {
        paragraphs(roff, "PP", &about.to_string());
    }
}

fn options<'a>(roff: &mut Roff, args: impl Iterator<Item = &'a Arg>) {
    for arg in args.filter(|arg| !arg.is_hide_set() && arg.get_id() != "help") {
        let mut head = Vec::new();
        if let Some(long) = arg.get_long() {
            head.push(bold(format!("--{long}")));
        }
        if arg.get_action().takes_values() {
            let values = arg.get_value_names().unwrap_or_default().iter().map(|name| name.to_string());
            let gap = if arg.is_positional() { "" } else { " " };
            head.extend([roman(gap), italic(values.collect::<Vec<_>>().join(" "))]);
        }
        let mut text = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
        if arg.get_action().takes_values() {
            text.push_str(&values(arg));
        }
        entry(roff, head, &text);
    }
}

/// What a value may be, and is when nothing is said, as help shows it.
fn values(arg: &Arg) -> String {
    let possible: Vec<_> =
        arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    let default = arg.get_default_values().first().and_then(|value| value.to_str());
    let possible = if possible.is_empty() { String::new() } else { format!(" [{}]", possible.join("|")) };
    let default = default.map(|default| format!(" [default: {default}]")).unwrap_or_default();
    possible + &default
}

fn exit_status(roff: &mut Roff) {
    roff.control("SH", ["EXIT STATUS"]);
    for exit in Exit::ALL {
        entry(roff, vec![bold(exit.code().to_string())], exit.meaning());
    }
}

/// How it ends, and what else has an influence.
fn endings(roff: &mut Roff) {
    exit_status(roff);
    roff.control("SH", ["METRICS"]);
    paragraphs(roff, "PP", "Each name begins with vhost_user_pmem_, and the label \"disk\" names the disk.");
    for family in &FAMILIES {
        entry(roff, vec![bold(family.name)], family.help);
    }
    roff.control("SH", ["LIMITS"]);
    for bound in table::all() {
        let counted = bound.metric.map(|name| format!(" (counted by {name})")).unwrap_or_default();
        let text = format!("{}. Beyond it: {}{counted}.", bound.limit, bound.beyond);
        entry(roff, vec![bold(bound.what.replace('`', ""))], &text);
    }
    for (title, rows) in [("SIGNALS", &SIGNALS[..]), ("ENVIRONMENT", &ENVIRONMENT[..])] {
        roff.control("SH", [title]);
        for (name, meaning) in rows {
            entry(roff, vec![bold(*name)], meaning);
        }
    }
    chapters::write(roff);
    roff.control("SH", ["EXAMPLES"]);
    for (what, line) in EXAMPLES {
        entry(roff, vec![roman(*what)], line);
    }
}

fn entry(roff: &mut Roff, head: Vec<Inline>, text: &str) {
    roff.control("TP", []);
    roff.text(head);
    paragraphs(roff, "IP", text);
}

/// Help and the README mark code with backticks, which say nothing here.
fn paragraphs(roff: &mut Roff, separator: &str, text: &str) {
    for line in text.replace('`', "").lines() {
        match line.trim() {
            "" => roff.control(separator, []),
            line => roff.text([roman(line)]),
        };
    }
}
