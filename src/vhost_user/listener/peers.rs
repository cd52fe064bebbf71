//! Which users' processes may connect, whatever the socket's permissions say.

use std::fmt;
use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// The users whose processes may connect (`SO_PEERCRED`); by default there is no such list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedUsers(Option<Vec<u32>>);

/// A process that may not connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stranger {
    /// The user that it ran as when it connected.
    uid: Option<u32>,
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.uid {
            Some(uid) => write!(f, "a process of user {uid}, which is not in allow-uid="),
            None => write!(f, "a process whose user cannot be told, which allow-uid= asks for"),
        }
    }
}

impl AllowedUsers {
    /// These and no others.
    pub const fn only(uids: Vec<u32>) -> Self {
        Self(Some(uids))
    }

    /// These, where there is a list.
    pub fn uids(&self) -> Option<&[u32]> {
        self.0.as_deref()
    }

    /// Asks the kernel who is at the other end of a connection.
    ///
    /// # Errors
    /// It may not connect.
    pub fn check(&self, connection: impl AsFd) -> Result<(), Stranger> {
        let Some(allowed) = &self.0 else { return Ok(()) };
        let uid = getsockopt(&connection, PeerCredentials).ok().map(|peer| peer.uid());
        if uid.is_some_and(|uid| allowed.contains(&uid)) { Ok(()) } else { Err(Stranger { uid }) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn only_listed_users_may_connect() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        assert_eq!(AllowedUsers::default().check(&ours), Ok(()));
        assert_eq!(AllowedUsers::only(vec![7, uid]).check(&ours), Ok(()));
        let stranger = AllowedUsers::only(vec![uid + 1]).check(&ours).unwrap_err();
        assert_eq!(stranger.to_string(), format!("a process of user {uid}, which is not in allow-uid="));
        assert!(AllowedUsers::only(Vec::new()).check(&ours).is_err());
    }
}
