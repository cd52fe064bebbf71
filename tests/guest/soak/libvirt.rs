//! A guest that libvirt manages: `<disk type='vhostuser'>` is defined, attached and detached under load, and the daemon is killed
//! meanwhile. libvirtd runs in namespaces of its own, with folders of its own: no machine or network of this host is touched, and
//! when the scenario ends, nothing of it is left.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::super::cluster::node::{Node, Switch};
use super::super::common::daemon::{Place, Setup};
use super::super::common::{Random, wait_long_for};
use super::super::guest::{COMMAND_LINE, Guest};
use super::super::image::Image;
use super::super::machine::{Kernel, Machine, script};
use super::Order;
use super::recovery::PEACE;
use super::rig::{self, await_pulse, moment, pulse};
use super::table::Row;

/// Of libvirtd: everything is root's here, and no other service is there.
const SETTINGS: &str = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\nnamespaces = []\n\
                        cgroup_controllers = []\nremember_owner = 0\nstdio_handler = \"file\"\n";

const VIRSH: &str = "virsh --quiet --connect qemu:///system";

/// Written to the disk that comes and goes.
const CONTENT_BYTES: usize = 4 << 20;

pub fn attaches(order: &Order<'_>) -> Vec<Row> {
    let libvirt = match Libvirt::new(order.folder) {
        Ok(libvirt) => libvirt,
        Err(why) => return vec![Row::skipped(&why)],
    };
    let setup = Setup::new(Place::Tmpfs).disk("size=64M,serial=soak").disk("size=16M,serial=second");
    let mut daemon = setup.log_to(order.folder.join("daemon.log")).start();
    let images = [0, 1].map(|disk| Image::open(daemon.image(disk)));
    let disks = [0, 1].map(|disk| disk_xml(&daemon.socket(disk), ["vda", "vdb"][disk]));
    std::fs::write(order.folder.join("second.xml"), &disks[1]).unwrap();
    let mut guest = libvirt.boot(order.folder, &disks[0]);
    rig::start_pulse(&mut guest, &images[0]);
    rig::start_load(&mut guest);

    let second = order.folder.join("second.xml");
    let mut random = Random::new(order.seed);
    let start = Instant::now();
    let mut pauses = Vec::new();
    for _ in 0..order.rounds {
        libvirt.virsh(&format!("attach-device lab {} --live", second.display()));
        await_disk(&mut guest, "[ -b /dev/vdb ]");
        assert_eq!(guest.shell("cat /sys/block/vdb/serial"), "second");
        write_second(&mut guest, &images[1]);

        libvirt.virsh(&format!("detach-device lab {} --live", second.display()));
        await_disk(&mut guest, "[ ! -e /sys/block/vdb ]");
        await_detached(&libvirt);

        // Not while the second disk is there: libvirt 9.0.0 tells QEMU to connect again for disks of the start only.
        std::thread::sleep(moment(&mut random, PEACE));
        let setup = daemon.kill();
        let (last, gone) = (pulse(&images[0]), Instant::now());
        daemon = setup.start();
        await_pulse(&images[0], last);
        pauses.push(gone.elapsed());
    }
    let passes = rig::finish_load(&mut guest);
    guest.power_off();
    libvirt.virsh("undefine lab");
    assert_eq!(libvirt.virsh("list --all --name").trim(), "");
    let version = libvirt.virsh("version --daemon");
    let shown = |what| version.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_default();
    let (library, hypervisor) = (shown("Using library: "), shown("Running hypervisor: "));
    let what =
        format!("attached, killed -9 and detached ({library}, {hypervisor}) in {passes} passes of fio");
    vec![Row { what, rounds: order.rounds, seconds: start.elapsed().as_secs_f32(), pauses }]
}

/// What the guest writes is in the file.
fn write_second(guest: &mut Guest, image: &Image) {
    let written = guest.shell(&format!(
        "dd if=/dev/urandom of=/tmp/content bs=64k count={} 2>/dev/null && \
         dd if=/tmp/content of=/dev/vdb bs=64k oflag=direct conv=fsync 2>/dev/null && \
         echo 3 >/proc/sys/vm/drop_caches && head -c {CONTENT_BYTES} /dev/vdb | cmp - /tmp/content && \
         md5sum </tmp/content",
        CONTENT_BYTES >> 16
    ));
    let mut on_host = Command::new("sh");
    on_host.args(["-c", "head -c \"$1\" \"$0\" | md5sum"]);
    let on_host = on_host.arg(image.path()).arg(CONTENT_BYTES.to_string()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&on_host.stdout).trim(), written, "what the guest wrote");
}

