//! Ceph: one node with all of the cluster, and two that are its clients, with a daemon each.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::super::common::Random;
use super::super::common::daemon::{Daemon, Setup};
use super::super::common::driver::{Driver, Options, Request};
use super::super::common::process::Process;
use super::super::common::{metrics, wait_long_for};
use super::super::soak::table::Row;
use super::super::soak::{Order, rig};
use super::node::{Node, Switch};
use super::recorder::Records;
use super::{Cluster, on_cluster};

/// Nodes: the cluster's, and its clients'.
const NODES: u8 = 3;

const OSDS: u32 = 3;

/// Writes that must be acknowledged while something is missing.
const ENOUGH: u64 = 200;

/// The longest that the load runs before a node is lost.
const WRITING: Duration = Duration::from_secs(3);

/// Since when a request counts as one that waits.
const WAITING_SECONDS: f64 = 1.0;

/// OSDs are killed under load, which goes on; then all of the cluster, for which it waits.
pub fn osds(order: &Order<'_>) -> Vec<Row> {
    on_cluster(order, kill_osds)
}

fn kill_osds(order: &Order<'_>, cluster: Ceph) -> Vec<Row> {
    let start = Instant::now();
    let daemon = cluster.serve_beside_another(order, 2).start();
    cluster.assert_named(&daemon, 2);
    super::assert_locked(&daemon, &cluster.serve(order, 3, ""));
    let (socket, mut other) = (daemon.socket(0), Driver::connect(&daemon.socket(1), Options::default()));
    let recorder = Records::new(order.seed).go_on(&socket);
    let mut pauses = Vec::new();
    for round in 0..order.rounds {
        let osd = round % OSDS;
        recorder.await_more(ENOUGH);
        cluster.say(&format!("kill {osd}"));
        recorder.await_more(ENOUGH);
        cluster.say(&format!("start {osd}"));
        cluster.say("whole");
        recorder.await_more(ENOUGH);
        cluster.say("kill");
        assert_waits(&daemon, &mut other);
        cluster.say("start");
        let since = Instant::now();
        recorder.await_more(ENOUGH);
        pauses.push(since.elapsed());
        cluster.say("whole");
    }
    recorder.await_more(ENOUGH);
    let records = end_while_frozen(&cluster, daemon, recorder, other);
    let daemon = cluster.serve(order, 3, "lock=wait").start();
    records.check(&daemon.socket(0));
    daemon.stop();
    let what = format!(
        "an OSD killed, then all of the cluster, {} acknowledged writes found by another client; until they go on",
        records.count
    );
    vec![Row { what, rounds: order.rounds, seconds: start.elapsed().as_secs_f32(), pauses }]
}

/// The disk on the cluster waits, and is named; the other one does not.
fn assert_waits(daemon: &Daemon, other: &mut Driver) {
    let oldest = |disk: u8| {
        metrics::read(&daemon.metrics_socket())[&format!("oldest_request_seconds{{disk=\"disk{disk}\"}}")]
    };
    wait_long_for("a request waits", || (oldest(0) >= WAITING_SECONDS).then_some(()));
    assert_eq!(other.queue().run(&Request::Flush), Ok(()));
    assert!(oldest(1) < WAITING_SECONDS);
    daemon.wait_for_log("the disk hangs: its media does not answer");
    let log = daemon.log();
    assert!(!log.lines().any(|line| line.contains("the disk hangs") && line.contains("disk1")), "{log}");
}

/// The daemon is to end while nothing answers: it does in time, and says what it gives up.
fn end_while_frozen(
    cluster: &Ceph,
    mut daemon: Daemon,
    recorder: super::recorder::Recorder,
    mut other: Driver,
) -> Records {
    cluster.say("freeze");
    assert_waits(&daemon, &mut other);
    daemon.signal(libc::SIGTERM);
    let records = recorder.stop();
    daemon.wait_for_log("--stop-timeout");
    let process = Process(daemon.pid());
    // Its threads that wait in the kernel stay until they are answered.
    wait_long_for("its first thread is over", || process.has_ended().then_some(()));
    cluster.say("thaw");
    assert_eq!(daemon.wait().code(), Some(15));
    records
}

/// The client that serves is lost, with its daemon; the other one goes on when the cluster has given it up.
pub fn client_losses(order: &Order<'_>) -> Vec<Row> {
    on_cluster(order, lose_clients)
}

