//! Firmware of other CPUs reads files on the disk before any operating system does.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use super::super::common::daemon::{Daemon, Place, Setup};
use super::super::common::pattern;
use super::super::lifecycle;
use super::super::machine::{Machine, disk_arguments};
use super::Order;
use super::other_cpus::{fetch, is_there};
use super::table::Row;

/// A firmware, and how it is talked to.
struct Firmware {
    name: &'static str,
    qemu: &'static str,
    /// What makes the machine, and the file of the firmware where QEMU does not bring it.
    machine: &'static str,
    file: Option<&'static str>,
    /// What it says, and what is typed then.
    dialogue: &'static [(&'static str, &'static str)],
    /// Whether it writes to the disk and switches the machine off.
    writes: bool,
}

/// Its driver gives every request the obsolete barrier bit. What it has loaded as a whole, GRUB, says so; nothing is read
/// after that (QEMU does not start the device again once SLOF has closed it).
const SLOF: Firmware = Firmware {
    name: "SLOF, ppc64",
    qemu: "qemu-system-ppc64",
    machine: "pseries",
    file: None,
    dialogue: &[],
    writes: false,
};

const U_BOOT: Firmware = Firmware {
    name: "U-Boot, arm64",
    qemu: "qemu-system-aarch64",
    machine: "virt -cpu cortex-a57",
    file: Some("/usr/lib/u-boot/qemu_arm64/u-boot.bin"),
    dialogue: &[
        ("autoboot", ""),
        ("=> ", "virtio scan"),
        ("=> ", "fatload virtio 0:1 0x42000000 payload"),
        ("bytes read", "crc32 0x42000000 $filesize"),
    ],
    writes: false,
};

const UEFI: Firmware = Firmware {
    name: "UEFI, arm64",
    qemu: "qemu-system-aarch64",
    machine: "virt -cpu cortex-a57",
    file: Some("/usr/share/qemu-efi-aarch64/QEMU_EFI.fd"),
    dialogue: &[],
    writes: true,
};

/// Each of them, where it is installed.
pub fn boots(order: &Order<'_>) -> Vec<Row> {
    [SLOF, U_BOOT, UEFI].iter().map(|firmware| firmware.boots(order)).collect()
}

impl Firmware {
    fn boots(&self, order: &Order<'_>) -> Row {
        let missing = [self.qemu].into_iter().find(|program| !is_there(program));
        let missing = missing.or(self.file.filter(|file| !Path::new(file).exists()));
        if let Some(missing) = missing {
            return Row::skipped(&format!(
                "{}: there is no {missing} (ci/lab/install front-ends)",
                self.name
            ));
        }
        // Its GRUB comes with a kernel of that CPU.
        if self.file.is_none()
            && let Err(why) = fetch("ppc64el")
        {
            return Row::skipped(&format!("{}: {why}", self.name));
        }
        let start = Instant::now();
        for _ in 0..order.rounds {
            self.boot(order);
        }
        Row { rounds: order.rounds, ..Row::once(format!("{} reads the disk", self.name), start) }
    }

    fn boot(&self, order: &Order<'_>) {
        let payload = pattern(order.seed, 4 << 20);
        let token = format!("TOKEN-{}", std::process::id());
        let (daemon, partition) = serve(order, &payload, &token);
        let mut machine = self.start(order.folder, &daemon);
        let mut said = 0;
        for (prompt, line) in self.dialogue {
            said = await_text(&mut machine, said, prompt);
            machine.type_line(line);
        }
        // What U-Boot computes of the payload; the others are told on the disk what to say.
        let sum = format!("==> {:08x}", crc32(&payload));
        await_text(&mut machine, said, if self.dialogue.is_empty() { &token } else { &sum });
        if self.writes {
            machine.wait_end();
            let copied = Command::new("mcopy").arg("-i").arg(&partition).args(["::copy", "-"]).output();
            assert!(copied.unwrap().stdout == payload, "it has written something else than it read");
        }
        drop(machine);
        lifecycle::ends_well(daemon);
    }

    fn start(&self, folder: &Path, daemon: &Daemon) -> Machine {
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", self.qemu, "-M"]).args(self.machine.split(' '));
        qemu.args(self.file.iter().flat_map(|file| ["-bios", file]));
        qemu.args(["-m", "1G", "-object", "memory-backend-memfd,id=memory,size=1G,share=on"]);
        qemu.args(["-machine", "memory-backend=memory", "-nodefaults", "-display", "none", "-no-reboot"]);
        qemu.args(disk_arguments("disk", &daemon.socket(0), "num-queues=1,bootindex=0"));
        qemu.args(["-serial", "stdio"]).stdin(Stdio::piped());
        qemu.stdout(std::fs::File::create(folder.join("console")).unwrap());
        Machine::spawn(folder, &mut qemu)
    }
}

/// A disk that all of them can read files from; and how mtools name its partition.
fn serve(order: &Order<'_>, payload: &[u8], token: &str) -> (Daemon, PathBuf) {
    let setup = Setup::new(Place::Tmpfs).disk("serial=firmware").log_to(order.folder.join("daemon.log"));
    let file = order.folder.join("payload");
    std::fs::write(&file, payload).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut make = Command::new(root.join("tests/guest/firmware-disk.sh"));
    make.args([setup.image(0), file]).arg(token);
    let grub = root.join(".cache/lab/kernel-ppc64el/grub");
    if grub.exists() {
        make.arg(grub);
    }
    let made = make.output().unwrap();
    assert!(made.status.success(), "firmware-disk.sh: {}", String::from_utf8_lossy(&made.stderr));
    let partition = format!("{}@@1M", setup.image(0).display());
    (setup.start(), partition.into())
}

/// Waits until the machine has said `text` behind the first `from` bytes; where that ends.
fn await_text(machine: &mut Machine, from: usize, text: &str) -> usize {
    machine.wait_for(&format!("it says {text:?}"), |machine| {
        let console = machine.console();
        console.get(from..).and_then(|rest| rest.find(text)).map(|at| from + at + text.len())
    })
}

/// As U-Boot computes it.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}
