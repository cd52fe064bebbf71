//! Templates (`template=on`): each front-end that connects gets a private disk of its own.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::common::daemon::{Daemon, Place, Setup};
use super::common::frontend::request::{GET_ID, IOERR, OK, Request};
use super::common::frontend::ring::Ring;
use super::common::frontend::{Options, Session};
use super::common::process::Process;
use super::common::{Random, wait_for};
use super::{all, base, change_at_random, come_back, value};

fn template(place: Place, options: &str) -> Setup {
    let setup = Setup::new(place).disk(&format!("overlay=memory,template=on{options}"));
    fs::write(setup.image(0), base()).unwrap();
    setup
}

fn serial(ring: &mut Ring) -> String {
    let request = Request { kind: GET_ID, sector: 0, payload: Vec::new(), writable_bytes: 20 };
    let answer = ring.run(&request);
    assert_eq!(answer.status, OK);
    String::from_utf8(answer.data).unwrap().trim_end_matches('\0').to_owned()
}

fn overlay_bytes(daemon: &Daemon) -> f64 {
    value(daemon, "vhost_user_pmem_overlay_bytes{disk=\"disk0\"}")
}

/// More than any disk has front-ends, all at once: none sees another's changes, and who leaves gives its memory back.
#[test]
fn each_front_end_has_a_disk_of_its_own() {
    for place in Place::ALL {
        for options in Options::both_kinds() {
            let daemon = template(place, ",queues=1").with_metrics().start();
            let mut random = Random::new(3);
            let sessions: Vec<_> =
                (0..20).map(|_| Session::connect_with(&daemon.socket(0), &options)).collect();
            let mut rings: Vec<_> = sessions.iter().map(|session| session.ring(0, 64)).collect();
            let mut models = vec![base(); rings.len()];
            for _ in 0..400 {
                let which = random.below(19) as usize;
                change_at_random(&mut rings[which], &mut models[which], &mut random);
            }
            for (ring, model) in rings.iter_mut().zip(&models) {
                assert!(all(ring) == *model, "{place:?}");
            }
            assert!(models[19] == base(), "nobody has written to this one");
            let mut serials: Vec<_> = rings.iter_mut().map(serial).collect();
            assert!(serials.iter().all(|serial| serial.starts_with("disk0-")), "{serials:?}");
            serials.sort_unstable();
            serials.dedup();
            assert_eq!(serials.len(), rings.len());
            assert_eq!(value(&daemon, "vhost_user_pmem_front_ends{disk=\"disk0\"}"), 20.0);
            assert!(overlay_bytes(&daemon) >= 19.0 * 4096.0);
            let last = (rings.pop().unwrap(), sessions);
            drop((rings, last.1.into_iter().take(19).for_each(drop)));
            wait_for("their memory is given back", || (overlay_bytes(&daemon) == 0.0).then_some(()));
            drop(last.0);
            let next = Session::connect_with(&daemon.socket(0), &options);
            assert!(all(&mut next.ring(0, 64)) == base(), "who comes next begins with the base");
            let setup = daemon.stop();
            assert!(fs::read(setup.image(0)).unwrap() == base(), "{place:?}: the base");
        }
    }
}

/// A front-end that comes back gets a new disk, and its guest must not take that for its own.
#[test]
fn a_guest_that_comes_back_gets_errors() {
    let options = Options::default();
    let daemon = template(Place::Tmpfs, "").start();
    let session = Session::connect(&daemon.socket(0));
    let mut ring = session.ring(0, 64);
    assert_eq!(ring.run(&Request::write(8, &[9; 512])).status, OK);
    let (session, mut ring) = come_back(&daemon, session, ring, &options);
    assert_eq!(ring.run(&Request::read(8, 512)).status, IOERR);
    daemon.wait_for_log("what this guest has written is lost");
    session.stop(&ring);
    let mut ring = session.ring(0, 64);
    assert!(all(&mut ring) == base());
    assert_eq!(ring.run(&Request::write(8, &[9; 512])).status, OK);
    // Nor does it after the end of the daemon.
    let daemon = daemon.kill().start();
    let (session, mut ring) = come_back(&daemon, session, ring, &options);
    for request in [Request::read(8, 512), Request::write(8, &[7; 512]), Request::flush()] {
        assert_eq!(ring.run(&request).status, IOERR, "{request:?}");
    }
    daemon.wait_for_log("what this guest has written is lost");
    session.stop(&ring);
    assert!(all(&mut session.ring(0, 64)) == base());
    daemon.stop();
}

