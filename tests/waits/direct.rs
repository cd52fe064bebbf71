//! Block devices, whose transfers the kernel does by itself: several at once, and answered as if one were done after the other.

use crate::common::SECTOR_BYTES;
use crate::common::daemon::{Place, Setup};
use crate::common::frontend::Session;
use crate::common::frontend::load::Load;
use crate::common::frontend::request::{IOERR, OK, Request};
use crate::common::host::Loop;
use crate::common::{MIB, metrics, pattern};
use crate::fuse::{Media, with_disks};
use crate::write_until_one_hangs;

const BYTES: u64 = 8 * MIB;

/// A daemon with a device, and the file that this is.
fn with_device(test: impl FnOnce(Setup, &std::fs::File)) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("device");
    std::fs::write(&path, pattern(1, BYTES as usize)).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let Some(device) = Loop::over(&path, &[]) else { return };
    let setup = Setup::new(Place::Tmpfs).disk("").arg("--workers=1").with_metrics();
    std::os::unix::fs::symlink(device.path(), setup.image(0)).unwrap();
    test(setup, &file);
}

fn direct(daemon: &crate::common::daemon::Daemon) -> f64 {
    metrics::read(&daemon.metrics_socket())["direct_transfers_total{disk=\"disk0\"}"]
}

#[test]
fn a_device_is_read_and_written_by_the_kernel_and_what_it_cannot_by_threads() {
    with_device(|setup, file| {
        let daemon = setup.start();
        let all = pattern(1, BYTES as usize);
        for session in Session::of_each_kind(&daemon.socket(0)) {
            let mut ring = session.ring(0, 128);
            let before = direct(&daemon);
            // Writes that overlap, and reads of what they write.
            let requests: Vec<_> = (0..30_u64)
                .map(|number| match number % 3 {
                    0 => Request::write(number / 6 * 8, &pattern(number, 8192)),
                    1 => Request::read(number / 6 * 8, 4096),
                    _ => Request::read(4096 + number * 8, 4096),
                })
                .collect();
            let heads: Vec<_> = requests.iter().map(|request| ring.submit(request)).collect();
            ring.notify();
            for ((number, request), head) in (0_u64..).zip(&requests).zip(heads) {
                let used = ring.wait();
                assert_eq!(used.head, head, "in the ring's order");
                let answer = ring.answer(request, used);
                assert_eq!(answer.status, OK, "{number}");
                let at = request.sector as usize * SECTOR_BYTES;
                match number % 3 {
                    0 => {}
                    1 => assert!(answer.data == pattern(number - 1, 8192)[..4096], "{number}"),
                    _ => assert!(answer.data == all[at..at + 4096], "{number}"),
                }
            }
            assert!(direct(&daemon) >= before + 25.0);
            assert_eq!(ring.run(&Request::flush()).status, OK);
            let load = Load::start(ring, 0);
            load.wait_for_progress();
            session.stop(&load.stop().vring());
        }
        // The device's end is gone: each such request fails, and says why.
        let session = Session::connect(&daemon.socket(0));
        let mut ring = session.ring(0, 64);
        file.set_len(BYTES / 2).unwrap();
        assert_eq!(ring.run(&Request::read(BYTES / 512 - 8, 4096)).status, IOERR);
        assert_eq!(ring.run(&Request::read(BYTES / 512 / 2 - 8, 4096)).status, OK);
        daemon.wait_for_log("preadv of 4096 bytes at offset 8384512");
        let metrics = metrics::read(&daemon.metrics_socket());
        assert_eq!(metrics["requests_in_flight{disk=\"disk0\"}"], 0.0, "{metrics:?}");
        daemon.stop();
    });
}

/// Any process of the machine may have used up `fs.aio-max-nr`. (Here the calls alone fail, as they do then.)
#[test]
fn where_the_kernel_has_no_asynchronous_io_for_us_threads_do_all_and_the_log_says_what_to_do() {
    with_device(|setup, _| {
        let launcher =
            ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=io_setup"];
        let launcher = [&launcher[..], &["-e", "inject=io_setup:error=EAGAIN"]].concat();
        let daemon = setup.through(&launcher).start();
        for session in Session::of_each_kind(&daemon.socket(0)) {
            let mut ring = session.ring(0, 128);
            let written = pattern(5, 4096);
            let requests = [Request::write(64, &written), Request::read(64, 4096), Request::flush()];
            let heads = requests.each_ref().map(|request| ring.submit(request));
            ring.notify();
            for (request, head) in requests.iter().zip(heads) {
                let used = ring.wait();
                assert_eq!(used.head, head, "in the ring's order");
                let answer = ring.answer(request, used);
                assert_eq!(answer.status, OK, "{request:?}");
                assert!(answer.data.is_empty() || answer.data == written);
            }
            let load = Load::start(ring, 0);
            load.wait_for_progress();
            session.stop(&load.stop().vring());
        }
        daemon.wait_for_log("raise fs.aio-max-nr, or allow io_setup");
        daemon.wait_for_log("no asynchronous I/O for block devices: threads do what waits for them");
        assert_eq!(direct(&daemon), 0.0, "none is done by the kernel");
        daemon.stop();
    });
}

/// Of io_uring, what has ended is told by the thread that has begun it: such a one would be held up by the other disk.
#[test]
fn transfers_are_told_of_while_the_thread_that_has_begun_them_hangs() {
    with_disks(Media::Local, 1, |setup, server| {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("device");
        std::fs::write(&path, pattern(1, BYTES as usize)).unwrap();
        let Some(device) = Loop::over(&path, &["--direct-io=on"]) else { return };
        let _ = std::fs::remove_file(setup.image(1));
        std::os::unix::fs::symlink(device.path(), setup.image(1)).unwrap();
        let daemon = setup.start();
        let (session, other) = (Session::connect(&daemon.socket(0)), Session::connect(&daemon.socket(1)));
        let mut hung = session.ring(0, 64);
        assert_eq!(hung.run(&Request::write(0, &pattern(9, 4096))).status, OK);
        assert_eq!(hung.run(&Request::flush()).status, OK);
        let load = Load::start(other.ring(0, 64), 0);
        load.wait_for_progress();
        server.hang();
        let (_, (write, head)) = write_until_one_hangs(&mut hung);
        (0..3).for_each(|_| load.wait_for_progress());
        assert_eq!(hung.next_used(), None, "it hangs still");
        server.go_on();
        let used = hung.wait();
        assert_eq!((used.head, hung.answer(&write, used).status), (head, OK));
        other.stop(&load.stop().vring());
        let metrics = metrics::read(&daemon.metrics_socket());
        assert!(metrics["direct_transfers_total{disk=\"disk1\"}"] > 0.0, "{metrics:?}");
        drop((session, hung));
        daemon.stop();
    });
}
