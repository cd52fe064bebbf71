//! Sizes as people write and read them: binary units.

use std::fmt;

const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];

/// Text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SizeError {
    #[error("{0:?} is not a size; write bytes, or a whole number with K, M, G, T or P (KiB, MiB, …)")]
    NotASize(String),
    #[error("{0:?} is ambiguous: units are powers of 1024 here; write {1}")]
    Decimal(String, String),
    #[error("{0:?} is more than 2^64 bytes")]
    TooBig(String),
}

/// Reads bytes, or a whole number with a unit: `K`, `KiB`, … `P`, `PiB`, in either case.
pub(crate) fn parse(text: &str) -> Result<u64, SizeError> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(SizeError::NotASize(text.to_owned()));
    }
    let unit = unit.to_ascii_uppercase();
    let shift = match unit.as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        "P" | "PIB" => 50,
        "KB" | "MB" | "GB" | "TB" | "PB" => {
            let remedy = format!("{number}{}iB", unit.trim_end_matches('B'));
            return Err(SizeError::Decimal(text.to_owned(), remedy));
        }
        _ => return Err(SizeError::NotASize(text.to_owned())),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| SizeError::TooBig(text.to_owned()))
}

/// Shows bytes in the largest unit that leaves a whole part: `20 GiB`, `1.5 MiB`, `512 bytes`.
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut whole, mut rest, mut unit) = (self.0, 0, None);
        for name in UNITS {
            if whole < 1024 {
                break;
            }
            (rest, whole, unit) = (whole % 1024, whole / 1024, Some(name));
        }
        match unit {
            None => write!(f, "{whole} bytes"),
            Some(unit) if rest * 10 / 1024 == 0 => write!(f, "{whole} {unit}"),
            Some(unit) => write!(f, "{whole}.{} {unit}", rest * 10 / 1024),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("3M", 3 << 20),
            ("20G", 20 << 30),
            ("20gib", 20 << 30),
            ("2T", 2 << 40),
            ("1P", 1 << 50),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "G", "-1", "1.5G", "1 G", "1GG", "1X", "0x10", "+1"] {
            assert_eq!(parse(text), Err(SizeError::NotASize(text.into())), "{text}");
        }
        assert_eq!(parse("1GB"), Err(SizeError::Decimal("1GB".into(), "1GiB".into())));
        for text in ["18446744073709551616", "16384P", "99999999999999999999P"] {
            assert_eq!(parse(text), Err(SizeError::TooBig(text.into())), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_their_largest_unit() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (20 << 30, "20 GiB"),
            ((1 << 30) - 1, "1023.9 MiB"),
            (3 << 60, "3072 PiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
