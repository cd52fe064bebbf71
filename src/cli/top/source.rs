//! Asks a server what is so now.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::sample::{Sample, Thread, thread};
use crate::cli::ctl_client::{Client, CtlError};

/// How long a part of an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A server, behind its control socket.
#[derive(Debug)]
pub(super) struct Source(pub(super) PathBuf);

impl Source {
    pub(super) fn socket(&self) -> &Path {
        &self.0
    }

    /// What is so now.
    ///
    /// # Errors
    /// It does not answer, or something else.
    pub(super) fn sample(&self) -> Result<Sample, CtlError> {
        let (disks, process) = self.ask("/v1/disks")?;
        // The rates are those of the disks.
        let at = Instant::now();
        let rings = match self.ask("/v1/rings") {
            Ok((rings, _)) => Some(rings),
            // A server of another version, which does not know the question.
            Err(CtlError::OtherVersion { .. }) => None,
            Err(CtlError::Problem { code, .. }) if code == "no-such-path" => None,
            Err(error) => return Err(error),
        };
        Ok(Sample { at, disks, rings, threads: process.and_then(threads) })
    }

    fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<(T, Option<i32>), CtlError> {
        let client = Client(&self.0);
        let (answer, process) = client.ask_within("GET", path, None, Some(PATIENCE))?;
        let read = serde_json::from_value(answer).map_err(|error| client.stranger(error.to_string()))?;
        Ok((read, process))
    }
}

/// The threads of a process; none where it cannot be seen from here, as in another namespace. Those that end meanwhile are left
/// out.
fn threads(process: i32) -> Option<Vec<Thread>> {
    let entries = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let read = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        thread(number, &fs::read_to_string(entry.path().join("stat")).ok()?)
    };
    Some(entries.flatten().filter_map(read).collect())
}
