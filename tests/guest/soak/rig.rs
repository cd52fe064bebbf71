//! A guest under verified load, and what the host sees of it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::common::Random;
use super::super::guest::Guest;
use super::super::image::Image;
use super::super::machine::disk_arguments;
use super::in_guest::{REREAD_OFFSET, reread_content};

/// The longest that a request may take before it counts as lost.
const STALL: Duration = Duration::from_secs(60);

/// What the kernel says of a disk that failed it, or of a driver that was confused.
const COMPLAINTS: [&str; 6] =
    ["I/O error", "is not a head", "blocked for more than", "desc index", "kernel BUG", "Oops"];

/// The root file system of guests that know `load.sh` and this program.
pub fn initramfs(folder: &Path) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/soak/load.sh");
    let program = folder.join("soak");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let initramfs = Guest::initramfs(folder, &[&script, &program]);
    std::fs::remove_file(program).unwrap();
    initramfs
}

/// A duration below `limit`, evenly distributed.
pub fn moment(random: &mut Random, limit: Duration) -> Duration {
    let limit_us = u64::try_from(limit.as_micros()).unwrap();
    Duration::from_micros(random.below(limit_us))
}

/// Attaches a disk whose daemon may go and come back.
pub fn disk(socket: &Path, device: &str) -> Vec<String> {
    let mut arguments = disk_arguments("disk", socket, device);
    arguments[1].push_str(",reconnect-ms=100");
    arguments
}

/// Starts the pulse: a count that the guest writes to the disk again and again.
pub fn start_pulse(guest: &mut Guest, image: &Image) {
    guest.shell("/lab/soak soak pulse /dev/vda >/tmp/pulse 2>&1 &");
    await_pulse(image, 0);
}

/// Starts to read what the host has written into the image.
pub fn start_rereading(guest: &mut Guest, image: &Image) {
    let file = File::options().write(true).open(image.path()).unwrap();
    file.write_all_at(&reread_content(), REREAD_OFFSET).unwrap();
    guest.shell("/lab/soak soak reread /dev/vda >/tmp/reread 2>&1 &");
}

/// Insists that two more passes of reading are as good as all those before.
pub fn check_rereading(guest: &mut Guest) {
    let passes = "$(grep -c '^pass [0-9]*$' /tmp/reread)";
    let tries = STALL.as_secs() * 10;
    guest.shell(&format!(
        "first={passes}; for try in $(seq {tries}); do [ {passes} -lt $((first + 2)) ] || exit 0; \
         grep -v '^pass [0-9]*$' /tmp/reread && exit 1; sleep 0.1; done; exit 1"
    ));
}

/// Starts fio on the disk.
pub fn start_load(guest: &mut Guest) {
    guest.shell("/lab/load.sh start /dev/vda");
}

/// Lets the load come to its end: nothing failed, neither for fio nor for the pulse nor for the kernel. The number
/// of passes.
pub fn finish_load(guest: &mut Guest) -> u32 {
    let passes = guest.shell("/lab/load.sh finish");
    assert_eq!(guest.shell("cat /tmp/pulse"), "", "the pulse complains");
    assert_content(guest);
    passes.parse().unwrap()
}

/// Insists that the kernel that runs has not complained of a disk. (One that is about to start again refuses requests.)
pub fn assert_content(guest: &Guest) {
    let console = guest.console();
    let latest = console.rsplit("] Linux version ").next().unwrap_or_default();
    let complaint = latest.lines().find(|line| COMPLAINTS.iter().any(|complaint| line.contains(complaint)));
    assert_eq!(complaint, None, "the guest's kernel complains");
}

/// How far the pulse is.
pub fn pulse(image: &Image) -> u64 {
    u64::from_le_bytes(image.bytes(0, 8).try_into().unwrap())
}

/// Waits until a request has been completed after the one that wrote `last`.
pub fn await_pulse(image: &Image, last: u64) {
    let start = Instant::now();
    while pulse(image) == last {
        assert!(start.elapsed() < STALL, "no request of the pulse has been completed for {STALL:?}");
        std::thread::sleep(Duration::from_micros(500));
    }
}
