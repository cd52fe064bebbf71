//! Users and groups as the command line names them: by name or by number.

use nix::unistd::{Group, User};

/// Not a user, or not a group, of this machine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("this machine has no such {0}; write a name that it knows, or a number")]
    Unknown(&'static str),
    #[error("the {what} cannot be looked up ({source}); write its number")]
    Lookup { what: &'static str, source: std::io::Error },
}

/// A user's number.
pub(crate) fn user(text: &str) -> Result<u32, IdentityError> {
    number(text, "user", |name| Ok(User::from_name(name)?.map(|user| user.uid.as_raw())))
}

/// A group's number.
pub(crate) fn group(text: &str) -> Result<u32, IdentityError> {
    number(text, "group", |name| Ok(Group::from_name(name)?.map(|group| group.gid.as_raw())))
}

/// The last number is none: chown(2) and setresuid(2) take it for "as it is".
fn number(
    text: &str,
    what: &'static str,
    look_up: impl FnOnce(&str) -> nix::Result<Option<u32>>,
) -> Result<u32, IdentityError> {
    if let Ok(number) = text.parse() {
        return if number == u32::MAX { Err(IdentityError::Unknown(what)) } else { Ok(number) };
    }
    match look_up(text) {
        Ok(found) => found.ok_or(IdentityError::Unknown(what)),
        Err(errno) => Err(IdentityError::Lookup { what, source: errno.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_known() {
        assert_eq!((user("root").unwrap(), group("root").unwrap()), (0, 0));
        assert_eq!((user("4711").unwrap(), group("0").unwrap()), (4711, 0));
        for wrong in ["", "no-such-one", "-1", "4294967295", "4294967296", "0x1"] {
            assert!(user(wrong).is_err() && group(wrong).is_err(), "{wrong}");
        }
    }
}
