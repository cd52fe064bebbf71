//! What is in force, read back from the kernel by a process that is outside of it.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, PipeWriter, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::process::Pid;

use super::process::{self, DiesWithParent};

/// A process that reads it once it is told to. To be started before anything is in force.
#[derive(Debug)]
pub struct Reporter {
    told: PipeWriter,
    child: Pid,
}

impl Reporter {
    /// # Errors
    /// No process is left, or no descriptor.
    pub fn start() -> io::Result<Self> {
        let (tells, told) = io::pipe()?;
        let out = fs::File::from(rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?);
        let daemon = std::process::id();
        let child = process::fork(None, &[tells.as_fd(), out.as_fd()], DiesWithParent::Yes, || {
            if (&tells).read_exact(&mut [0]).is_ok() {
                let _ = (&out).write_all(of_process(daemon).as_bytes());
            }
        })?;
        Ok(Self { told, child })
    }

    /// Has it write to standard output what holds now, and waits until it is written.
    pub fn report(mut self) {
        let _ = self.told.write_all(&[0]);
        process::wait(self.child);
    }
}

/// Lines of `status` that say it (proc_pid_status(5)).
const FIELDS: [&str; 7] = ["Seccomp", "Seccomp_filters", "NoNewPrivs", "CapEff", "Uid", "Gid", "Groups"];

/// A table of all threads of a process and of the processes that it has forked.
fn of_process(pid: u32) -> String {
    let mut table = format!("{:<18}", "thread");
    let column = |field: &str| field.len().max(if field == "CapEff" { 16 } else { 0 }).max(6);
    for field in FIELDS {
        // Writing to a string cannot fail.
        let _ = write!(table, "  {:<width$}", field, width = column(field));
    }
    for status in statuses(pid) {
        let get = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.unwrap_or("?").split_ascii_whitespace().collect::<Vec<_>>()
        };
        let _ = write!(table, "\n{:<18}", get("Name").join(" "));
        for field in FIELDS {
            let value = match field {
                // Real, effective, saved, of file systems: all the same, or it says so.
                "Uid" | "Gid" => {
                    let mut ids = get(field);
                    ids.dedup();
                    ids.join(",")
                }
                _ => get(field).join(","),
            };
            let value = if value.is_empty() { "-".to_owned() } else { value };
            let _ = write!(table, "  {:<width$}", value, width = column(field));
        }
    }
    let lines: Vec<_> = table.lines().map(str::trim_end).collect();
    lines.join("\n") + "\n"
}

/// Of all threads, and of the only one of each child.
fn statuses(pid: u32) -> Vec<String> {
    let tasks = entries(Path::new(&format!("/proc/{pid}/task")));
    let own = tasks.iter().map(|task| format!("/proc/{pid}/task/{task}"));
    let is_descendant = |process: &u32| {
        let parent = parent(*process);
        *process != std::process::id() && (parent == Some(pid) || parent.and_then(self::parent) == Some(pid))
    };
    let children = entries(Path::new("/proc")).into_iter().filter(is_descendant);
    let folders = own.chain(children.map(|child| format!("/proc/{child}")));
    folders.filter_map(|folder| fs::read_to_string(format!("{folder}/status")).ok()).collect()
}

fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

/// The numbers in a folder, in order.
fn entries(folder: &Path) -> Vec<u32> {
    let entries = fs::read_dir(folder).map(|it| it.flatten().collect::<Vec<_>>()).unwrap_or_default();
    let mut numbers: Vec<u32> =
        entries.iter().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}
