//! What a disk must outlive, in real guests under load: the end of its daemon, a move to another machine,
//! the growth of its file, the end of the power.
//!
//! Each scenario is one function of a count: `ci/test` calls it with [`Counts::SHORT`], `ci/soak` with more. When
//! one fails, the serial lines of its guests and the log of its daemons stay in a folder that is named.

mod hotplug;
pub mod in_guest;
mod libvirt;
pub mod migration;
mod monitor;
mod newer;
mod other_cpus;
mod other_firmware;
mod pmem_power;
mod postcopy;
mod power;
mod recovery;
mod resize;
mod restart;
pub mod rig;
pub mod table;

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::cluster::ceph::{self, Ceph};
use super::cluster::gluster::{self, Gluster};
use super::cluster::{alternation, drbd};
use super::folder;
use super::pmem;
use super::report::Report;
use table::{Row, Table};

/// How often each thing happens.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// Ends of the daemon, of each kind and on each kind of ring.
    kills: u32,
    /// Moves from one QEMU to another.
    migrations: u32,
    /// Of the disk.
    resizes: u32,
    /// Starts of the guest, of each kind.
    restarts: u32,
    power_cuts: u32,
    /// With the daemon in the guest.
    pmem_power_cuts: u32,
    /// Guests with memory on CXL, which take a kernel of their own.
    cxl: u32,
    /// Of what is done with each of the front-ends and guests that `ci/lab/install front-ends` brings.
    front_ends: u32,
    /// Of replicas under a daemon on replicated storage.
    brick_kills: u32,
    /// Of OSDs under a daemon on Ceph, and of all of it.
    osd_kills: u32,
    /// Of clients of Ceph, with the daemon.
    client_losses: u32,
    /// Of nodes of such storage, with the daemon.
    node_losses: u32,
    /// Moves of a guest from one such node to another.
    node_migrations: u32,
    /// The same between two primaries of DRBD.
    drbd_migrations: u32,
    /// Of a second disk to a guest of libvirt, and ends of the daemon meanwhile.
    attachments: u32,
    /// Of every random moment.
    seed: u64,
}

impl Counts {
    /// As a part of the guest tests.
    pub const SHORT: Self = Self {
        kills: 3,
        migrations: 1,
        resizes: 1,
        restarts: 1,
        power_cuts: 3,
        pmem_power_cuts: 1,
        cxl: 0,
        front_ends: 0,
        brick_kills: 1,
        // A minute, or several on a busy machine, and 56 MB to download: `ci/cluster` and `ci/soak` have it.
        osd_kills: 0,
        // It takes the cluster half a minute to give a client up.
        client_losses: 0,
        node_losses: 1,
        node_migrations: 2,
        // Three minutes: `ci/cluster` and `ci/soak` have it.
        drbd_migrations: 0,
        attachments: 1,
        seed: 1,
    };

    /// Reads `kills=20,power-cuts=50,seed=7`; what is not named does not happen.
    pub fn parse(text: &str) -> Option<Self> {
        let mut counts = Self {
            kills: 0,
            migrations: 0,
            resizes: 0,
            restarts: 0,
            power_cuts: 0,
            pmem_power_cuts: 0,
            cxl: 0,
            front_ends: 0,
            brick_kills: 0,
            osd_kills: 0,
            client_losses: 0,
            node_losses: 0,
            node_migrations: 0,
            drbd_migrations: 0,
            attachments: 0,
            seed: 1,
        };
        for word in text.split(',') {
            match word.split_once('=')? {
                ("kills", number) => counts.kills = number.parse().ok()?,
                ("migrations", number) => counts.migrations = number.parse().ok()?,
                ("resizes", number) => counts.resizes = number.parse().ok()?,
                ("restarts", number) => counts.restarts = number.parse().ok()?,
                ("power-cuts", number) => counts.power_cuts = number.parse().ok()?,
                ("pmem-power-cuts", number) => counts.pmem_power_cuts = number.parse().ok()?,
                ("cxl", number) => counts.cxl = number.parse().ok()?,
                ("front-ends", number) => counts.front_ends = number.parse().ok()?,
                ("brick-kills", number) => counts.brick_kills = number.parse().ok()?,
                ("osd-kills", number) => counts.osd_kills = number.parse().ok()?,
                ("client-losses", number) => counts.client_losses = number.parse().ok()?,
                ("node-losses", number) => counts.node_losses = number.parse().ok()?,
                ("node-migrations", number) => counts.node_migrations = number.parse().ok()?,
                ("drbd-migrations", number) => counts.drbd_migrations = number.parse().ok()?,
                ("attachments", number) => counts.attachments = number.parse().ok()?,
                ("seed", number) => counts.seed = number.parse().ok()?,
                _ => return None,
            }
        }
        Some(counts)
    }
}