fn lose_clients(order: &Order<'_>, mut cluster: Ceph) -> Vec<Row> {
    let start = Instant::now();
    let mut random = Random::new(order.seed);
    let mut daemon = cluster.serve(order, 2, "size=64M").start();
    let (mut records, mut pauses) = (Records::new(order.seed), Vec::new());
    for round in 0..order.rounds {
        let (lost, other) = if round % 2 == 0 { (2, 3) } else { (3, 2) };
        let recorder = records.go_on(&daemon.socket(0));
        recorder.await_more(ENOUGH);
        std::thread::sleep(rig::moment(&mut random, WRITING));
        daemon.signal(libc::SIGKILL);
        cluster.lose(lost);
        let since = Instant::now();
        records = recorder.stop();
        drop(daemon);
        daemon = cluster.serve(order, other, "lock=wait").start();
        records.check(&daemon.socket(0));
        pauses.push(since.elapsed());
        cluster.start(lost);
    }
    daemon.stop();
    let what = format!(
        "the client that serves lost, all of {} acknowledged writes found by the other; until then",
        records.count
    );
    vec![Row { what, rounds: order.rounds, seconds: start.elapsed().as_secs_f32(), pauses }]
}

/// The nodes: the first one is the cluster, the others mount its file system.
#[derive(Debug)]
pub struct Ceph {
    switch: Switch,
    nodes: Vec<Option<Node>>,
    folder: PathBuf,
}

impl Cluster for Ceph {
    const PACKAGES: &str = "ceph";
    const SERVING: [u8; 2] = [2, 3];

    fn new(order: &Order<'_>) -> Self {
        let (switch, folder) = (Switch::new(), order.folder.join("cluster"));
        let mut cluster = Self { switch, nodes: (0..=NODES).map(|_| None).collect(), folder };
        (1..=NODES).for_each(|number| cluster.start(number));
        cluster.say(&format!("new {}", cluster.node(1).address()));
        cluster
    }

    fn serve(&self, order: &Order<'_>, number: u8, disk: &str) -> Setup {
        let setup = super::setup(order, self.node(number), disk);
        let mount = format!("ceph-fuse --id {number} {}", setup.folder().display());
        // It gives up at once where the metadata server is not back yet.
        wait_long_for("the file system is mounted", || {
            self.node(number).attempt(&mount).status.success().then_some(())
        });
        setup
    }
}

impl Ceph {
    /// Has the script do something on the cluster's node.
    fn say(&self, words: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/ceph.sh");
        self.node(1).run(&format!("{} {words}", script.display()));
    }

    fn node(&self, number: u8) -> &Node {
        self.nodes[usize::from(number)].as_ref().unwrap()
    }

    /// Starts a node: for the first time, or after it was lost.
    fn start(&mut self, number: u8) {
        // What the cluster is, is known to all.
        let shared = (self.folder.join("etc"), "/etc/ceph");
        let own = self.folder.join(number.to_string());
        let places = ["/var/lib/ceph", "/var/log/ceph", "/run"];
        let own = places.map(|place| (own.join(place.replace('/', "-")), place));
        let folders: Vec<_> = std::iter::once(shared).chain(own).collect();
        let node = Node::start(&self.switch, number, &folders);
        node.run("mkdir -p /run/ceph");
        self.nodes[usize::from(number)] = Some(node);
    }

    fn lose(&mut self, number: u8) {
        self.nodes[usize::from(number)].take().unwrap().lose(&self.switch);
    }

    /// What a flush has it do is said at the start, and by `info`.
    fn assert_named(&self, daemon: &Daemon, number: u8) {
        const NAME: &str = "fuse.ceph-fuse (CephFS, ceph-fuse)";
        let program = env!("CARGO_BIN_EXE_vhost-user-pmem");
        let info = self.node(number).run(&format!("{program} info {}", daemon.image(0).display()));
        let storage = format!("it lies on {NAME}; there, all replicas that are there have");
        wait_long_for("the start message says it", || daemon.output().contains(&storage).then_some(()));
        assert!(info.contains(NAME) && info.contains("min_size"), "{info}");
    }

    /// The same with a second disk, which is on a file of this machine.
    fn serve_beside_another(&self, order: &Order<'_>, number: u8) -> Setup {
        let setup = self.serve(order, number, "size=64M").disk("").with_metrics();
        let (there, here) = (setup.image(1), order.folder.join("another.img"));
        std::fs::write(&here, vec![0; 1 << 20]).unwrap();
        self.node(number).run(&format!("ln -sf {} {}", here.display(), there.display()));
        setup.arg("--stop-timeout=2")
    }
}
