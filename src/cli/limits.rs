//! How many descriptors the process may have open: each disk takes some, and each front-end.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::limits::bounds::{DISK_DESCRIPTORS as OF_A_DISK, PROCESS_DESCRIPTORS as OF_THE_PROCESS};

/// Of a front-end whose guest has two queues, while it starts.
const OF_A_FRONT_END: u64 = 24;

/// The limit is too low for the disks alone.
#[derive(Debug, thiserror::Error)]
#[error(
    "{disks} disks need {needed} open files, and this process may have {most} (its hard limit); raise it (ulimit -Hn, \
     LimitNOFILE= of the service), or serve fewer disks in one process"
)]
pub(super) struct TooFewFiles {
    disks: u64,
    needed: u64,
    most: u64,
}

/// Lets the process have as many descriptors as it may, and checks that they are enough for so many disks.
pub(super) fn raise_open_files(disks: usize) -> Result<(), TooFewFiles> {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: before.maximum, maximum: before.maximum };
    let limit = if before.current == before.maximum || setrlimit(Resource::Nofile, raised).is_ok() {
        before.maximum
    } else {
        before.current
    };
    let disks = u64::try_from(disks).unwrap_or(u64::MAX);
    check(disks, limit.unwrap_or(u64::MAX))
}

fn check(disks: u64, most: u64) -> Result<(), TooFewFiles> {
    let needed = disks.saturating_mul(OF_A_DISK).saturating_add(OF_THE_PROCESS);
    if needed > most {
        return Err(TooFewFiles { disks, needed, most });
    }
    let wanted = needed.saturating_add(disks.saturating_mul(OF_A_FRONT_END));
    if wanted > most {
        tracing::warn!(
            disks,
            most,
            wanted,
            "not all disks can have a front-end at the same time: raise the limit of open files (ulimit -Hn, \
             LimitNOFILE= of the service)"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_that_do_not_fit_are_refused() {
        check(1000, 1000 * OF_A_DISK + OF_THE_PROCESS).unwrap();
        let error = check(1000, 1000 * OF_A_DISK + OF_THE_PROCESS - 1).unwrap_err().to_string();
        assert!(
            error.starts_with("1000 disks need 3064 open files, and this process may have 3063"),
            "{error}"
        );
        check(u64::MAX, u64::MAX).unwrap();
    }
}
