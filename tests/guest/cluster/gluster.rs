//! GlusterFS: three nodes with a replica each, and daemons on two of them, which see the same file.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::common::Random;
use super::super::common::daemon::Setup;
use super::super::common::wait_long_for;
use super::super::image::Image;
use super::super::soak::migration::{self, Scene};
use super::super::soak::table::Row;
use super::super::soak::{Order, rig};
use super::node::{Node, Switch};
use super::recorder::Records;
use super::{Cluster, on_cluster};

/// Nodes, each with a replica.
const NODES: u8 = 3;

/// Writes that must be acknowledged while something is missing.
const ENOUGH: u64 = 200;

/// The longest that the load runs before a node is lost.
const WRITING: Duration = Duration::from_secs(3);

/// What is set besides the defaults: a majority of the replicas has to be there, a node that is silent for so many
/// seconds is gone, and its locks with it (42 without these).
const OPTIONS: [&str; 6] = [
    "cluster.quorum-type auto",
    "network.ping-timeout 5",
    "server.keepalive-time 3",
    "server.keepalive-interval 1",
    "server.keepalive-count 3",
    "server.tcp-user-timeout 6",
];

/// Replicas are killed and come back under load: nothing is lost, and nothing fails.
pub fn bricks(order: &Order<'_>) -> Vec<Row> {
    on_cluster(order, kill_bricks)
}

fn kill_bricks(order: &Order<'_>, cluster: Gluster) -> Vec<Row> {
    let start = Instant::now();
    let daemon = cluster.serve(order, 1, "size=64M").start();
    let socket = daemon.socket(0);
    super::assert_locked(&daemon, &cluster.serve(order, 2, ""));
    let recorder = Records::new(order.seed).go_on(&socket);
    for round in 0..order.rounds {
        let number = u8::try_from(round % u32::from(NODES)).unwrap() + 1;
        recorder.await_more(ENOUGH);
        cluster.node(number).run("kill -9 $(cat /run/gluster/vols/disk/*.pid)");
        recorder.await_more(ENOUGH);
        cluster.node(number).run("gluster --mode=script volume start disk force");
        cluster.await_healed();
    }
    let records = recorder.stop();
    records.check(&socket);
    daemon.stop();
    let daemon = cluster.serve(order, 2, "").start();
    records.check(&daemon.socket(0));
    daemon.stop();
    let what = format!("a replica killed, {} acknowledged writes found on two nodes", records.count);
    vec![Row { what, rounds: order.rounds, seconds: start.elapsed().as_secs_f32(), pauses: Vec::new() }]
}

/// The node that serves is lost, with its daemon and its replica; the other one goes on.
pub fn node_losses(order: &Order<'_>) -> Vec<Row> {
    on_cluster(order, lose_nodes)
}

fn lose_nodes(order: &Order<'_>, mut cluster: Gluster) -> Vec<Row> {
    let start = Instant::now();
    let mut random = Random::new(order.seed);
    let mut daemon = cluster.serve(order, 1, "size=64M").start();
    let (mut records, mut pauses) = (Records::new(order.seed), Vec::new());
    for round in 0..order.rounds {
        let (lost, other) = if round % 2 == 0 { (1, 2) } else { (2, 1) };
        let recorder = records.go_on(&daemon.socket(0));
        recorder.await_more(ENOUGH);
        std::thread::sleep(rig::moment(&mut random, WRITING));
        daemon.signal(libc::SIGKILL);
        cluster.lose(lost);
        let since = Instant::now();
        records = recorder.stop();
        drop(daemon);
        // It waits until the cluster has given up the lost node and its lock.
        daemon = cluster.serve(order, other, "lock=wait").start();
        records.check(&daemon.socket(0));
        pauses.push(since.elapsed());
        cluster.start(lost);
        cluster.await_healed();
    }
    daemon.stop();
    let what = format!(
        "the node that serves lost, all of {} acknowledged writes found on the other; until then",
        records.count
    );
    vec![Row { what, rounds: order.rounds, seconds: start.elapsed().as_secs_f32(), pauses }]
}

