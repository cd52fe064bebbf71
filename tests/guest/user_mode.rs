//! User-Mode Linux: a guest that is a process, and a vhost-user front-end of its own (`virtio_uml`). Its memory table has
//! room for two regions, its call descriptor is a socket, its ring is packed, and it never stops a ring.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::bytes::sha256;
use super::common::daemon::{Daemon, Place, Setup};
use super::common::pattern;
use super::guest::Guest;
use super::linux::Drive;
use super::machine::Kernel;
use super::report::Report;
use super::{filesystems, folder, lifecycle};
use crate::common::MIB;

/// The longest that it may take to come up, of about two seconds.
const BOOT: Duration = Duration::from_secs(60);

/// How often the driver is taken from its disk and given back.
const REBINDS: u32 = 12;

/// What it is told of this disk when its file has grown.
const GROWN_BYTES: u64 = 96 * MIB;

type Check = fn(&mut UserMode) -> String;

const CHECKS: [(&str, Check); 9] = [
    ("user-mode: disks are there, with packed rings", disks),
    ("user-mode: bytes on the host", bytes),
    ("user-mode: read-only disk", read_only),
    ("user-mode: discard and write zeroes", frees),
    ("user-mode: fio verify", fio),
    ("user-mode: ext4", |own| filesystems::ext4(&mut own.guest, &own.disks[0], &own.payload)),
    ("user-mode: xfs on 4096-byte blocks", |own| {
        filesystems::xfs(&mut own.guest, &own.disks[1], &own.payload)
    }),
    ("user-mode: driver bound again on one connection", rebinds),
    ("user-mode: growth", growth),
];

/// The guest, and its disks, which one daemon serves.
struct UserMode {
    guest: Guest,
    /// Plain, with 4096-byte blocks, read-only, and growing.
    disks: [Drive; 4],
    /// `/lab/document` in the guest.
    payload: Vec<u8>,
    daemon: Daemon,
}

/// Boots the guest, where one comes up, and makes all checks.
pub fn run(report: &mut Report) {
    if !CHECKS.iter().any(|(name, _)| report.wants(name)) {
        return;
    }
    let folder = folder::on_files();
    let document = folder.path().join("document");
    let payload = pattern(5, 4 << 20);
    std::fs::write(&document, &payload).unwrap();
    let initramfs = Guest::initramfs_for(Kernel::UserMode, folder.path(), &[&document]);
    if let Err(why) = Guest::boot_user_mode(&initramfs, folder.path(), &[], BOOT) {
        println!("skip   user-mode: it does not come up here, without any disk: {why}");
        return;
    }
    let booted = report.produce("user-mode: linux boots", || {
        (UserMode::boot(&initramfs, folder.path(), payload), "the guest answers".to_owned())
    });
    let Some(mut own) = booted else { return };
    for (name, check) in CHECKS {
        report.check(name, || check(&mut own));
    }
    report.produce("user-mode: linux powers off, and the daemon ends", || {
        own.guest.power_off();
        ((), lifecycle::ends_well(own.daemon))
    });
}

impl UserMode {
    fn boot(initramfs: &Path, folder: &Path, payload: Vec<u8>) -> Self {
        let setup = Setup::new(Place::Tmpfs)
            .disk(&format!("size={},serial=user-plain", 512 * MIB + 512))
            .disk(&format!("size={},serial=user-blocks,block-size=4096", 512 * MIB))
            .disk("readonly=on,serial=user-frozen")
            .disk("serial=user-growing");
        std::fs::write(setup.image(2), &payload).unwrap();
        std::fs::File::create(setup.image(3)).unwrap().set_len(64 * MIB).unwrap();
        let daemon = setup.start();
        let sockets: Vec<PathBuf> = (0..4).map(|index| daemon.socket(index)).collect();
        let guest = Guest::boot_user_mode(initramfs, folder, &sockets, BOOT);
        let drive =
            |index, device, serial, size_bytes| Drive::new(device, serial, size_bytes, &daemon, index);
        let disks = [
            drive(0, "vda", "user-plain", 512 * MIB + 512),
            Drive { block_bytes: 4096, ..drive(1, "vdb", "user-blocks", 512 * MIB) },
            Drive { is_read_only: true, ..drive(2, "vdc", "user-frozen", payload.len() as u64) },
            drive(3, "vdd", "user-growing", 64 * MIB),
        ];
        Self { guest: guest.unwrap_or_else(|why| panic!("{why}")), disks, payload, daemon }
    }

    /// Has the guest write 4 MiB of what it is given to a disk, at 8 MiB, past its cache.
    fn write(&mut self, device: &str, flags: &str) {
        self.guest
            .shell(&format!("dd if=/lab/document of=/dev/{device} bs=64k seek=128 oflag=direct {flags}"));
    }
}

fn disks(own: &mut UserMode) -> String {
    for drive in &own.disks {
        let disk = format!("/sys/block/{}", drive.device);
        let seen = own.guest.shell(&format!(
            "test -b /dev/{} && cat {disk}/size {disk}/queue/logical_block_size {disk}/ro {disk}/serial",
            drive.device
        ));
        let is_read_only = u8::from(drive.is_read_only);
        let sectors = drive.size_bytes / 512;
        let expected = format!("{sectors}\n{}\n{is_read_only}\n{}", drive.block_bytes, drive.serial);
        assert_eq!(seen, expected, "{}", drive.device);
        // VIRTIO_F_RING_PACKED is bit 34, and the first character is bit 0.
        assert_eq!(own.guest.shell(&format!("cut -c 35 {disk}/device/features")), "1", "packed rings");
    }
    "four, of one process: sizes, blocks, serial numbers, one read-only".to_owned()
}

