//! Text from somebody else's mouth, such as names of disks behind a control socket, on a terminal.

use std::fmt::Write as _;

use serde_json::Value;

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

/// JSON, in which what is not to be shown is escaped: it stands in strings alone, which may be (RFC 8259 §7).
pub(super) fn printable_json(value: &Value) -> String {
    let json = value.to_string();
    let mut text = String::with_capacity(json.len());
    for letter in json.chars() {
        if matches!(letter, ' '..='~') || letter.escape_debug().eq([letter]) {
            text.push(letter);
        } else {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
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

    #[test]
    fn json_says_the_same_and_tells_a_terminal_nothing() {
        let value = serde_json::json!({"a\u{9b}2J": ["\x1b\x7f\u{202e}\u{e0001}\n\"\\ü 😀", 1.5, null]});
        let text = printable_json(&value);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
        assert!(!text.contains(['\u{9b}', '\x1b', '\x7f', '\u{202e}', '\u{e0001}', '\n']), "{text}");
        assert!(text.contains("ü 😀") && text.contains("\\udb40\\udc01"), "{text}");
    }
}
