//! Text from somebody else's mouth, such as names of disks behind a control socket, on a terminal.

/// What a terminal would obey, or not show, is written as what it is.
pub(super) fn printable(text: &str) -> String {
    let letter = |letter: char| match letter {
        '"' | '\'' | '\\' => letter.to_string(),
        _ => letter.escape_debug().to_string(),
    };
    text.chars().map(letter).collect()
}

/// The same of a text with several lines.
pub(super) fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_tell_a_terminal_anything() {
        assert_eq!(printable("db0 \"a\" \\ ü"), "db0 \"a\" \\ ü");
        assert_eq!(printable("\x1b]0;x\x07\n"), "\\u{1b}]0;x\\u{7}\\n");
        assert_eq!(printable("a\u{202e}b\u{200b}\u{9b}"), "a\\u{202e}b\\u{200b}\\u{9b}");
        assert_eq!(printable_lines("a\x1b\nb"), "a\\u{1b}\nb");
    }
}