fn bytes(own: &mut UserMode) -> String {
    for device in ["vda", "vdb"] {
        own.write(device, "conv=fsync");
        let sum = own
            .guest
            .shell(&format!("dd if=/dev/{device} bs=1M skip=8 count=4 iflag=direct status=none | sha256sum"));
        assert_eq!(sum.split(' ').next(), Some(&*sha256(&own.payload)), "read back from {device}");
    }
    own.disks[..2].iter().for_each(|drive| drive.image.assert_holds(8 * MIB, &own.payload));
    let last = own.disks[0].size_bytes / 512 - 1;
    own.guest.shell(&format!(
        "dd if=/lab/document of=/dev/vda bs=512 count=1 seek={last} oflag=direct conv=fsync"
    ));
    own.disks[0].image.assert_holds(last * 512, &own.payload[..512]);
    let single = own.guest.run("dd if=/lab/document of=/dev/vdb bs=512 count=1 oflag=direct");
    assert_ne!(single.status, 0, "a single sector of 4096-byte blocks was written");
    "4 MiB on both kinds of blocks, and the odd last sector".to_owned()
}

fn read_only(own: &mut UserMode) -> String {
    let sum = own.guest.shell("dd if=/dev/vdc bs=1M iflag=direct status=none | sha256sum");
    assert_eq!(sum.split(' ').next(), Some(&*sha256(&own.payload)));
    let refused = own.guest.run("dd if=/lab/document of=/dev/vdc bs=4k count=1 oflag=direct");
    assert_ne!(refused.status, 0, "the write succeeded: {}", refused.text);
    own.disks[2].image.assert_holds(0, &own.payload);
    refused.text.lines().next().unwrap_or_default().to_owned()
}

fn frees(own: &mut UserMode) -> String {
    let mib = MIB as usize;
    own.write("vda", "conv=fsync");
    let image = &own.disks[0].image;
    let before = image.allocated_bytes();
    own.guest.shell(&format!("blkdiscard --offset {} --length {MIB} /dev/vda", 9 * MIB));
    let freed = before.saturating_sub(image.allocated_bytes());
    assert!(freed >= MIB, "1 MiB discarded, and the file takes {freed} bytes less");
    own.guest.shell(&format!("blkdiscard --zeroout --offset {} --length {MIB} /dev/vda", 10 * MIB));
    image.assert_holds(8 * MIB, &own.payload[..mib]);
    image.assert_holds(10 * MIB, &vec![0; mib]);
    image.assert_holds(11 * MIB, &own.payload[3 * mib..]);
    format!("{freed} bytes given back, 1 MiB zeroed, neighbours untouched")
}

fn fio(own: &mut UserMode) -> String {
    own.guest.shell(
        "fio --name=verify --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite \
         --bsrange=512-64k --offset=16m --size=48m --verify=crc32c --do_verify=1 --verify_fatal=1",
    );
    "48 MiB of random lengths at depth 16, verified".to_owned()
}

/// Taken away with nothing but ENABLE 0, the device is started again as if it had never run: on the same connection,
/// with the same memory, a ring that begins anew.
fn rebinds(own: &mut UserMode) -> String {
    let device = own.guest.shell("basename $(readlink /sys/block/vda/device)");
    let driver = "/sys/bus/virtio/drivers/virtio_blk";
    let connected = "a front-end connected";
    let before = own.daemon.log().matches(connected).count();
    for round in 0..REBINDS {
        own.guest.shell(&format!("echo {device} >{driver}/unbind && test ! -e /sys/block/vda"));
        own.guest.shell(&format!("echo {device} >{driver}/bind && test -b /dev/vda"));
        own.guest.shell(&format!(
            "dd if=/lab/document of=/dev/vda bs=64k count=16 skip={round} seek={} oflag=direct conv=fsync && \
             dd if=/dev/vda of=/dev/null bs=1M count=16 iflag=direct",
            128 + 16 * round
        ));
        let start = round as usize * (64 << 10);
        let at = (8 + u64::from(round)) * MIB;
        own.disks[0].image.assert_holds(at, &own.payload[start..start + MIB as usize]);
    }
    assert_eq!(own.daemon.log().matches(connected).count(), before, "front-ends that connected");
    format!("{REBINDS} times, written and read after each")
}

/// It acknowledges BACKEND_REQ, so it has a channel to be told through.
fn growth(own: &mut UserMode) -> String {
    let file = std::fs::File::options().write(true).open(own.daemon.image(3)).unwrap();
    file.set_len(GROWN_BYTES).unwrap();
    drop(file);
    let tries = BOOT.as_secs() * 10;
    let seen = own.guest.shell(&format!(
        "for try in $(seq {tries}); do read size </sys/block/vdd/size; [ $size = {} ] && break; sleep 0.1; done; echo $size",
        GROWN_BYTES / 512
    ));
    assert_eq!(seen, (GROWN_BYTES / 512).to_string(), "sectors that the guest sees");
    let at_mib = GROWN_BYTES / MIB - 4;
    own.guest.shell(&format!(
        "dd if=/lab/document of=/dev/vdd bs=64k seek={} oflag=direct conv=fsync",
        at_mib * 16
    ));
    own.disks[3].image.assert_holds(at_mib * MIB, &own.payload);
    format!("the guest sees {GROWN_BYTES} bytes and writes the last of them")
}
