//! Machines of a cluster that are none: a network, a process tree and a table of mounts each. What such a node runs is
//! killed where it stands when the node is lost. Nothing of it can be seen from outside.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::super::common::process::{Process, ends_with_us};

/// The first three numbers of all addresses, which nobody outside of the network sees.
const NETWORK: &str = "10.77.0";

/// What nodes are plugged into: a bridge in a network of its own.
#[derive(Debug)]
pub struct Switch(Holder);

/// A node that runs.
#[derive(Debug)]
pub struct Node {
    pub number: u8,
    holder: Holder,
}

/// Namespaces, and the process that holds them. Dropped, all that runs in its process tree is killed.
#[derive(Debug)]
struct Holder {
    unshare: Child,
    /// The first process of the tree.
    first: u32,
}

impl Switch {
    pub fn new() -> Self {
        let switch = Self(Holder::new());
        switch.run("ip link add bridge type bridge && ip link set bridge up");
        switch
    }

    /// In its network only: the nodes' processes are known by their numbers outside of any node.
    fn run(&self, line: &str) {
        succeeded(line, self.0.attempt(&["-n"], line));
    }
}

impl Node {
    /// Starts node `number`, whose `folders`, kept from one life to the next, are seen at these places.
    pub fn start(switch: &Switch, number: u8, folders: &[(PathBuf, &str)]) -> Self {
        let node = Self { number, holder: Holder::new() };
        let first = node.holder.first;
        switch.run(&format!(
            "ip link add node{number} type veth peer name eth0 netns {first} &&
             ip link set node{number} master bridge up"
        ));
        let address = node.address();
        node.run(&format!(
            "ip link set lo up && ip address add {address}/24 dev eth0 && ip link set eth0 up"
        ));
        for (folder, place) in folders {
            std::fs::create_dir_all(folder).unwrap();
            node.run(&format!("mount --bind {} {place}", folder.display()));
        }
        node
    }

    pub fn address(&self) -> String {
        format!("{NETWORK}.{}", self.number)
    }

    /// Runs a line of the shell on this node; what it printed. Panics if it fails.
    pub fn run(&self, line: &str) -> String {
        succeeded(line, self.attempt(line))
    }

    /// The same, if it may fail.
    pub fn attempt(&self, line: &str) -> Output {
        self.holder.attempt(&["-n", "-m", "-p"], line)
    }

    /// What runs a line of the shell on this node.
    pub fn shell(&self, line: &str) -> Command {
        self.holder.shell(&["-n", "-m", "-p"], line)
    }

    /// The command that has another one see the files of this node. It does not belong to the node's processes, nor to its
    /// network: who loses the node kills it, too. It has a /proc of its own, as those of the node do not know it.
    pub fn command(&self) -> [String; 9] {
        let first = self.holder.first.to_string();
        let become_it = r#"mount -t proc proc /proc && exec "$0" "$@""#;
        ["nsenter", "-t", &first, "-m", "unshare", "-m", "sh", "-c", become_it].map(str::to_owned)
    }

    /// The power fails: nobody is told. (A process that is killed says farewell to those whom it is connected to.)
    pub fn lose(self, switch: &Switch) {
        switch.run(&format!("ip link delete node{}", self.number));
    }

    /// A path of this node, as it is reached from outside.
    pub fn path(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.first));
        root.join(path.strip_prefix("/").unwrap())
    }
}

impl Holder {
    fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child", "sh", "-c"]);
        // It waits for what its tree leaves behind.
        command.arg("echo up; while :; do sleep 1000 & wait; done").stdout(Stdio::piped());
        let mut unshare = ends_with_us(&mut command).spawn().unwrap();
        let mut up = String::new();
        BufReader::new(unshare.stdout.take().unwrap()).read_line(&mut up).unwrap();
        assert_eq!(up, "up\n", "a node needs root, and the kernel's namespaces");
        let first = Process(unshare.id()).descendants()[0];
        Self { unshare, first }
    }

    fn attempt(&self, namespaces: &[&str], line: &str) -> Output {
        self.shell(namespaces, line).output().unwrap()
    }

    fn shell(&self, namespaces: &[&str], line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.first.to_string()]).args(namespaces).args(["sh", "-c", line]);
        command.stdin(Stdio::null());
        command
    }
}

/// What a line printed that must have succeeded.
fn succeeded(line: &str, Output { status, stdout, stderr }: Output) -> String {
    let [stdout, stderr] = [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(status.success(), "{line}: {status}\n{stdout}{stderr}");
    stdout
}

/// Numbers of the connections that the FUSE file systems are which a process sees.
fn fuse_connections(process: &str) -> BTreeSet<String> {
    let mounts = std::fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default();
    let of_fuse = mounts.lines().filter(|mount| mount.contains(" - fuse."));
    of_fuse.filter_map(|mount| Some(mount.split(' ').nth(2)?.split_once(':')?.1.to_owned())).collect()
}

impl Drop for Holder {
    fn drop(&mut self) {
        // A client may have a child that waits for its answer, and inherits what keeps the connection up (`ceph-fuse`, which
        // runs `mount -o remount`): nobody could end that child any more.
        let seen_outside = fuse_connections("self");
        for number in fuse_connections(&self.first.to_string()).difference(&seen_outside) {
            let connections = "/sys/fs/fuse/connections";
            let abort = format!("mount -t fusectl none {connections}; echo 1 >{connections}/{number}/abort");
            // It may be over already.
            let _ = self.shell(&["-m"], &abort).output();
        }
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}
