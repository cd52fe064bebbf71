//! What the kernel says about a process, and does for one.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{Gid, Uid};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Length of the unit of resident memory in `smaps`.
const KIB: u64 = 1024;

/// Has what `command` starts killed when the thread that starts it is gone, so that a test which is itself killed
/// leaves nothing behind.
#[allow(unsafe_code)]
pub fn ends_with_us(command: &mut Command) -> &mut Command {
    let ask = || Ok(set_parent_process_death_signal(Some(Signal::KILL))?);
    // SAFETY: between fork and exec the closure makes one system call; it neither allocates nor locks.
    unsafe { command.pre_exec(ask) }
}

/// Does something as this user with this group and no other: in a thread, of which alone these calls are.
pub fn as_user<T: Send>(user: u32, group: u32, run: impl FnOnce() -> T + Send) -> T {
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    let become_other = move || {
        set_thread_groups(&[]).unwrap();
        set_thread_res_gid(group, group, group).unwrap();
        set_thread_res_uid(user, user, user).unwrap();
        run()
    };
    std::thread::scope(|scope| scope.spawn(become_other).join().unwrap())
}

/// A running process.
#[derive(Debug, Clone, Copy)]
pub struct Process(pub u32);

impl Process {
    /// Open descriptors.
    pub fn fds(self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.0)).unwrap().count()
    }

    /// Has it open nothing but what it closes, until `run` is over.
    pub fn opens_nothing<T>(self, run: impl FnOnce() -> T) -> T {
        let is_free = |fd: &u64| !fs::exists(format!("/proc/{}/fd/{fd}", self.0)).unwrap();
        let pid = Some(Pid::from_raw(self.0.try_into().unwrap()).unwrap());
        let set = |limit| rustix::process::prlimit(pid, Resource::Nofile, limit).unwrap();
        // Told by this: what a process has cannot be read without a change.
        let of_us = getrlimit(Resource::Nofile);
        let before = set(Rlimit { current: (0..).find(is_free), maximum: of_us.maximum });
        let result = run();
        set(before);
        result
    }

    /// Whether one of them leads there.
    pub fn has_open(self, path: &std::path::Path) -> bool {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.0)).unwrap();
        fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|it| it == path))
    }

    /// Threads.
    pub fn threads(self) -> usize {
        self.tasks().len()
    }

    /// Those whose names begin so.
    pub fn threads_named(self, start: &str) -> Vec<u32> {
        let number = |task: String| {
            let name = fs::read_to_string(task.clone() + "/comm").unwrap_or_default();
            let (_, number) = task.rsplit_once('/').unwrap();
            name.starts_with(start).then(|| number.parse().unwrap())
        };
        self.tasks().into_iter().filter_map(number).collect()
    }

    /// Processes that have come from it, and have not ended.
    pub fn descendants(self) -> Vec<u32> {
        let children = self.tasks().into_iter().flat_map(|task| {
            let list = fs::read_to_string(task + "/children").unwrap_or_default();
            list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<u32>>()
        });
        children.flat_map(|child| [vec![child], Self(child).descendants()].concat()).collect()
    }

    /// Whether the thread of this number sleeps, rather than runs or is held by who traces it.
    pub fn is_asleep(self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap();
        status.lines().any(|line| line.starts_with("State:\tS"))
    }

    /// Whether its first thread has ended; others may not have.
    pub fn has_ended(self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0));
        status.is_ok_and(|status| status.lines().any(|line| line.starts_with("State:\tZ")))
    }

    /// Whether there is no such process any more.
    pub fn is_gone(self) -> bool {
        !fs::exists(format!("/proc/{}", self.0)).unwrap()
    }

    /// The user that it is, in every way.
    pub fn user(self) -> u32 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
        let mut users: Vec<_> = line.split_whitespace().map(|it| it.parse().unwrap()).collect();
        users.dedup();
        assert_eq!(users.len(), 1, "real, effective, saved and of files: {line}");
        users[0]
    }

    /// What each of its threads does or waits for: name, state, and where in the kernel.
    pub fn whereabouts(self) -> String {
        let of_task = |task: String| {
            let read = |name: &str| fs::read_to_string(format!("{task}/{name}")).unwrap_or_default();
            let status = read("status");
            let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or_default();
            format!("{} {state} {}\n{}", read("comm").trim_end(), read("wchan"), read("stack"))
        };
        self.tasks().into_iter().map(of_task).collect()
    }

    /// The process that traces it.
    pub fn tracer(self) -> Option<Pid> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap();
        Pid::from_raw(i32::try_from(field(&status, "TracerPid:")).unwrap())
    }

    /// Mappings of files whose name contains `name`.
    pub fn mappings(self, name: &str) -> usize {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.0)).unwrap();
        maps.lines().filter(|line| line.contains(name)).count()
    }

    /// What `VmFlags` says of each mapping of a file whose name contains `name`.
    pub fn mapping_flags(self, name: &str) -> Vec<String> {
        let maps = fs::read_to_string(format!("/proc/{}/smaps", self.0)).unwrap();
        let mut lines = maps.lines();
        let mut found = Vec::new();
        while lines.by_ref().any(|line| line.contains(name)) {
            found.extend(lines.find_map(|line| line.strip_prefix("VmFlags: ")).map(ToOwned::to_owned));
        }
        found
    }

    /// All mappings.
    pub fn all_mappings(self) -> usize {
        fs::read_to_string(format!("/proc/{}/maps", self.0)).unwrap().lines().count()
    }

    /// Processor time used by all threads, user and system, in clock ticks.
    pub fn ticks(self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap();
        // The name in parentheses may hold spaces; utime and stime are the 12th and 13th field after it.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let fields = fields.split_whitespace().skip(11).take(2);
        fields.map(|field| field.parse::<u64>().unwrap()).sum()
    }

    /// How often any of the threads went to sleep.
    pub fn sleeps(self) -> u64 {
        let of_task = |task: &String| {
            let status = fs::read_to_string(task.clone() + "/status").unwrap_or_default();
            field(&status, "voluntary_ctxt_switches:")
        };
        self.tasks().iter().map(of_task).sum()
    }

    /// Resident memory in bytes, all of it.
    pub fn resident_bytes(self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap();
        field(&status, "VmRSS:") * KIB
    }

    /// Resident memory in bytes that is not of files.
    pub fn anonymous_bytes(self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap();
        field(&status, "RssAnon:") * KIB
    }

    /// Bytes of its page tables.
    pub fn page_table_bytes(self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap();
        field(&status, "VmPTE:") * KIB
    }

    /// Resident memory in bytes without mappings of files whose name contains one of `except`.
    pub fn resident_bytes_except(self, except: &[&str]) -> u64 {
        self.resident_bytes_where(|line| !except.iter().any(|name| line.contains(name)))
    }

    /// Resident memory in bytes of mappings of files whose name contains `name`.
    pub fn resident_bytes_of(self, name: &str) -> u64 {
        self.resident_bytes_where(|line| line.contains(name))
    }

    /// Resident memory in bytes of mappings whose line in the list of them fits.
    fn resident_bytes_where(self, fits: impl Fn(&str) -> bool) -> u64 {
        let maps = fs::read_to_string(format!("/proc/{}/smaps", self.0)).unwrap();
        let (mut counts, mut kib) = (true, 0);
        for line in maps.lines() {
            let is_header = line.split_whitespace().next().is_some_and(|word| !word.ends_with(':'));
            if is_header {
                counts = fits(line);
            } else if counts && line.starts_with("Rss:") {
                kib += field(line, "Rss:");
            }
        }
        kib * KIB
    }

    fn tasks(self) -> Vec<String> {
        // None of one that has just ended.
        let entries = fs::read_dir(format!("/proc/{}/task", self.0)).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().display().to_string()).collect()
    }
}

/// The number behind `name` in a text of lines `name number …`; 0 if there is none.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
