//! The disk grows under load: the guest sees each size, and writes where the disk has just grown.

use std::fs::File;
use std::time::Instant;

use super::super::bytes::sha256;
use super::super::common::daemon::{Place, Setup};
use super::super::guest::Guest;
use super::super::image::Image;
use super::Order;
use super::rig::{self, await_pulse, pulse};
use super::table::Row;
use crate::common::MIB;

/// Before anything grows.
const FIRST_BYTES: u64 = 64 * MIB;

/// By so much in each round: no multiple of a page.
const STEP_BYTES: u64 = 8 * MIB + 512;

/// What the guest writes up to the new end.
const TAIL_BYTES: u64 = 64 << 10;

pub fn growth(order: &Order<'_>) -> Vec<Row> {
    let setup = Setup::new(Place::Tmpfs).disk("serial=soak").log_to(order.folder.join("daemon.log"));
    let file = File::create(setup.image(0)).unwrap();
    file.set_len(FIRST_BYTES).unwrap();
    let daemon = setup.start();
    let image = Image::open(daemon.image(0));
    let disk = rig::disk(&daemon.socket(0), "num-queues=2");
    let mut guest = Guest::boot_from(&rig::initramfs(order.folder), order.folder, disk, "");
    rig::start_pulse(&mut guest, &image);
    rig::start_load(&mut guest);

    let start = Instant::now();
    // Until the guest sees the size.
    let mut waits = Vec::new();
    for round in 1..=u64::from(order.rounds) {
        let bytes = FIRST_BYTES + round * STEP_BYTES;
        file.set_len(bytes).unwrap();
        let told = Instant::now();
        daemon.signal(libc::SIGHUP);
        guest.shell(&format!(
            "for try in $(seq 600); do [ $(blockdev --getsize64 /dev/vda) != {bytes} ] || exit 0; sleep 0.05; done; \
             echo \"the disk still has $(blockdev --getsize64 /dev/vda) bytes\"; exit 1"
        ));
        waits.push(told.elapsed());
        write_tail(&mut guest, &image, bytes);
        await_pulse(&image, pulse(&image));
    }
    let passes = rig::finish_load(&mut guest);
    guest.power_off();
    daemon.stop();
    let what =
        format!("grown in {passes} passes of fio, the guest sees it and writes the new end; until then");
    vec![Row { what, rounds: order.rounds, seconds: start.elapsed().as_secs_f32(), pauses: waits }]
}

/// Has the guest write the last bytes of the disk, and looks for them in the file.
fn write_tail(guest: &mut Guest, image: &Image, disk_bytes: u64) {
    let seek = (disk_bytes - TAIL_BYTES) / 512;
    let sum = guest.shell(&format!(
        "dd if=/dev/urandom of=/tmp/tail bs={TAIL_BYTES} count=1 status=none && \
         dd if=/tmp/tail of=/dev/vda bs=512 seek={seek} oflag=direct conv=fsync status=none && sha256sum </tmp/tail"
    ));
    let tail = image.bytes(disk_bytes - TAIL_BYTES, usize::try_from(TAIL_BYTES).unwrap());
    assert_eq!(sum.split(' ').next(), Some(&*sha256(&tail)), "the last {TAIL_BYTES} of {disk_bytes} bytes");
}
