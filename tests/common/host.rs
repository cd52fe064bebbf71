//! What root can change of the machine for the time of a test: mounts, loop devices, huge pages.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::folder::run_name;

/// A mount that ends with the test.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// An empty tmpfs over a folder, with these options; none where that is not allowed, and says so.
    pub fn tmpfs(folder: &Path, options: &str) -> Option<Self> {
        Self::of(&["-t", "tmpfs", "-o", options, "tmpfs"], folder)
    }

    /// What `mount` mounts over a folder by these arguments.
    pub fn of(arguments: &[&str], folder: &Path) -> Option<Self> {
        succeeds(Command::new("mount").args(arguments).arg(folder)).then_some(Self(folder.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Gives what is mounted over a folder other options.
pub fn remount(folder: &Path, options: &str) {
    let options = format!("remount,{options}");
    assert!(succeeds(Command::new("mount").args(["-o", &options]).arg(folder)));
}

/// A loop device; detached when dropped.
#[derive(Debug)]
pub struct Loop(PathBuf);

impl Loop {
    /// Over a file; none where that is not allowed, and says so.
    pub fn over(file: &Path, arguments: &[&str]) -> Option<Self> {
        let output = Command::new("losetup").args(arguments).args(["--find", "--show"]).arg(file).output();
        match output {
            Ok(output) if output.status.success() => {
                Some(Self(String::from_utf8(output.stdout).ok()?.trim().into()))
            }
            Ok(output) => {
                eprintln!("skipped: no loop device: {}", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                eprintln!("skipped: no losetup: {error}");
                None
            }
        }
    }

    /// `/dev/loopN`.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Has it read the length of its file again.
    pub fn rescan_size(&self) {
        assert!(succeeds(Command::new("losetup").arg("--set-capacity").arg(&self.0)));
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// Huge pages of 2 MiB that a test has added to the pool; they are taken away again at its end.
#[derive(Debug)]
pub struct HugePages(u64);

impl HugePages {
    const POOL: &'static str = "/proc/sys/vm/nr_hugepages";

    fn pool() -> Option<u64> {
        std::fs::read_to_string(Self::POOL).ok()?.trim().parse().ok()
    }

    /// Asks for so many; how many there are then is for the test to find out.
    pub fn add(count: u64) -> Option<Self> {
        let added = Self(count);
        std::fs::write(Self::POOL, (Self::pool()? + count).to_string()).is_ok().then_some(added)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let left = Self::pool().unwrap_or_default().saturating_sub(self.0);
        let _ = std::fs::write(Self::POOL, left.to_string());
    }
}

/// A new file system of a kind and a size, made in a file of this folder with these options of its `mkfs`, and mounted on
/// its folder `mount`.
#[derive(Debug)]
pub struct Made {
    mount: PathBuf,
}

impl Made {
    /// None where that is not allowed, or its tools are not there; says so.
    pub fn new(folder: &Path, kind: &str, options: &[&str], bytes: u64) -> Option<Self> {
        let (file, mount) = (folder.join("device"), folder.join("mount"));
        std::fs::File::create_new(&file).unwrap().set_len(bytes).unwrap();
        std::fs::create_dir(&mount).unwrap();
        let is_made = succeeds(Command::new(format!("mkfs.{kind}")).args(options).arg("-q").arg(&file));
        let is_mounted =
            is_made && succeeds(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(&mount));
        is_mounted.then_some(Self { mount })
    }

    /// Where it is mounted.
    pub fn folder(&self) -> &Path {
        &self.mount
    }

    /// Fills it up, except for about this many bytes, with a file of this name.
    pub fn fill(&self, name: &str, except_bytes: u64) {
        let file = std::fs::File::create_new(self.mount.join(name)).unwrap();
        let mut at = 0;
        for step in [16 << 20, 1 << 20, 4096_u64] {
            let free = || {
                let it = rustix::fs::statvfs(&self.mount).unwrap();
                it.f_bavail * it.f_frsize
            };
            while free() >= except_bytes + step
                && rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), at, step).is_ok()
            {
                at += step;
            }
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
    }
}

/// A control group with a limit of memory; removed when dropped, by when nobody may be in it any more.
#[derive(Debug)]
pub struct MemoryGroup {
    folder: PathBuf,
    limit: &'static str,
}

impl MemoryGroup {
    /// Of either version; none where there is no such controller here, and says so.
    pub fn new(limit_bytes: u64) -> Option<Self> {
        let name = format!("{}-{}-{limit_bytes}", run_name(), std::process::id());
        let _ = std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
        for (root, limit) in [("", "memory.max"), ("memory", "memory.limit_in_bytes")] {
            let group = Self { folder: Path::new("/sys/fs/cgroup").join(root).join(&name), limit };
            let is_group = std::fs::create_dir(&group.folder).is_ok() && group.folder.join(limit).exists();
            if is_group && std::fs::write(group.folder.join(limit), limit_bytes.to_string()).is_ok() {
                return Some(group);
            }
        }
        eprintln!("skipped: no memory controller of control groups here");
        None
    }

    /// Gives it another limit.
    pub fn set_limit(&self, limit_bytes: u64) {
        std::fs::write(self.folder.join(self.limit), limit_bytes.to_string()).unwrap();
    }

    /// A script in this folder that runs `program` in the group.
    pub fn wrap(&self, program: &Path, folder: &Path) -> PathBuf {
        let join = format!("echo $$ >{}/cgroup.procs", self.folder.display());
        script(folder, &format!("{join}\nexec {} \"$@\"", program.display()))
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.folder);
    }
}

/// A script of the shell in this folder.
pub fn script(folder: &Path, text: &str) -> PathBuf {
    let path = folder.join("script");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    // Not made by this process alone: a child of another test, just forked, would have it open for writing.
    assert!(Command::new("chmod").arg("755").arg(&path).status().unwrap().success());
    path
}

/// Whether a command could be run and has succeeded; says so if not.
pub fn succeeds(command: &mut Command) -> bool {
    match command.output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            eprintln!("skipped: {command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
            false
        }
        Err(error) => {
            eprintln!("skipped: {command:?}: {error}");
            false
        }
    }
}
