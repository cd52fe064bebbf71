//! How much memory the control groups of this process leave it. The kernel kills a process that takes more, without an error
//! that could be reported: so the groups are asked before memory is taken.
//!
//! Both hierarchies are read (Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst).

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::disk::KeptFile;

/// The limit of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::disk) struct MemoryLimit {
    /// The folder of the group.
    group: PathBuf,
    /// The limit in bytes.
    max_bytes: u64,
    /// Bytes that can still be taken: the limit less what is in use, not counting the page cache, which the kernel reclaims.
    pub(in crate::disk) room_bytes: u64,
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the memory cgroup {} is limited to {} bytes", self.group.display(), self.max_bytes)
    }
}

impl MemoryLimit {
    /// Of this process's own group and those around it, the limit that leaves the least. None where there is no limit. Which
    /// groups these are is found out once.
    pub(super) fn tightest() -> Option<Self> {
        Groups::own().tightest()
    }
}

/// Finds out now which groups this process is in, so that their files are open when disks grow.
pub(in crate::disk) fn find_groups() {
    Groups::own();
}

/// The groups of a process, those around them included, with their files open.
#[derive(Debug)]
struct Groups {
    groups: Vec<Group>,
    /// `/proc/meminfo`, for the swap space that the machine has free.
    meminfo: Option<KeptFile>,
}

#[derive(Debug)]
struct Group {
    folder: PathBuf,
    max: KeptFile,
    current: KeptFile,
    stat: Option<KeptFile>,
    hierarchy: &'static Hierarchy,
    /// The files with how much may be swapped out, and how much is.
    swap: Option<(Option<KeptFile>, Option<KeptFile>)>,
}

impl Groups {
    fn own() -> &'static Self {
        static GROUPS: OnceLock<Groups> = OnceLock::new();
        GROUPS.get_or_init(|| Self::of(Path::new("/proc/self")))
    }

    /// The groups that `mountinfo` and `cgroup` in this folder name.
    fn of(process: &Path) -> Self {
        let text = |name| fs::read_to_string(process.join(name)).unwrap_or_default();
        let (groups, mounts) = (text("cgroup"), text("mountinfo"));
        let groups: Vec<_> = Hierarchy::ALL.iter().flat_map(|it| it.groups(&groups, &mounts)).collect();
        let meminfo = KeptFile::open("/proc/meminfo").ok().filter(|_| !groups.is_empty());
        Self { groups, meminfo }
    }

    fn tightest(&self) -> Option<MemoryLimit> {
        let limits = self.groups.iter().filter_map(|group| group.limit(self.meminfo.as_ref()));
        limits.min_by_key(|limit| limit.room_bytes)
    }
}

/// A value from here on means that there is no limit: version 1 has the largest multiple of a page below 2^63 then.
const NO_LIMIT_BYTES: u64 = 1 << 60;

/// The names of the files of one version of control groups.
#[derive(Debug)]
struct Hierarchy {
    file_system: &'static str,
    /// The controller's name in `cgroup` and in the options of the mount.
    controller: &'static str,
    max: &'static str,
    current: &'static str,
    /// Fields of `memory.stat` with the page cache of files, which can be reclaimed.
    cache: [&'static str; 2],
    /// Files with how much may be swapped out, and how much is; version 1 has a limit of memory and swap together instead.
    swap: Option<(&'static str, &'static str)>,
}

impl Hierarchy {
    /// Both versions.
    const ALL: &'static [Self; 2] = &[
        Self {
            file_system: "cgroup2",
            controller: "",
            max: "memory.max",
            current: "memory.current",
            cache: ["inactive_file", "active_file"],
            swap: Some(("memory.swap.max", "memory.swap.current")),
        },
        Self {
            file_system: "cgroup",
            controller: "memory",
            max: "memory.limit_in_bytes",
            current: "memory.usage_in_bytes",
            cache: ["total_inactive_file", "total_active_file"],
            swap: None,
        },
    ];

    /// The group that a process is in, and those around it.
    fn groups(&'static self, groups: &str, mounts: &str) -> Vec<Group> {
        let Some((folder, root)) = self.own_group(groups, mounts) else { return Vec::new() };
        let around = folder.ancestors().take_while(|group| group.starts_with(&root));
        around.filter_map(|group| self.open(group)).collect()
    }

    /// None for the group at the root, which has no such files.
    fn open(&'static self, folder: &Path) -> Option<Group> {
        let open = |name: &str| KeptFile::open(folder.join(name)).ok();
        Some(Group {
            folder: folder.to_owned(),
            max: open(self.max)?,
            current: open(self.current)?,
            stat: open("memory.stat"),
            hierarchy: self,
            swap: self.swap.map(|(max, current)| (open(max), open(current))),
        })
    }

    /// The folder of this process's group, and the folder where the hierarchy is mounted.
    fn own_group(&self, groups: &str, mounts: &str) -> Option<(PathBuf, PathBuf)> {
        let group = groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?;
            controllers.split(',').any(|it| it == self.controller).then(|| fields.next())?
        })?;
        mounts.lines().find_map(|line| {
            let (mount, kind) = line.split_once(" - ")?;
            let mut kind = kind.split(' ');
            let is_such = kind.next()? == self.file_system
                && (self.controller.is_empty() || kind.nth(1)?.split(',').any(|it| it == self.controller));
            let mut mount = mount.split(' ').skip(3);
            let (root, folder) = (mount.next()?, PathBuf::from(mount.next()?));
            let inside = Path::new(group).strip_prefix(root).ok()?;
            is_such.then(|| (folder.join(inside), folder))
        })
    }
}

