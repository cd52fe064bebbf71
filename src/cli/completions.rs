//! `vhost-user-pmem completions`: what a shell needs to complete the command line.

use std::io::Write;

use clap::{Args, Command, ValueEnum};
use clap_complete::{Shell, generate};

use crate::cli::exit::Failure;
use crate::cli::usage::NAME;

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Known,
}

/// Those that are tried.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Known {
    Bash,
    Fish,
    Zsh,
}

/// The name of the program, whose dashes clap_complete 4.6 writes for bash in one way where it looks for a command, and in another
/// where it knows what to offer there (clap-rs/clap, issue 6421).
const MISNAMED: [&str; 3] = ["vhost", "user", "pmem"];

/// Writes the script to standard output.
pub(super) fn print(args: &CompletionsArgs, command: &Command) -> Result<(), Failure> {
    let shell = match args.shell {
        Known::Bash => Shell::Bash,
        Known::Fish => Shell::Fish,
        Known::Zsh => Shell::Zsh,
    };
    let mut script = Vec::new();
    generate(shell, &mut without_hidden(command), NAME, &mut script);
    let script = String::from_utf8_lossy(&script).replace(&MISNAMED.join("__subcmd__"), &MISNAMED.join("__"));
    let mut out = std::io::stdout().lock();
    out.write_all(script.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)
}

/// Scripts would offer hidden commands as well.
fn without_hidden(command: &Command) -> Command {
    let shown = command.get_subcommands().filter(|it| !it.is_hide_set()).cloned();
    let about = command.get_about().cloned().unwrap_or_default();
    Command::new(NAME)
        .about(about)
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .args(command.get_arguments().cloned())
        .subcommands(shown)
}
