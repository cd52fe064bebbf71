//! One `--disk`: a list of `key=value` as QEMU writes it, where `,,` is a comma inside a value.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use super::keys::Key;
use super::options::{DiskOptions, OptionError, Values};

/// What is wrong with a `--disk`.
#[derive(Debug, thiserror::Error)]
#[error("--disk {option}: {cause}")]
pub(crate) struct DiskTextError {
    option: String,
    pub(crate) cause: DiskTextCause,
}

/// The same, without the text of the option.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskTextCause {
    #[error(transparent)]
    Option(#[from] OptionError),
    #[error("an item is empty; a comma inside a value is written \",,\"")]
    Empty,
}

/// Reads the argument of one `--disk`.
///
/// # Errors
/// [`DiskTextError`].
pub(crate) fn parse(text: &OsStr) -> Result<DiskOptions, DiskTextError> {
    let error = |cause: OptionError| DiskTextError {
        option: text.to_string_lossy().into_owned(),
        cause: cause.into(),
    };
    DiskOptions::read(values(text)?).map_err(error)
}

/// Its keys with their values, which are not looked at.
///
/// # Errors
/// [`DiskTextError`].
pub(crate) fn items(text: &OsStr) -> Result<Vec<(Key, OsString)>, DiskTextError> {
    Ok(values(text)?.into_items())
}

fn values(text: &OsStr) -> Result<Values, DiskTextError> {
    let error = |cause| DiskTextError { option: text.to_string_lossy().into_owned(), cause };
    let mut values = Values::default();
    for item in split_at_commas(text.as_bytes()) {
        add(&mut values, &item).map_err(error)?;
    }
    Ok(values)
}

fn add(values: &mut Values, item: &[u8]) -> Result<(), DiskTextCause> {
    if item.is_empty() {
        return Err(DiskTextCause::Empty);
    }
    let mut parts = item.splitn(2, |byte| *byte == b'=');
    let name = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let Some(key) = Key::named(&name) else {
        return Err(OptionError::UnknownKey { key: name.into_owned() }.into());
    };
    let value = match (parts.next(), key.bare()) {
        (Some(value), _) => OsString::from_vec(value.to_vec()),
        (None, bare) => OsString::from(bare.unwrap_or_default()),
    };
    Ok(values.add(key, value)?)
}

/// Cuts at single commas and makes one of each pair.
fn split_at_commas(text: &[u8]) -> Vec<Vec<u8>> {
    let mut items = Vec::new();
    let mut item = Vec::new();
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b',' if bytes.next_if_eq(&b',').is_none() => items.push(std::mem::take(&mut item)),
            byte => item.push(byte),
        }
    }
    items.push(item);
    items
}
