//! What the guest's kernel says of the disks.

use super::linux::{Drive, Linux};

/// Asks the guest the same of each disk and compares.
fn compare(
    linux: &mut Linux,
    command: impl Fn(&Drive) -> String,
    expected: impl Fn(&Drive) -> String,
) -> String {
    let (guest, drives) = linux.each();
    let seen = drives.map(|drive| {
        let seen = guest.shell(&command(drive));
        assert_eq!(seen, expected(drive), "/dev/{}", drive.device);
        format!("{} {seen}", drive.device)
    });
    seen.join(", ")
}

/// Tools pass happily on a file called `/dev/vda`.
pub fn disks(linux: &mut Linux) -> String {
    compare(
        linux,
        |drive| {
            format!("test -b /dev/{0} && lsblk --noheadings --nodeps --output TYPE /dev/{0}", drive.device)
        },
        |_| "disk".to_owned(),
    )
}

pub fn capacity(linux: &mut Linux) -> String {
    compare(
        linux,
        |drive| format!("blockdev --getsize64 /dev/{}", drive.device),
        |drive| drive.size_bytes.to_string(),
    )
}

pub fn serial(linux: &mut Linux) -> String {
    compare(linux, |drive| format!("cat /sys/block/{}/serial", drive.device), |drive| drive.serial.to_owned())
}

pub fn queue_count(linux: &mut Linux) -> String {
    compare(
        linux,
        |drive| format!("ls /sys/block/{}/mq | wc -l", drive.device),
        |drive| drive.queues.to_string(),
    )
}

pub fn block_size(linux: &mut Linux) -> String {
    compare(
        linux,
        |drive| format!("blockdev --getss /dev/{}", drive.device),
        |drive| drive.block_bytes.to_string(),
    )
}

pub fn read_only_flag(linux: &mut Linux) -> String {
    compare(
        linux,
        |drive| format!("cat /sys/block/{}/ro", drive.device),
        |drive| u8::from(drive.is_read_only).to_string(),
    )
}
