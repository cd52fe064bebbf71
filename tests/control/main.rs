//! The control socket of the running daemon: disks are added, changed and removed while others are used.
//!
//! The daemon is in its sandbox, and a system call that is not in the table ends it.

#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../common/mod.rs"]
mod common;

mod bad;
mod ctl;
mod empty;
mod events;
mod http;
mod killed;
mod leaks;
mod lifecycle;
mod limits;
mod operations;
mod reload;
mod rings;
mod slow;
mod steps;
mod top;
mod turns;

use std::path::{Path, PathBuf};

use common::daemon::{Daemon, Place, Setup};
use common::frontend::request::{OK, Request};
use common::frontend::ring::Ring;
use common::{MIB, pattern, wait_for};
use http::{Answer, ask};
use serde_json::{Value, json};

const DISK_BYTES: u64 = 8 * MIB;

/// A daemon with a disk that stays, and a control socket that may open more beside it.
struct Host {
    daemon: Daemon,
    images: PathBuf,
    sockets: PathBuf,
}

/// The command line of such a daemon.
fn setup(place: Place) -> Setup {
    with_control(Setup::new(place).disk(&format!("name=stays,size={DISK_BYTES}")))
}

fn with_control(setup: Setup) -> Setup {
    let images = setup.folder().display().to_string();
    let sockets = setup.socket(0).parent().unwrap().display().to_string();
    let control = format!("{sockets}/control.sock");
    setup.arg("--control").arg(&control).arg("--allow").arg(&images).arg("--allow").arg(&sockets)
}

impl Host {
    fn start(setup: Setup) -> Self {
        let (images, sockets) = (setup.folder().to_owned(), setup.socket(0).parent().unwrap().to_owned());
        Self { daemon: setup.start(), images, sockets }
    }

    fn new(place: Place) -> Self {
        Self::start(setup(place))
    }

    fn control(&self) -> PathBuf {
        self.sockets.join("control.sock")
    }

    fn image(&self, name: &str) -> PathBuf {
        self.images.join(name)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.sockets.join(name)
    }

    /// The options of a disk that is made where it is not there.
    fn options(&self, name: &str) -> Value {
        json!({"path": self.image(name), "socket": self.socket(name), "size": DISK_BYTES})
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        ask(&self.control(), method, path, body.map(ToString::to_string).as_deref())
    }

    fn get(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, None);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.json()
    }

    fn add(&self, name: &str) -> Answer {
        self.ask("PUT", &format!("/v1/disks/{name}"), Some(&self.options(name)))
    }

    fn remove(&self, name: &str, query: &str) -> Answer {
        self.ask("DELETE", &format!("/v1/disks/{name}{query}"), None)
    }

    fn names(&self) -> Vec<String> {
        names(&self.control())
    }
}

/// The disks that are served, in their order. Beside many clients it may be told to come again.
fn names(control: &Path) -> Vec<String> {
    let disks = wait_for("there is a place for who only looks", || {
        let answer = ask(control, "GET", "/v1/disks", None);
        (answer.status != 503).then(|| answer.json())
    });
    disks.as_array().unwrap().iter().map(|disk| disk["name"].as_str().unwrap().to_owned()).collect()
}

fn assert_works(ring: &mut Ring, sector: u64) {
    let bytes = pattern(sector, 4096);
    assert_eq!(ring.run(&Request::write(sector, &bytes)).status, OK);
    let read = ring.run(&Request::read(sector, 4096));
    assert!(read.status == OK && read.data == bytes);
}
