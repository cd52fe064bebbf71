//! Guests on disks of one group with a limit: `fio` in each of them says what it got.
//!
//! A guest that is emulated on a busy machine may ask for less than it may have, so a round in which it got too little is made
//! again; more than the limit it never gets.

use std::process::Command;

use serde_json::Value;

use super::common::daemon::{Place, Setup};
use super::folder;
use super::guest::Guest;
use super::machine::disk_arguments;
use super::report::Report;

const BOTH: &str = "limits: two guests on disks of one group";

/// Operations a second: far below what an emulated guest gets of a disk without limits.
const IOPS: u64 = 200;

/// How long one round of fio is, in seconds of the guest.
const SECONDS: u64 = 10;

/// Of the set rate, in percent.
const TOLERANCE: u64 = 5;

/// Rounds of which one has to come as close as that.
const ROUNDS: usize = 8;

/// Boots the guests and makes all checks.
pub fn run(report: &mut Report) {
    if report.wants(BOTH) {
        report.check(BOTH, both);
    }
}

fn both() -> String {
    let folder = folder::on_files();
    let disk = |name: &str| format!("name={name},size=64M,sparse=on,throttle-group=g,iops={IOPS}");
    let setup = Setup::new(Place::Tmpfs).disk(&disk("a")).disk(&disk("b"));
    let control = setup.socket(0).with_file_name("control.sock");
    let daemon = setup.arg("--control").arg(&control.display().to_string()).start();
    let initramfs = Guest::initramfs(folder.path(), &[]);
    let mut guests = [0, 1].map(|index| {
        let own = folder.path().join(index.to_string());
        std::fs::create_dir(&own).unwrap();
        let socket = daemon.socket(index);
        Guest::boot_from(&initramfs, &own, disk_arguments("limited", &socket, "num-queues=1"), "")
    });
    let limit = |text: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-pmem"));
        let control = control.display().to_string();
        let output = command.args(["ctl", "--control", &control, "limit", "b", text]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let mut seen = Vec::new();
    // One alone has all of it, whichever it is; both have as much as each other; and what is changed meanwhile they see as well.
    let [first, second] = &mut guests;
    seen.push(rounds("a alone", &mut [first], IOPS));
    seen.push(rounds("b alone", &mut [second], IOPS));
    seen.push(rounds("both", &mut [first, second], IOPS));
    limit(&format!("iops={}", 2 * IOPS));
    seen.push(rounds("both, changed by ctl", &mut [first, second], 2 * IOPS));
    guests.into_iter().for_each(Guest::power_off);
    daemon.stop();
    seen.join("; ")
}

/// Has all of these guests read until they together get what is set, each its share, as fio in them sees it.
fn rounds(what: &str, guests: &mut [&mut Guest], iops: u64) -> String {
    let share = iops / guests.len() as u64;
    let mut all = Vec::new();
    for _ in 0..ROUNDS {
        let rates: Vec<f64> = std::thread::scope(|scope| {
            let fios: Vec<_> = guests.iter_mut().map(|guest| scope.spawn(|| fio(guest))).collect();
            fios.into_iter().map(|fio| fio.join().unwrap()).collect()
        });
        let share = share as f64;
        let (least, most) = (100 - TOLERANCE, 100 + TOLERANCE);
        let is_alone = rates.len() == 1;
        // While another one has not begun, or has ended, all of it is there for one.
        let bound = if is_alone { share } else { iops as f64 } * most as f64 / 100.0;
        assert!(rates.iter().all(|rate| *rate <= bound), "{what}: more than {iops}: {rates:?}");
        let is_close =
            |rate: &f64| (rate / share * 100.0 >= least as f64) && (rate / share * 100.0 <= most as f64);
        if rates.iter().all(is_close) {
            let rates: Vec<_> = rates.iter().map(|rate| format!("{rate:.1}")).collect();
            return format!("{what} {} of {iops}", rates.join(" and "));
        }
        all.push(rates);
    }
    panic!("{what}: in no round within {TOLERANCE} % of {share}: {all:?}");
}

/// What fio in the guest says of its reads, by the second. What is in the bucket at first is gone before it counts.
fn fio(guest: &mut Guest) -> f64 {
    let said = guest.shell(&format!(
        "fio --name=limited --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=8 --rw=randread --bs=4k --time_based \
         --ramp_time=2 --runtime={SECONDS} --output-format=json --output=/tmp/fio.json >/dev/null && cat /tmp/fio.json"
    ));
    let said: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    let read = &said["jobs"][0]["read"];
    read["iops"].as_f64().unwrap_or_else(|| panic!("no rate: {said}"))
}
