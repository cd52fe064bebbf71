//! A small ext4 on a loop device: an ordinary file system that can be filled up, and whose device counts what it is given.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::folder;

/// Mounted until it is dropped.
#[derive(Debug)]
pub struct Ext4 {
    device: PathBuf,
    mount: PathBuf,
    /// Where the file behind the device is.
    _folder: TempDir,
}

impl Ext4 {
    /// A new one of so many bytes, mounted on this folder.
    ///
    /// # Errors
    /// Why there cannot be one here: it takes root.
    pub fn mount(mount: &Path, bytes: u64) -> Result<Self, String> {
        let folder = folder::on_files();
        let file = folder.path().join("device");
        File::create_new(&file).unwrap().set_len(bytes).unwrap();
        let device = run("losetup", &["--find", "--show", file.to_str().unwrap()])?;
        let it = Self { device: device.trim().into(), mount: mount.to_owned(), _folder: folder };
        let device = it.device.to_str().unwrap();
        run("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", device])?;
        run("mount", &[device, mount.to_str().unwrap()])?;
        Ok(it)
    }

    /// Bytes written to the device so far (Documentation/block/stat.rst: the seventh field, in sectors).
    pub fn written_bytes(&self) -> u64 {
        self.counted_bytes(6)
    }

    /// Bytes read from it (the third field).
    pub fn read_bytes(&self) -> u64 {
        self.counted_bytes(2)
    }

    fn counted_bytes(&self, field: usize) -> u64 {
        let name = self.device.file_name().unwrap().to_str().unwrap();
        let stat = std::fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        stat.split_ascii_whitespace().nth(field).unwrap().parse::<u64>().unwrap() * 512
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", self.mount.to_str().unwrap()]);
        let _ = run("losetup", &["--detach", self.device.to_str().unwrap()]);
    }
}

/// What a program says.
///
/// # Errors
/// What it says when it fails.
pub fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|it| format!("{program}: {it}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
