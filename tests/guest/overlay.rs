//! Guests on private disks over one base: each finds the base and its own writes, until the daemon that has these ends.

use std::fs;

use super::common::daemon::{Place, Setup};
use super::common::{MIB, pattern};
use super::folder;
use super::guest::Guest;
use super::machine::disk_arguments;
use super::report::Report;

const PRIVATE: &str = "overlay: two guests on one base, one is cut, the other loses its daemon";

const BASE_BYTES: u64 = 32 * MIB;

/// Where each guest writes, in MiB; what is behind stays the base's.
const WRITTEN_MIB: u64 = 8;

/// Boots the guests and makes all checks.
pub fn run(report: &mut Report) {
    if report.wants(PRIVATE) {
        report.check(PRIVATE, private);
    }
}

fn private() -> String {
    let folder = folder::on_files();
    let setup = Setup::new(Place::Tmpfs).disk("overlay=memory").disk("overlay=memory,overlay-max=16M");
    let base = pattern(5, BASE_BYTES as usize);
    fs::write(setup.image(0), &base).unwrap();
    fs::hard_link(setup.image(0), setup.image(1)).unwrap();
    let daemon = setup.start();
    let initramfs = Guest::initramfs(folder.path(), &[]);
    let [mut first, mut second] = [0, 1].map(|index| {
        let own = folder.path().join(index.to_string());
        fs::create_dir(&own).unwrap();
        let mut arguments = disk_arguments("private", &daemon.socket(index), "num-queues=1");
        arguments[1] += ",reconnect=1";
        Guest::boot_from(&initramfs, &own, arguments, "")
    });
    let of_base = sum(&mut first);
    assert_eq!(sum(&mut second), of_base);
    std::thread::scope(|scope| {
        let both =
            [(&mut first, 1), (&mut second, 2)].map(|(guest, seed)| scope.spawn(move || write(guest, seed)));
        both.into_iter().for_each(|it| it.join().unwrap());
    });
    first.cut();
    assert_eq!(sum(&mut second), of_base, "what it has not written");
    verify(&mut second, 2);
    second.reboot();
    verify(&mut second, 2);
    // Its front-end comes back, and its writes do not.
    let daemon = daemon.kill().start();
    let read = second.run("dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct");
    assert!(read.status != 0 && read.text.contains("Input/output error"), "{}", read.text);
    daemon.wait_for_log("what this guest has written is lost");
    second.reboot();
    assert_eq!(sum(&mut second), of_base);
    let zeroed = format!("dd if=/dev/zero of=/dev/vda bs=1M count={WRITTEN_MIB} oflag=direct");
    second.shell(&zeroed);
    second.power_off();
    let setup = daemon.stop();
    assert!(fs::read(setup.image(0)).unwrap() == base, "the base");
    "each had its own writes, errors when they were lost, and the base after a restart; the base is as it was"
        .to_owned()
}

/// What lies behind the part that guests write to.
fn sum(guest: &mut Guest) -> String {
    guest.shell(&format!("dd if=/dev/vda bs=1M skip={WRITTEN_MIB} iflag=direct 2>/dev/null | md5sum"))
}

fn write(guest: &mut Guest, seed: u32) {
    fio(guest, seed, "--do_verify=1");
}

/// Reads what was [written](write).
fn verify(guest: &mut Guest, seed: u32) {
    fio(guest, seed, "--verify_only=1");
}

fn fio(guest: &mut Guest, seed: u32, how: &str) {
    guest.shell(&format!(
        "cd /tmp && fio --name=private --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=4k \
         --size={WRITTEN_MIB}m --randseed={seed} --verify=crc32c {how} >/tmp/fio.log 2>&1 || {{ cat /tmp/fio.log; false; }}"
    ));
}
