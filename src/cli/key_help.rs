//! The keys of a disk as help shows them.

use std::fmt::Write;

use crate::config::keys::Key;

/// The keys as help shows them.
pub(super) fn help() -> String {
    let style = clap::builder::Styles::styled();
    let (header, literal) = (style.get_header(), style.get_literal());
    let mut text = format!("{header}Keys of --disk:{header:#}\n");
    for key in Key::listed() {
        let pad = KEY_COLUMNS.saturating_sub(key.name().len() + key.form().len() + 1);
        let lines = wrapped(&key.sentence());
        // Writing to a string cannot fail.
        let _ = write!(text, "  {literal}{}{literal:#}={}{:pad$}  ", key.name(), key.form(), "");
        let _ = writeln!(text, "{}", lines.join(&format!("\n  {:KEY_COLUMNS$}  ", "")));
    }
    text
}

/// Columns of a key with its value, and of what is said of it: help has 100 of them.
const KEY_COLUMNS: usize = 25;
const MEANING_COLUMNS: usize = 71;

/// Lines that are not longer than [`MEANING_COLUMNS`], as far as words allow.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= MEANING_COLUMNS => *line += &format!(" {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
