//! Disks on storage that is replicated between machines, by engines that exist. The machines are namespaces ([`node`]) or
//! guests, the engine is the real one.

pub mod ceph;
pub mod drbd;
pub mod gluster;
pub mod node;
pub mod recorder;
mod turns;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::common::daemon::{Daemon, Place, Setup};
use super::machine::script;
use super::soak::Order;
use node::Node;

/// Of a daemon: long enough for any number of rounds.
const LIFETIME: Duration = Duration::from_secs(4 * 3600);

/// Installs what an engine on nodes of this machine needs (`ci/lab/install`). Why it cannot be had here, if so.
fn missing(packages: &str) -> Option<String> {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        return Some("no root, or no /dev/fuse".to_owned());
    }
    match Command::new(script("install")).arg(packages).output() {
        Err(error) => Some(error.to_string()),
        Ok(output) if output.status.success() => None,
        Ok(_) => Some(format!("what `ci/lab/install {packages}` names cannot be installed here")),
    }
}

/// A daemon on this node; over the folder of its images, something is to be mounted there.
fn setup(order: &Order<'_>, node: &Node, disk: &str) -> Setup {
    let log = order.folder.join(format!("daemon-{}.log", node.number));
    let words = node.command();
    let setup = Setup::new(Place::FileSystem).disk(disk).log_to(log).lifetime(LIFETIME);
    setup.through(&words.each_ref().map(String::as_str))
}

/// The lock of the file reaches other nodes, too: a daemon there is refused beside this one.
fn assert_locked(daemon: &Daemon, elsewhere: &Setup) {
    let refused = elsewhere.run();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(9), "beside {}: {said}", daemon.pid());
    assert!(said.contains("another process already uses it"), "{said}");
}
