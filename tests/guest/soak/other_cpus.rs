//! Linux on other CPUs, emulated: one of them big-endian, one with pages of 64 KiB.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use super::super::bytes::sha256;
use super::super::common::daemon::{Place, Setup};
use super::super::common::pattern;
use super::super::image::Image;
use super::super::lifecycle;
use super::super::machine::{Machine, disk_arguments, script};
use super::Order;
use super::table::Row;
use crate::common::MIB;

/// A kind of machine.
struct Cpu {
    /// As Debian calls it.
    name: &'static str,
    qemu: &'static str,
    machine: &'static str,
    console: &'static str,
}

/// Pages of 4 KiB, and a disk on PCI.
pub fn arm64(order: &Order<'_>) -> Vec<Row> {
    let cpu = Cpu {
        name: "arm64",
        qemu: "qemu-system-aarch64",
        machine: "virt -cpu cortex-a57",
        console: "ttyAMA0",
    };
    cpu.rounds(order)
}

/// Pages of 64 KiB.
pub fn ppc64el(order: &Order<'_>) -> Vec<Row> {
    let cpu = Cpu { name: "ppc64el", qemu: "qemu-system-ppc64", machine: "pseries", console: "hvc0" };
    cpu.rounds(order)
}

/// Big-endian: the rings and requests of a modern device are little-endian there, too.
pub fn s390x(order: &Order<'_>) -> Vec<Row> {
    let cpu =
        Cpu { name: "s390x", qemu: "qemu-system-s390x", machine: "s390-ccw-virtio", console: "ttysclp0" };
    cpu.rounds(order)
}

impl Cpu {
    fn rounds(&self, order: &Order<'_>) -> Vec<Row> {
        if let Err(why) = self.prepare(order.folder) {
            return vec![Row::skipped(&why)];
        }
        (0..order.rounds).map(|_| self.round(order)).collect()
    }

    /// The guest's root file system, in `folder`; or why there is none.
    fn prepare(&self, folder: &Path) -> Result<(), String> {
        if !is_there(self.qemu) {
            return Err(format!("there is no {} (ci/lab/install front-ends)", self.qemu));
        }
        fetch(self.name)?;
        let built =
            Command::new(script("other-initramfs")).arg(self.name).arg(folder.join("initramfs")).output();
        succeeded(&built.unwrap())
    }

    /// The guest reads 8 MiB that the host wrote, copies 4 MiB of them, discards 1 MiB, zeroes 1 MiB; on split rings
    /// and on packed ones.
    fn round(&self, order: &Order<'_>) -> Row {
        let start = Instant::now();
        for device in ["packed=off", "packed=on"] {
            let setup = Setup::new(Place::Tmpfs)
                .disk("size=64M,serial=other-cpu")
                .log_to(order.folder.join("daemon.log"));
            let content = pattern(6, 64 << 20);
            std::fs::write(setup.image(0), &content).unwrap();
            let daemon = setup.start();
            let image = Image::open(daemon.image(0));
            let disk = format!("disable-legacy=on,num-queues=1,{device}");
            let mut machine = self.boot(order.folder, &disk_arguments("disk", &daemon.socket(0), &disk));
            let console = machine.wait_for("the guest comes to its end", |machine| {
                let console = machine.console();
                console.contains("LAB-END").then_some(console)
            });
            for said in [
                format!("LAB-READ {}", sha256(&content[..8 * MIB as usize])),
                format!("LAB-PACKED {}", u8::from(device == "packed=on")),
                "LAB-ERRORS 0".to_owned(),
            ] {
                assert!(
                    console.contains(&said),
                    "{device}: the guest has not said {said:?}, but:\n{console}"
                );
            }
            image.assert_holds(0, &content[..32 * MIB as usize]);
            image.assert_holds(32 * MIB, &content[..4 * MIB as usize]);
            image.assert_holds(36 * MIB, &vec![0; MIB as usize]);
            image.assert_holds(37 * MIB, &content[37 * MIB as usize..]);
            machine.wait_end();
            lifecycle::ends_well(daemon);
        }
        Row::once("booted with split and packed rings, read, wrote, zeroed".to_owned(), start)
    }

    fn boot(&self, folder: &Path, disk: &[String]) -> Machine {
        let kernel = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/lab");
        let kernel = kernel.join(format!("kernel-{}/vmlinuz", self.name));
        let console = folder.join("console");
        // Of an earlier round.
        let _ = std::fs::remove_file(&console);
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", self.qemu, "-M"]).args(self.machine.split(' '));
        qemu.args(["-m", "1G", "-object", "memory-backend-memfd,id=memory,size=1G,share=on"]);
        qemu.args(["-machine", "memory-backend=memory", "-nodefaults", "-display", "none", "-no-reboot"]);
        qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(folder.join("initramfs"));
        qemu.args(["-append", &format!("console={} panic=-1 quiet", self.console)]);
        qemu.args(["-serial", &format!("file:{}", console.display())]).args(disk).stdin(Stdio::null());
        Machine::spawn(folder, &mut qemu)
    }
}

/// Fetches the kernel of another CPU, and what goes with it, if it is not there; or why not.
pub fn fetch(name: &str) -> Result<(), String> {
    succeeded(&Command::new(script("kernel")).arg(name).output().unwrap())
}

fn succeeded(output: &Output) -> Result<(), String> {
    let why = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
    output.status.success().then_some(()).ok_or_else(why)
}

/// Whether a program can be started here.
pub fn is_there(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|folder| folder.join(program).exists())
}
