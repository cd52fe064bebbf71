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
use super::soak::table::Row;
use node::Node;

/// Of a daemon: long enough for any number of rounds.
const LIFETIME: Duration = Duration::from_secs(4 * 3600);

/// An engine's cluster on nodes of this machine, whose storage several of them see.
pub trait Cluster: Sized {
    /// What `ci/lab/install` calls what it needs.
    const PACKAGES: &str;

    /// Two nodes on which daemons may be.
    const SERVING: [u8; 2];

    fn new(order: &Order<'_>) -> Self;

    /// A daemon on this node, whose images are in the cluster.
    fn serve(&self, order: &Order<'_>, number: u8, disk: &str) -> Setup;
}

/// Runs a scenario, or says why it cannot be had here.
fn on_cluster<C: Cluster>(order: &Order<'_>, scenario: fn(&Order<'_>, C) -> Vec<Row>) -> Vec<Row> {
    match missing(C::PACKAGES) {
        None => scenario(order, C::new(order)),
        Some(why) => vec![Row::skipped(&why)],
    }
}

/// What one node wrote is what the other reads, also where it has read before, whatever each has in its caches.
pub fn alternation<C: Cluster>(order: &Order<'_>) -> Vec<Row> {
    on_cluster(order, |order, cluster: C| {
        let [first, second] = C::SERVING;
        let first = cluster.serve(order, first, "size=64M,lock=wait").start();
        turns::take_turns(order, [first, cluster.serve(order, second, "lock=wait").start()])
    })
}

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