fn await_disk(guest: &mut Guest, condition: &str) {
    guest.shell(&format!("for try in $(seq 900); do {condition} && exit 0; sleep 0.1; done; exit 1"));
}

/// libvirt has heard of it from QEMU, and the socket may be used again.
fn await_detached(libvirt: &Libvirt) {
    wait_long_for("the disk is not the domain's any more", || {
        (!libvirt.virsh("domblklist lab").contains("vdb")).then_some(())
    });
}

fn disk_xml(socket: &Path, target: &str) -> String {
    format!(
        "<disk type='vhostuser' device='disk'>
           <driver name='qemu' type='raw' queues='2'/>
           <source type='unix' path='{}'><reconnect enabled='yes' timeout='1'/></source>
           <target dev='{target}' bus='virtio'/>
         </disk>",
        socket.display()
    )
}

/// A libvirtd, and the node that it alone runs on.
#[derive(Debug)]
struct Libvirt {
    node: Node,
    _switch: Switch,
}

impl Libvirt {
    /// Starts it, or says why it cannot be had here.
    fn new(folder: &Path) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("no root".to_owned());
        }
        let installed = Command::new(script("install")).arg("libvirt").output();
        if !installed.map_err(|error| error.to_string())?.status.success() {
            return Err("libvirt cannot be installed here".to_owned());
        }
        let switch = Switch::new();
        let places = ["/run", "/var/lib", "/var/cache", "/var/log", "/etc/libvirt"];
        let folders = places.map(|place| (folder.join(format!("libvirt{}", place.replace('/', "-"))), place));
        let node = Node::start(&switch, 1, &folders);
        // Its package names this user, but it is another one that makes it.
        for (file, line) in
            [("passwd", "libvirt-qemu:x:64055:64055::/:/bin/false"), ("group", "libvirt-qemu:x:64055:")]
        {
            let own = folder.join(file);
            let all = std::fs::read_to_string(Path::new("/etc").join(file)).unwrap();
            std::fs::write(&own, all + line + "\n").unwrap();
            node.run(&format!("mount --bind {} /etc/{file}", own.display()));
        }
        std::fs::write(folders[4].0.join("qemu.conf"), SETTINGS).unwrap();
        let log = "log_outputs = \"2:file:/var/log/libvirtd.log\"\nauth_unix_rw = \"none\"\n";
        std::fs::write(folders[4].0.join("libvirtd.conf"), log).unwrap();
        node.run("libvirtd --daemon");
        Ok(Self { node, _switch: switch })
    }

    fn virsh(&self, words: &str) -> String {
        self.node.run(&format!("{VIRSH} {words}"))
    }

    /// Defines a domain with this disk, and starts it.
    fn boot(&self, folder: &Path, disk: &str) -> Guest {
        let (initramfs, image) = (rig::initramfs(folder), Kernel::Cloud.image());
        let domain = |line: &Path| {
            format!(
                "<domain type='qemu'>
                   <name>lab</name><memory unit='MiB'>1024</memory><vcpu>2</vcpu><cpu mode='maximum'/>
                   <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
                   <os>
                     <type arch='x86_64' machine='q35'>hvm</type>
                     <kernel>{}</kernel><initrd>{}</initrd><cmdline>{COMMAND_LINE}</cmdline>
                   </os>
                   <features><acpi/></features><seclabel type='none'/>
                   <devices>
                     <serial type='file'><source path='{}'/><target port='0'/></serial>
                     <serial type='unix'><source mode='connect' path='{}'/><target port='1'/></serial>
                     {disk}
                     <controller type='pci' model='pcie-root'/>
                     <controller type='pci' model='pcie-root-port'/><controller type='pci' model='pcie-root-port'/>
                     <controller type='pci' model='pcie-root-port'/><controller type='pci' model='pcie-root-port'/>
                     <controller type='usb' model='none'/><memballoon model='none'/>
                   </devices>
                 </domain>",
                image.display(),
                initramfs.display(),
                folder.join("console").display(),
                line.display()
            )
        };
        let file = folder.join("domain.xml");
        Guest::boot_by(|line| {
            std::fs::write(&file, domain(line)).unwrap();
            self.virsh(&format!("define {}", file.display()));
            self.virsh("start lab");
            // It ends as the domain does.
            let watch = format!("while [ \"$({VIRSH} domstate lab)\" = running ]; do sleep 0.3; done");
            Machine::spawn(folder, &mut self.node.shell(&watch))
        })
    }
}
