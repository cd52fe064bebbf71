//! What Debian 13 and its backports have: a QEMU and a Linux that know VIRTIO_F_IN_ORDER, and libblkio, through which
//! programs are front-ends without any guest (qemu-img, qemu-io, nbdkit).

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::super::common::daemon::{Daemon, Place, Setup};
use super::super::common::pattern;
use super::super::machine::{script, with_newer};
use super::table::Row;
use super::{Order, postcopy, recovery};
use crate::common::MIB;

/// Large enough for single requests that are longer than what is announced (WRITE_ZEROES 16 MiB, DISCARD 1 GiB).
const DISK_BYTES: u64 = 3 << 30;

/// Where the image has data: zeroes are all the rest.
const DATA: [(u64, usize); 3] = [(0, 1 << 20), (100 * MIB, 8 << 20), (DISK_BYTES - 4 * MIB, 4 << 20)];

/// The daemon is killed under a guest that knows that its requests are completed in order.
pub fn in_order(order: &Order<'_>) -> Vec<Row> {
    // A boot takes longer than a few kills.
    let order = Order { rounds: 5 * order.rounds, ..*order };
    made().map_or_else(|why| vec![Row::skipped(&why)], |()| with_newer(|| recovery::in_order(&order)))
}

/// As with the older QEMU; from 11 on it keeps to the rule that memory slots and postcopy exclude each other.
pub fn postcopy(order: &Order<'_>) -> Vec<Row> {
    made().map_or_else(|why| vec![Row::skipped(&why)], |()| with_newer(|| postcopy::moves(order)))
}

/// Images are copied to a disk and back, and pieces of any length are zeroed and discarded, without a guest.
pub fn images(order: &Order<'_>) -> Vec<Row> {
    made().map_or_else(|why| vec![Row::skipped(&why)], |()| copies(order))
}

/// Makes that Debian, if it is not there; or why not.
fn made() -> Result<(), String> {
    let run = |name: &str, arguments: &[&str]| {
        let output =
            Command::new(script(name)).args(arguments).output().map_err(|error| error.to_string())?;
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(why) }
    };
    run("newer", &[])?;
    run("kernel", &["debian13"])
}

/// Runs shell commands there, which must succeed; what they print.
fn shell(commands: &str) -> String {
    let output = Command::new(script("newer")).args(["bash", "-euo", "pipefail", "-c", commands]).output();
    let output = output.unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "{commands}: {}\n{text}", output.status);
    text.into_owned()
}

fn assert_same(expected: &Path, found: &Path) {
    let output = Command::new("cmp").args([expected, found]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn copies(order: &Order<'_>) -> Vec<Row> {
    let log = order.folder.join("daemon.log");
    let setup = Setup::new(Place::Tmpfs).disk(&format!("size={DISK_BYTES},sparse=on")).log_to(log);
    let daemon = setup.start();
    let start = Instant::now();
    let mut rows = Vec::new();
    for _ in 0..order.rounds {
        rows = vec![by_qemu(&daemon), by_nbdkit(&daemon), by_lengths(&daemon)];
    }
    let log = daemon.stop_for_log();
    assert!(!log.contains("WARN") && log.contains("failures=0"), "{log}");
    rows.push(Row::once("served without a failure".to_owned(), start));
    rows
}

/// An image with data at [`DATA`], beside the disk's own.
fn image(daemon: &Daemon, name: &str, seed: u64) -> std::path::PathBuf {
    use std::os::unix::fs::FileExt;
    let path = daemon.image(0).with_file_name(name);
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(DISK_BYTES).unwrap();
    for (offset, bytes) in DATA {
        file.write_all_at(&pattern(seed + offset, bytes), offset).unwrap();
    }
    path
}

/// qemu-img writes what is zero as WRITE_ZEROES, of up to 2 GiB a request whatever is announced.
fn by_qemu(daemon: &Daemon) -> Row {
    let start = Instant::now();
    let disk = disk(daemon);
    let source = image(daemon, "qemu-source", 1);
    // So that what is to be zero is not zero by itself.
    shell(&format!("qemu-io --image-opts {disk} -c 'write -P 0x5a 50M 64M' -c 'write -P 0xa5 1500M 16M'"));
    let file = format!("driver=file,filename={}", source.display());
    shell(&format!("qemu-img convert -n --image-opts {file} --target-image-opts {disk}"));
    assert_same(&source, &daemon.image(0));
    let back = daemon.image(0).with_file_name("qemu-back");
    shell(&format!("qemu-img convert --image-opts {disk} -O raw {}", back.display()));
    assert_same(&source, &back);
    shell(&format!("qemu-img compare --image-opts {file} {disk}"));
    shell(&format!("qemu-img bench -w -c 4000 -d 64 -s 4k -t none --image-opts {disk}"));
    shell(&format!("qemu-img bench -c 4000 -d 64 -s 4k -t none --image-opts {disk}"));
    [source, back].iter().for_each(|path| std::fs::remove_file(path).unwrap());
    Row::once(format!("qemu-img convert there and back, bench ({})", version("qemu-img --version")), start)
}

/// nbdcopy, through the plug-in of nbdkit.
fn by_nbdkit(daemon: &Daemon) -> Row {
    let start = Instant::now();
    let source = image(daemon, "nbd-source", 2);
    let back = daemon.image(0).with_file_name("nbd-back");
    let blkio = format!("nbdkit blkio virtio-blk-vhost-user path={}", daemon.socket(0).display());
    shell(&format!("{blkio} --run 'nbdcopy --flush {} \"$uri\"'", source.display()));
    assert_same(&source, &daemon.image(0));
    shell(&format!("{blkio} --run 'nbdcopy \"$uri\" {}'", back.display()));
    assert_same(&source, &back);
    [source, back].iter().for_each(|path| std::fs::remove_file(path).unwrap());
    Row::once(format!("nbdcopy there and back ({})", version("nbdkit --version")), start)
}

/// Single requests that are longer than the limits that are announced, which libblkio does not pass on.
fn by_lengths(daemon: &Daemon) -> Row {
    let start = Instant::now();
    let io = |commands: &[&str]| {
        let commands: String = commands.iter().map(|command| format!(" -c '{command}'")).collect();
        let said = shell(&format!("qemu-io --image-opts {}{commands}", disk(daemon)));
        assert!(!said.contains("failed") && !said.contains("exceed"), "{commands}: {said}");
    };
    io(&["write -P 0x33 0 128M", "write -z 8M 100M", "read -P 0x33 0 8M", "read -P 0 8M 100M", "flush"]);
    io(&["write -P 0x44 1M 1M", "write -z -u 512 1600M", "read -P 0 512 64M", "read -P 0x33 0 512"]);
    io(&["write -P 0x55 1500M 1M", "discard 0 1501M", "read -P 0 1500M 1M", "flush"]);
    Row::once("WRITE_ZEROES of 1600 MiB, DISCARD of 1501 MiB, each one request".to_owned(), start)
}

fn disk(daemon: &Daemon) -> String {
    format!("driver=virtio-blk-vhost-user,path={},cache.direct=on", daemon.socket(0).display())
}

/// The first line of what a program says of itself.
fn version(command: &str) -> String {
    shell(command).lines().next().unwrap_or_default().to_owned()
}