/// What a scenario is given.
#[derive(Debug)]
pub struct Order<'a> {
    /// How often; at least once.
    pub rounds: u32,
    pub seed: u64,
    /// For the machines' and the daemons' files.
    pub folder: &'a Path,
}

type Scenario = fn(&Order<'_>) -> Vec<Row>;

/// Runs every scenario that is wanted and counted.
pub fn run(report: &mut Report, counts: &Counts) -> Table {
    let scenarios: [(&str, u32, Scenario); 28] = [
        ("soak: daemon ends under fio, split rings", counts.kills, recovery::split),
        ("soak: daemon ends under fio, packed rings", counts.kills, recovery::packed),
        ("soak: migration under fio, one daemon", counts.migrations, migration::one_daemon),
        ("soak: migration under fio, two daemons", counts.migrations, migration::two_daemons),
        ("soak: migration while memory comes and goes", counts.migrations, hotplug::moves),
        ("soak: guest moves before its memory, under fio", counts.migrations, postcopy::moves),
        ("soak: guest starts again under fio", counts.restarts, restart::restarts),
        ("soak: disk grows under fio", counts.resizes, resize::growth),
        ("soak: power cut", counts.power_cuts, power::cuts),
        ("soak: power cut of persistent memory", counts.pmem_power_cuts, pmem_power::cuts),
        ("soak: libvirt attaches and detaches under fio", counts.attachments, libvirt::attaches),
        ("soak: persistent memory on CXL", counts.cxl, on_cxl),
        ("soak: Debian 13, images through libblkio", counts.front_ends, newer::images),
        ("soak: Debian 13, daemon ends under fio, in order", counts.front_ends, newer::in_order),
        ("soak: Debian 13, guest moves before its memory", counts.front_ends, newer::postcopy),
        ("soak: other CPUs, Linux on arm64", counts.front_ends, other_cpus::arm64),
        ("soak: other CPUs, Linux on ppc64el", counts.front_ends, other_cpus::ppc64el),
        ("soak: other CPUs, Linux on s390x", counts.front_ends, other_cpus::s390x),
        ("soak: other CPUs, firmware", counts.front_ends, other_firmware::boots),
        ("soak: GlusterFS, replicas are killed", counts.brick_kills, gluster::bricks),
        ("soak: GlusterFS, the node that serves is lost", counts.node_losses, gluster::node_losses),
        ("soak: DRBD, the node that serves is lost", counts.node_losses, drbd::node_losses),
        ("soak: GlusterFS, nodes in turn", 4 * counts.node_migrations, alternation::<Gluster>),
        ("soak: GlusterFS, migration between nodes under fio", counts.node_migrations, gluster::migrations),
        ("soak: DRBD, migration between nodes under fio", counts.drbd_migrations, drbd::migrations),
        ("soak: CephFS, OSDs are killed, and all of it", counts.osd_kills, ceph::osds),
        ("soak: CephFS, the client that serves is lost", counts.client_losses, ceph::client_losses),
        ("soak: CephFS, clients in turn", 4 * counts.client_losses, alternation::<Ceph>),
    ];
    let mut table = Table::default();
    for (name, rounds, scenario) in scenarios {
        if rounds == 0 || !report.wants(name) {
            continue;
        }
        let rows = report.produce(name, || {
            let evidence = Evidence::new(name);
            let rows = scenario(&Order { rounds, seed: counts.seed, folder: &evidence.folder });
            let seen: Vec<String> = rows.iter().map(ToString::to_string).collect();
            (rows, seen.join("; "))
        });
        table.add(name, rows);
    }
    table
}

fn on_cxl(order: &Order<'_>) -> Vec<Row> {
    let start = Instant::now();
    let seen: Vec<String> = (0..order.rounds).map(|_| pmem::cxl::check()).collect();
    let what = seen.into_iter().next().unwrap_or_default();
    vec![Row { what, rounds: order.rounds, seconds: start.elapsed().as_secs_f32(), pauses: Vec::new() }]
}

/// A folder that stays when its scenario panics.
#[derive(Debug)]
struct Evidence {
    folder: PathBuf,
}

impl Evidence {
    fn new(name: &str) -> Self {
        let name = name.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        // Of an earlier failure.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder::remove_on_interrupt(&folder);
        Self { folder }
    }
}

impl Drop for Evidence {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = std::fs::remove_file(self.folder.join("initramfs"));
            folder::keep_on_interrupt(&self.folder);
            println!("       the logs of what fails next are in {}", self.folder.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}
