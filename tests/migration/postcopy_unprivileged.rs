//! A daemon that may do nothing that others may not waits for pages as well.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use super::moved::{DISK_BYTES, Moved, content, sectors};
use crate::common::daemon::{Daemon, Place, Setup};
use crate::common::frontend::pages::{PAGE, can_wait};
use crate::common::frontend::request::{OK, Request};

/// Whose privileges it has: none.
const NOBODY: u32 = 65_534;

/// Whether only privileged processes may have faults of the kernel wait.
fn is_restricted() -> bool {
    let setting = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap_or_default();
    let device = std::fs::metadata("/dev/userfaultfd").map(|device| device.permissions().mode());
    setting.trim() == "0" && device.is_ok_and(|mode| mode & 0o006 == 0)
}

/// A daemon without privileges; none, with the reason said, where this test has no privilege that it could give up.
fn daemon(place: Place) -> Option<Daemon> {
    if !rustix::process::geteuid().is_root() || !is_restricted() || !can_wait() {
        println!("skipped: not root, or userfaultfd is not restricted to root");
        return None;
    }
    let setup = Setup::new(place).disk("postcopy=on");
    std::fs::write(setup.image(0), content()).unwrap();
    let folders = [setup.image(0), setup.socket(0)].map(|file| file.parent().unwrap().to_owned());
    let program = folders[1].join("program");
    let binary = folders[1].join("binary");
    std::fs::copy(env!("CARGO_BIN_EXE_vhost-user-pmem"), &binary).unwrap();
    let ids = format!("--reuid={NOBODY} --regid={NOBODY} --clear-groups");
    let script = format!("#!/bin/sh\nexec setpriv {ids} {} \"$@\"\n", binary.display());
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    for path in folders.iter().chain([&setup.image(0)]) {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    if !can_reach(&setup.image(0)) {
        println!("skipped: {} cannot be reached without privileges", setup.image(0).display());
        return None;
    }
    Some(setup.program(&program).start())
}

fn can_reach(image: &Path) -> bool {
    let mut test = Command::new("setpriv");
    test.args([&format!("--reuid={NOBODY}"), "--clear-groups", "test", "-w"]).arg(image);
    test.status().is_ok_and(|status| status.success())
}

#[test]
fn no_privilege_is_needed() {
    for place in Place::ALL {
        let Some(daemon) = daemon(place) else { return };
        let mut moved = Moved::new(&daemon, 0);
        let mut ring = moved.ring(0);
        ring.submit(&Request::write(0, &[9; PAGE as usize]));
        ring.submit(&Request::read(64, PAGE as u32));
        moved.session.start(&ring, 0).unwrap();
        moved.serve(&mut ring, 2);
        moved.end(&mut ring);
        for slot in 0..2 {
            assert_eq!(ring.memory.read(ring.buffers(slot).status, 1), [OK], "{place:?}");
        }
        let read = ring.memory.read(ring.buffers(1).data, PAGE as usize);
        assert!(read == sectors(&content(), 64, PAGE as usize));
        let image = std::fs::read(daemon.image(0)).unwrap();
        assert!(image[..PAGE as usize] == [9; PAGE as usize] && image.len() as u64 == DISK_BYTES);
    }
}
