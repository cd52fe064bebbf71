//! Firmware boots from the disk: GRUB, loaded from it, checks a file on it.

use std::path::Path;
use std::process::Command;

use super::common::daemon::{Place, Setup};
use super::common::pattern;
use super::folder;
use super::lifecycle;
use super::machine::{Machine, disk_arguments};
use super::report::Report;

/// UEFI's code, and the variables that a machine starts with (Debian's package ovmf).
const OVMF: [&str; 2] = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"];

/// Boots the same kind of disk through both firmwares, from tmpfs and from an ordinary file system.
pub fn run(report: &mut Report) {
    report.check("boot through SeaBIOS", || boot(Place::Tmpfs, "pc", |_| Vec::new()));
    report.check("boot through OVMF", || {
        boot(Place::FileSystem, "efi", |folder| {
            let variables = folder.join("variables");
            std::fs::copy(OVMF[1], &variables).unwrap();
            let code = format!("if=pflash,format=raw,readonly=on,file={}", OVMF[0]);
            let variables = format!("if=pflash,format=raw,file={}", variables.display());
            vec!["-drive".to_owned(), code, "-drive".to_owned(), variables]
        })
    });
}

fn boot(place: Place, platform: &str, firmware: impl FnOnce(&Path) -> Vec<String>) -> String {
    let folder = folder::on_files();
    let payload = folder.path().join("payload");
    std::fs::write(&payload, pattern(4, 4 << 20)).unwrap();
    let setup = Setup::new(place).disk("serial=lab-boot");
    let token = format!("{platform}-{}", std::process::id());
    let made = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/grub-disk.sh"))
        .args([setup.image(0), payload])
        .arg(&token)
        .output()
        .unwrap();
    assert!(made.status.success(), "grub-disk.sh: {}", String::from_utf8_lossy(&made.stderr));

    let daemon = setup.start();
    let mut args = disk_arguments("boot", &daemon.socket(0), "bootindex=0");
    args.extend(firmware(folder.path()));
    let mut machine = Machine::start(folder.path(), &args);
    let console = machine.wait_for("GRUB comes to its end", |machine| {
        let console = machine.console();
        console.contains("GRUB-END").then_some(console)
    });
    for line in [&*format!("GRUB-BEGIN {platform}"), &format!("GRUB-TOKEN {token}"), "GRUB-HASH ok"] {
        assert!(console.contains(line), "GRUB has not said {line:?}, but:\n{console}");
    }
    let status = machine.wait_end();
    assert!(status.success(), "GRUB's halt: QEMU ended with {status}\n{}", machine.last_words());
    let end = lifecycle::ends_well(daemon);
    format!("GRUB read {token:?} and 4 MiB with the right SHA-256; the daemon's {end}")
}