/// The limit is each disk's; what is written together is what they have together.
#[test]
fn each_may_write_as_much_as_the_limit_says() {
    let daemon = template(Place::Tmpfs, ",overlay-max=64K").with_metrics().start();
    let sessions = [0, 1].map(|_| Session::connect(&daemon.socket(0)));
    let mut rings = sessions.each_ref().map(|session| session.ring(0, 64));
    for ring in &mut rings {
        let page = |page: u64| Request::write(page * 8, &[page as u8; 4096]);
        assert!((0..16).all(|at| ring.run(&page(at)).status == OK));
        assert_eq!(ring.run(&page(16)).status, IOERR);
    }
    assert_eq!(overlay_bytes(&daemon), 131_072.0);
    let said = daemon.output();
    assert!(
        said.contains("each front-end gets a disk of its own; what is written is in memory, up to 64 KiB"),
        "{said}"
    );
    daemon.stop();
}

/// Hundreds come and go, and nothing is left of them.
#[test]
fn front_ends_that_have_left_leave_nothing() {
    // Workers stay, once there were rings for several at the same time.
    let setup = template(Place::Tmpfs, ",queues=1").arg("--workers=1").env("VHOST_USER_PMEM_HOLD_UPS", "0");
    let daemon = setup.with_metrics().start();
    let process = Process(daemon.pid());
    let visit = || {
        let session = Session::connect(&daemon.socket(0));
        assert_eq!(session.ring(0, 64).run(&Request::write(0, &[1; 4096])).status, OK);
    };
    (0..20).for_each(|_| visit());
    // One mapping is the template's own.
    let is_alone = || process.mappings("overlay") == 1 && process.threads_named("session").is_empty();
    wait_for("they have left", || is_alone().then_some(()));
    // A descriptor that is about to be closed may be counted here.
    let (fds, threads) = (process.fds(), process.threads());
    (0..300).for_each(|_| visit());
    wait_for("nothing is left", || {
        (is_alone() && process.fds() <= fds && process.threads() <= threads).then_some(())
    });
    daemon.stop();
}

/// What a farm costs: each stays, beside as many that come to a plain disk and leave, one at a time.
#[test]
#[ignore = "a measurement: ci/bench overlay"]
fn a_thousand_front_ends() {
    const COUNT: usize = 1000;
    let open = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: open.maximum, ..open }).unwrap();
    // Each disk in a daemon of its own: half of the descriptors of one would be kept for both.
    let daemons = ["overlay=memory,template=on,queues=1", "queues=1"].map(|options| {
        let setup = Setup::new(Place::Tmpfs).disk(&format!("sparse=on,{options}"));
        fs::File::create(setup.image(0)).unwrap().set_len(8 << 30).unwrap();
        setup.lifetime(Duration::from_secs(600)).start()
    });
    let process = Process(daemons[0].pid());
    let first_read = |disk: usize| {
        let start = Instant::now();
        let session = Session::connect(&daemons[disk].socket(0));
        let mut ring = session.ring(0, 64);
        assert_eq!(ring.run(&Request::read(8, 4096)).status, OK);
        (start.elapsed(), (ring, session))
    };
    let mut kept = vec![first_read(0).1];
    drop(first_read(1));
    let (before, threads) = (process.anonymous_bytes(), process.threads());
    let (mut template, mut plain) = (Vec::new(), Vec::new());
    for _ in 1..COUNT {
        let (took, stays) = first_read(0);
        template.push(took);
        kept.push(stays);
        plain.push(first_read(1).0);
    }
    let each = (process.anonymous_bytes() - before) / (COUNT as u64 - 1) / 1024;
    let threads = (process.threads() - threads) as f64 / (COUNT - 1) as f64;
    template.sort_unstable();
    plain.sort_unstable();
    let (ours, theirs) = (template[COUNT / 2], plain[COUNT / 2]);
    eprintln!(
        "{COUNT} front-ends of a template of 8 GiB: {each} KiB and {threads:.2} threads each; from connect to the first read {ours:?}, \
         of a plain disk {theirs:?} (medians, alternating): {:.2}",
        ours.as_secs_f64() / theirs.as_secs_f64()
    );
    drop(kept);
    daemons.into_iter().for_each(|daemon| drop(daemon.stop()));
}

#[test]
fn what_a_template_cannot_be_is_refused() {
    for (options, message) in [
        ("template=on", "template=on: a template's disks are in memory; add overlay=memory"),
        ("overlay=./x,template=on", "template=on: a template's disks are in memory; add overlay=memory"),
        (
            "overlay=memory,template=on,postcopy=on",
            "template and postcopy contradict each other; leave one of them out",
        ),
        ("overlay=memory,template=both", "template=both: write off, on or same-serial"),
    ] {
        let setup = Setup::new(Place::Tmpfs).disk(options);
        fs::write(setup.image(0), base()).unwrap();
        let output = setup.run();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(message) && output.status.code() == Some(2), "{options}: {error}");
    }
    let same = Setup::new(Place::Tmpfs).disk("overlay=memory,template=same-serial,serial=golden");
    fs::write(same.image(0), base()).unwrap();
    let daemon = same.start();
    let session = Session::connect(&daemon.socket(0));
    assert_eq!(serial(&mut session.ring(0, 64)), "golden");
    drop(session);
    daemon.stop();
}