impl Group {
    fn limit(&self, meminfo: Option<&KeptFile>) -> Option<MemoryLimit> {
        let max_bytes = number(&self.max).filter(|bytes| *bytes < NO_LIMIT_BYTES)?;
        let used_bytes = number(&self.current)?;
        let stat = self.stat.as_ref().and_then(|stat| stat.text().ok()).unwrap_or_default();
        let cache_bytes: u64 = self.hierarchy.cache.iter().filter_map(|name| field(&stat, name)).sum();
        let swap_bytes = self.swap.as_ref().map_or(0, |(max, current)| swap_bytes(max, current, meminfo));
        let room_bytes =
            max_bytes.saturating_sub(used_bytes.saturating_sub(cache_bytes)).saturating_add(swap_bytes);
        Some(MemoryLimit { group: self.folder.clone(), max_bytes, room_bytes })
    }
}

/// Bytes that a group may still swap out: no more than the machine has free.
fn swap_bytes(max: &Option<KeptFile>, current: &Option<KeptFile>, meminfo: Option<&KeptFile>) -> u64 {
    let free_bytes = meminfo
        .and_then(|meminfo| meminfo.text().ok())
        .and_then(|text| field(&text, "SwapFree:"))
        .map_or(0, |kib| kib.saturating_mul(1024));
    let used_bytes = current.as_ref().and_then(number).unwrap_or(0);
    let max_bytes = max.as_ref().and_then(number);
    max_bytes.map_or(free_bytes, |max| max.saturating_sub(used_bytes).min(free_bytes))
}

/// The number in a file; none where it says "max".
fn number(file: &KeptFile) -> Option<u64> {
    file.text().ok()?.trim().parse().ok()
}

/// The number behind this name, in lines of names and numbers.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process with groups of its own.
    fn tightest(groups: &str, mounts: &str, files: &[(&str, &str)]) -> Option<(String, u64)> {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_str().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        fs::write(folder.path().join("cgroup"), groups).unwrap();
        fs::write(folder.path().join("mountinfo"), mounts.replace("ROOT", root)).unwrap();
        let limit = Groups::of(folder.path()).tightest()?;
        let group = limit.group.strip_prefix(folder.path()).unwrap().display().to_string();
        Some((group, limit.room_bytes))
    }

    const V2: &str = "30 23 0:26 / ROOT/v2 rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "31 23 0:27 / ROOT/cpu rw - cgroup cgroup rw,cpu\n\
                      32 23 0:28 / ROOT/v1 rw - cgroup cgroup rw,memory\n";

    /// The machine of a test may have swap: what a group may use of it is stated.
    #[test]
    fn the_tightest_group_around_decides() {
        let files = [
            ("v2/a/memory.max", "1000000\n"),
            ("v2/a/memory.current", "700000\n"),
            ("v2/a/memory.swap.max", "0\n"),
            ("v2/a/b/memory.max", "500000\n"),
            ("v2/a/b/memory.current", "100000\n"),
            ("v2/a/b/memory.swap.max", "0\n"),
        ];
        assert_eq!(tightest("0::/a/b\n", V2, &files), Some(("v2/a".to_owned(), 300_000)));
        let cached =
            [&files[..], &[("v2/a/memory.stat", "anon 5\ninactive_file 150000\nactive_file 50000\n")]];
        assert_eq!(tightest("0::/a/b\n", V2, &cached.concat()), Some(("v2/a/b".to_owned(), 400_000)));
        let open = [("v2/a/memory.max", "max\n"), ("v2/a/memory.current", "7\n")];
        assert_eq!(tightest("0::/a\n", V2, &open), None);
        let over = [("v2/memory.max", "7\n"), ("v2/memory.current", "9\n"), ("v2/memory.swap.max", "0\n")];
        assert_eq!(tightest("0::/\n", V2, &over), Some(("v2".to_owned(), 0)));
    }

    #[test]
    fn version_1_and_containers_are_known() {
        let files = [
            ("v1/a/memory.limit_in_bytes", "1000000\n"),
            ("v1/a/memory.usage_in_bytes", "400000\n"),
            ("v1/a/memory.stat", "inactive_file 1\ntotal_inactive_file 100000\n"),
            ("v1/memory.limit_in_bytes", "9223372036854771712\n"),
            ("v1/memory.usage_in_bytes", "900000\n"),
        ];
        let groups = "7:cpu:/\n4:memory:/a\n0::/\n";
        assert_eq!(tightest(groups, V1, &files), Some(("v1/a".to_owned(), 700_000)));
        assert_eq!(tightest("4:memory:/\n", V1, &files), None);
        let inside = V1.replace("0:28 /", "0:28 /outer");
        let groups = "4:memory:/outer/a\n";
        assert_eq!(tightest(groups, &inside, &files), Some(("v1/a".to_owned(), 700_000)));
        assert_eq!(tightest("4:memory:/other\n", &inside, &files), None);
        assert_eq!(tightest("", "", &[]), None);
    }
}