/// A guest under load moves between daemons on two nodes.
pub fn migrations(order: &Order<'_>) -> Vec<Row> {
    on_cluster(order, migrate)
}

fn migrate(order: &Order<'_>, cluster: Gluster) -> Vec<Row> {
    let first = cluster.serve(order, 1, "size=64M,serial=soak,lock=wait").start();
    let second = cluster.serve(order, 2, "serial=soak,lock=wait");
    // Past the page cache: the kernel of this node knows nothing of what the others write.
    let seen = cluster.mount(3, second.folder(), "direct-io-mode=enable");
    let image = Image::open(seen.join("disk0.img"));
    migration::moves(order, Scene::over(order, vec![first, second.start()], image))
}

/// Three nodes, and the volume `disk`.
#[derive(Debug)]
pub struct Gluster {
    switch: Switch,
    nodes: Vec<Option<Node>>,
    folder: PathBuf,
}

impl Cluster for Gluster {
    const PACKAGES: &str = "cluster";
    const SERVING: [u8; 2] = [1, 2];

    fn new(order: &Order<'_>) -> Self {
        let (switch, folder) = (Switch::new(), order.folder.join("cluster"));
        let mut cluster = Self { switch, nodes: (0..=NODES).map(|_| None).collect(), folder };
        (1..=NODES).for_each(|number| cluster.start(number));
        let first = cluster.node(1);
        for number in 2..=NODES {
            first.run(&format!("gluster --mode=script peer probe {}", cluster.node(number).address()));
        }
        wait_long_for("the nodes know each other", || {
            let status = first.run("gluster peer status");
            (status.matches("Peer in Cluster (Connected)").count() == usize::from(NODES - 1)).then_some(())
        });
        let brick = |number| format!(" {}:/srv/brick", cluster.node(number).address());
        let bricks: String = (1..=NODES).map(brick).collect();
        first.run(&format!("gluster --mode=script volume create disk replica {NODES}{bricks} force"));
        for option in OPTIONS {
            first.run(&format!("gluster --mode=script volume set disk {option}"));
        }
        first.run("gluster --mode=script volume start disk");
        cluster
    }

    fn serve(&self, order: &Order<'_>, number: u8, disk: &str) -> Setup {
        let setup = super::setup(order, self.node(number), disk);
        self.mount(number, setup.folder(), "log-level=WARNING");
        setup
    }
}

impl Gluster {
    fn node(&self, number: u8) -> &Node {
        self.nodes[usize::from(number)].as_ref().unwrap()
    }

    /// Starts a node: for the first time, or after it was lost.
    fn start(&mut self, number: u8) {
        let folder = self.folder.join(number.to_string());
        let places = ["/var/lib/glusterd", "/var/log/glusterfs", "/srv", "/run"];
        let folders = places.map(|place| (folder.join(place.replace('/', "-")), place));
        // What runs is gone with the node.
        let _ = std::fs::remove_dir_all(&folders[3].0);
        let node = Node::start(&self.switch, number, &folders);
        node.run("mkdir -p /run/gluster && glusterd");
        self.nodes[usize::from(number)] = Some(node);
    }

    fn lose(&mut self, number: u8) {
        self.nodes[usize::from(number)].take().unwrap().lose(&self.switch);
    }

    /// Waits until all replicas are there and have all that was written.
    fn await_healed(&self) {
        wait_long_for("the replicas are the same", || {
            let told = self.node(3).attempt("gluster volume heal disk info");
            let told = String::from_utf8_lossy(&told.stdout).into_owned();
            let all = told.matches("Status: Connected").count() == usize::from(NODES)
                && told.matches("Number of entries: 0").count() == usize::from(NODES);
            all.then_some(())
        });
    }

    /// Mounts the volume over a folder of a node; where it is seen from outside.
    fn mount(&self, number: u8, folder: &Path, options: &str) -> PathBuf {
        let node = self.node(number);
        let place = folder.display();
        node.run(&format!("mount -t glusterfs -o {options} {}:/disk {place}", node.address()));
        node.path(folder)
    }
}
