//! What is served, and the command lines that attach it, ready to be pasted into a shell.

use std::fmt;
use std::path::Path;

use crate::config::size::Size;
use crate::config::{Template, Throttling};
use crate::server::DiskSummary;

/// vCPUs of the guest in the examples; each gets a queue where there are as many.
const EXAMPLE_CPUS: u16 = 2;

/// Memory of the guest in the examples.
const EXAMPLE_MEMORY: &str = "4G";

/// The start message of one disk.
pub(super) struct StartMessage<'a>(pub(super) &'a DiskSummary);

impl fmt::Display for StartMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = self.0;
        let access = if disk.read_only { "read-only" } else { "read-write" };
        writeln!(f, "disk {:?}", disk.name)?;
        writeln!(f, "  file        {}: {}", disk.path.display(), disk.kind)?;
        write!(f, "  size        {} ({} bytes), ", Size(disk.capacity_bytes), disk.capacity_bytes)?;
        writeln!(f, "{}-byte blocks, {access}", disk.block_bytes)?;
        if let Some(max_bytes) = disk.overlay_max_bytes {
            let max_bytes = (max_bytes != u64::MAX).then_some(max_bytes);
            writeln!(
                f,
                "{}",
                OverlayLine { file: disk.overlay_file.as_deref(), max_bytes, template: disk.template }
            )?;
        }
        writeln!(f, "  durability  {}", disk.durability)?;
        writeln!(f, "              because: {}; a flush is: {}", disk.why, disk.flush)?;
        if let Some(storage) = &disk.storage {
            writeln!(f, "              it lies on {storage}; there, {}", storage.flush())?;
        }
        writeln!(f, "  queues      {}", disk.queues)?;
        let Throttling { group, limits } = &disk.throttling;
        if !limits.is_empty() {
            let group = group.as_ref().map(|group| format!(" (of group {group:?})")).unwrap_or_default();
            writeln!(f, "  limits      {limits}{group}")?;
        }
        if let Some(socket) = &disk.socket {
            // Whoever pastes the command may do so in another folder.
            let socket = std::path::absolute(socket).unwrap_or_else(|_| socket.clone());
            writeln!(f, "  socket      {}", socket.display())?;
            write_commands(f, disk, &socket)?;
        }
        writeln!(f)
    }
}

/// What is said of a private disk.
pub(super) struct OverlayLine<'a> {
    /// What keeps what is written, if it is not memory.
    pub(super) file: Option<&'a Path>,
    /// The most bytes of that.
    pub(super) max_bytes: Option<u64>,
    /// Whether each front-end has one of its own.
    pub(super) template: Template,
}

impl fmt::Display for OverlayLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("  overlay     ")?;
        if self.template != Template::Off {
            f.write_str("each front-end gets a disk of its own; ")?;
        }
        f.write_str("what is written is in ")?;
        match self.file {
            Some(file) => write!(f, "{}", file.display())?,
            None => f.write_str("memory")?,
        }
        if let Some(max_bytes) = self.max_bytes {
            write!(f, ", up to {}", Size(max_bytes))?;
        }
        f.write_str("; the file is only read")
    }
}

fn write_commands(f: &mut fmt::Formatter<'_>, disk: &DiskSummary, socket: &Path) -> fmt::Result {
    let (cpus, memory) = (EXAMPLE_CPUS, EXAMPLE_MEMORY);
    let queues = disk.queues.get().min(cpus);
    let id = qemu_id(&disk.name);
    let chardev = format!("socket,id={id},path={},reconnect-ms=1000", qemu_value(socket));
    let option = format!(
        "vhost_user=true,socket={},num_queues={queues},queue_size=1024",
        cloud_hypervisor_value(socket)
    );
    writeln!(f, "\n  QEMU (-m and size= are the guest's memory; num-queues= is at most {}):", disk.queues)?;
    writeln!(f, "    qemu-system-x86_64 -smp {cpus} -m {memory} \\")?;
    writeln!(f, "      -object memory-backend-memfd,id=mem,size={memory},share=on -numa node,memdev=mem \\")?;
    writeln!(f, "      -chardev {} \\", shell_word(&chardev))?;
    writeln!(f, "      -device vhost-user-blk-pci,chardev={id},num-queues={queues}")?;
    writeln!(f, "\n  Cloud Hypervisor (num_queues= is at most the guest's CPUs):")?;
    writeln!(f, "    cloud-hypervisor --cpus boot={cpus} --memory size={memory},shared=on \\")?;
    writeln!(f, "      --disk {}", shell_word(&option))
}

/// An identifier that QEMU takes: a letter first, then letters, digits, `-`, `.` and `_`.
fn qemu_id(name: &str) -> String {
    let id: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "-._".contains(c) { c } else { '_' }).collect();
    if id.starts_with(|c: char| c.is_ascii_alphabetic()) { id } else { format!("disk-{id}") }
}

/// QEMU reads two commas as one.
fn qemu_value(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// Cloud Hypervisor reads a list up to a comma that is not between double quotes.
fn cloud_hypervisor_value(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.contains([',', '[', ']']) { format!("\"{text}\"") } else { text.into_owned() }
}

/// A word that a shell leaves as it is.
fn shell_word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._/=,:@%+".contains(c);
    if text.chars().all(is_plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_survive_qemu_and_the_shell() {
        assert_eq!(qemu_id("db0"), "db0");
        assert_eq!(qemu_id("0 grün"), "disk-0_gr_n");
        assert_eq!(qemu_value(Path::new("/a,b")), "/a,,b");
        assert_eq!(cloud_hypervisor_value(Path::new("/a,b")), "\"/a,b\"");
        assert_eq!(cloud_hypervisor_value(Path::new("/a b")), "/a b");
        assert_eq!(shell_word("socket=/run/db0.sock,n=1"), "socket=/run/db0.sock,n=1");
        assert_eq!(shell_word("a b"), "'a b'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
    }
}
