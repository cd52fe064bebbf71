//! The cache mode, refusals, and the ends of guests and daemons.

use super::bytes::sha256;
use super::common::daemon::Daemon;
use super::filesystems;
use super::linux::Linux;
use crate::common::MIB;

/// Switches the disk to write-through and back. That the daemon follows shows on the host: writes of a guest
/// that does not flush are on the medium when they are completed, or are not.
pub fn cache_type(linux: &mut Linux) -> String {
    let drive = &linux.ordinary;
    let device = drive.device;
    let knob = format!("/sys/block/{device}/cache_type");
    assert_eq!(linux.guest.shell(&format!("cat {knob}")), "write back", "at first");
    let mut unwritten = |mode: &str, at_mib: u64| {
        linux.guest.shell(&format!("echo '{mode}' > {knob}"));
        assert_eq!(linux.guest.shell(&format!("cat {knob}")), mode);
        assert_eq!(linux.guest.shell(&format!("cat /sys/block/{device}/queue/write_cache")), mode);
        linux.guest.shell(&format!(
            "dd if=/lab/payload of=/dev/{device} bs=64k count=16 seek={} oflag=direct",
            at_mib * 16
        ));
        drive.image.assert_holds(at_mib * MIB, &linux.payload[..MIB as usize]);
        drive.image.unwritten_pages(at_mib * MIB, MIB)
    };
    let through = unwritten("write through", 200);
    let back = unwritten("write back", 204);
    match (through, back) {
        (Some(through), Some(back)) => {
            assert_eq!(through, 0, "pages not on the medium after a write in write-through mode");
            assert!(back > 0, "every page was on the medium at once in write-back mode");
            format!(
                "1 MiB written leaves {through} pages unwritten in write-through mode, {back} in write-back mode"
            )
        }
        _ => {
            "the guest sees both modes (this host's kernel cannot tell which pages are unwritten)".to_owned()
        }
    }
}

pub fn refuses_writes(linux: &mut Linux) -> String {
    let reply = linux.guest.run("dd if=/lab/payload of=/dev/vdc bs=4k count=1 oflag=direct");
    assert_ne!(reply.status, 0, "the write succeeded: {}", reply.text);
    let text = reply.text.to_lowercase();
    assert!(text.contains("not permitted") || text.contains("read-only"), "another error: {text}");
    linux.frozen.image.assert_holds(0, &linux.frozen_bytes);
    text.lines().next().unwrap_or_default().to_owned()
}

pub fn reboot(linux: &mut Linux) -> String {
    filesystems::ext4(&mut linux.guest, &linux.memory, &linux.document);
    linux.guest.reboot();
    linux.guest.shell("mount -t ext4 /dev/vda /mnt");
    let sum = linux.guest.shell("sha256sum /mnt/folder/file");
    assert_eq!(sum.split(' ').next(), Some(&*sha256(&linux.document)), "the file of the first boot");
    linux.guest.shell("cp /lab/payload /mnt/second && umount /mnt && e2fsck -f -n /dev/vda");
    assert!(
        linux.memory.image.contains_in_one_piece(&linux.payload),
        "the second boot's file is not on the host"
    );
    assert_eq!(linux.guest.shell("cat /sys/block/vda/serial"), linux.memory.serial);
    "the second boot reads the first one's file and writes another".to_owned()
}

/// The daemon has outlived its guests, ends with 0 on SIGTERM, and has nothing to complain of.
pub fn ends_well(mut daemon: Daemon) -> String {
    daemon.assert_alive();
    daemon.signal(libc::SIGTERM);
    let status = daemon.wait();
    assert_eq!(status.code(), Some(0), "exit status after SIGTERM: {status}\n{}", daemon.log());
    daemon.wait_for_log("stopping on SIGTERM");
    let log = daemon.log();
    let complaints: Vec<&str> =
        log.lines().filter(|line| line.contains("ERROR") || line.contains("WARN")).collect();
    assert!(complaints.is_empty(), "it logged:\n{}", complaints.join("\n"));
    format!("exit code 0 on SIGTERM, {} lines of log without a complaint", log.lines().count())
}
