//! `--config`: the options of a file's `[server]` join those of the command line, which go before them.
//!
//! They are the long options of `serve`: clap reads them, and what it knows of them is all that is known here.

use std::any::TypeId;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

use crate::cli::usage::NAME;
use crate::config::file::{ConfigFile, FileCause, FileError, Setting, SettingValue};
use crate::config::keys;

/// What is said on the command line alone: where the file is, what is to be done once, and disks, which have a table of
/// their own.
const NOT_IN_FILES: [&str; 6] = ["config", "check", "disk", "sandbox-check", "help", "version"];

/// Words that say on the command line what the file says, without what is given there already. `command` is that of the
/// whole program, and `given` what was read for `serve`.
///
/// # Errors
/// An option that `serve` does not have, or a value that it does not take.
pub(super) fn words(
    file: &ConfigFile,
    mut command: Command,
    given: &ArgMatches,
) -> Result<Vec<OsString>, FileError> {
    command.build();
    let Some(serve) = command.find_subcommand("serve") else { return Ok(Vec::new()) };
    let mut words = Vec::new();
    for setting in &file.server {
        let arg = find(serve, setting)?;
        let word = word(arg, setting)?;
        try_word(&command, setting, word.as_ref())?;
        let is_given = |arg: &Arg| {
            let source = given.value_source(arg.get_id().as_str());
            matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
        };
        if !is_given(arg) && !serve.get_arg_conflicts_with(arg).into_iter().any(is_given) {
            words.extend(word);
        }
    }
    Ok(words)
}

fn is_for_files(arg: &Arg) -> bool {
    !arg.is_hide_set() && arg.get_long().is_some_and(|long| !NOT_IN_FILES.contains(&long))
}

fn find<'a>(serve: &'a Command, setting: &Setting) -> Result<&'a Arg, FileError> {
    let known = || serve.get_arguments().filter(|arg| is_for_files(arg));
    known().find(|arg| arg.get_long() == Some(&setting.name)).ok_or_else(|| {
        let suggestion = keys::suggestion(&setting.name, known().filter_map(Arg::get_long));
        setting.place.clone().error(FileCause::UnknownOption { name: setting.name.clone(), suggestion })
    })
}

/// None for a switch that is off.
fn word(arg: &Arg, setting: &Setting) -> Result<Option<OsString>, FileError> {
    let name = &setting.name;
    let text = match (&setting.value, arg.get_action().takes_values()) {
        (SettingValue::Switch(is_on), false) => return Ok(is_on.then(|| format!("--{name}").into())),
        (SettingValue::Text(_), false) => {
            let text = format!("{name} is a switch; write true or false");
            return Err(setting.place.clone().error(FileCause::Server(text)));
        }
        (SettingValue::Switch(is_on), true) => if *is_on { "on" } else { "off" }.to_owned(),
        (SettingValue::Text(text), true) => text.clone(),
    };
    let is_path = arg.get_value_parser().type_id() == TypeId::of::<PathBuf>();
    let folder = setting.place.file.parent().filter(|_| is_path && !text.is_empty());
    let mut word = OsString::from(format!("--{name}="));
    match folder {
        Some(folder) => word.push(folder.join(text)),
        None => word.push(text),
    }
    Ok(Some(word))
}

/// Has clap read the option alone, so that what is wrong with it is said with its place.
fn try_word(command: &Command, setting: &Setting, word: Option<&OsString>) -> Result<(), FileError> {
    let args = [NAME, "serve", "--config=FILE"].map(OsString::from).into_iter().chain(word.cloned());
    let Err(error) = command.clone().try_get_matches_from(args) else { return Ok(()) };
    let text = error.to_string();
    let text = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    let text = text.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    Err(setting.place.clone().error(FileCause::Server(text)))
}
