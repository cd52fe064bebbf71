//! A block device as a disk: a loop device, where the machine has one.

use super::durable::{read, write};
use super::host::Loop;
use super::*;

/// A loop device over a sparse file.
struct Device {
    device: Loop,
    file: PathBuf,
    _folder: TempDir,
}

impl Device {
    fn new(bytes: u64, arguments: &[&str]) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let file = folder.path().join("disk");
        sparse_file(&file, bytes);
        Some(Self { device: Loop::over(&file, arguments)?, file, _folder: folder })
    }

    fn path(&self) -> &Path {
        self.device.path()
    }
}

#[test]
fn a_block_device_is_served_past_the_page_cache() {
    let Some(device) = Device::new(8 * MIB, &[]) else { return };
    let description = describe(device.path()).unwrap();
    assert_eq!(description.file_kind, FileKind::BlockDevice);
    assert_eq!((description.kind(), description.length_bytes), (Some(BackingKind::BlockDevice), 8 * MIB));
    assert!(description.refusal.is_none() && description.durability() == Some(Durability::Page));

    let opened = open(device.path(), &OpenOptions { lock: LockMode::Wait, ..options() }).unwrap();
    assert!(matches!(opened.disk, Backing::Block(_)));
    assert_eq!((capacity(&opened), opened.created), (8 * MIB, false));
    assert_eq!((opened.disk.durability(), opened.media.flush()), (Durability::Page, "fdatasync"));
    let mut expected = vec![0; 8 << 20];
    for (offset, len) in [(0, 512), (4096 + 512, 8192), (MIB, 1 << 20), (8 * MIB - 512, 512)] {
        let mut bytes: Vec<u8> = (0..len).map(|index| (index % 251) as u8 + 1).collect();
        write(&opened, offset, &mut bytes).unwrap();
        expected[offset as usize..offset as usize + len].copy_from_slice(&bytes);
        let mut back = vec![0; len];
        read(&opened, offset, &mut back).unwrap();
        assert!(back == bytes, "{offset}+{len}");
    }
    opened.disk.flush().unwrap();
    assert!(fs::read(&device.file).unwrap() == expected, "through the loop device, on the file below");

    for (offset, len, unmap) in [(512, 512, false), (MIB, 65536, true)] {
        opened.disk.write_zeroes(offset, len, unmap).unwrap();
        expected[offset as usize..(offset + len) as usize].fill(0);
    }
    opened.disk.flush().unwrap();
    assert!(fs::read(&device.file).unwrap() == expected);
    let before = allocated_bytes(&device.file);
    opened.disk.discard(MIB + 65536, 65536).unwrap();
    assert_eq!(before - allocated_bytes(&device.file), 65536, "the loop device punches the file below");
}

#[test]
fn a_device_in_use_is_not_written() {
    let Some(device) = Device::new(8 * MIB, &[]) else { return };
    let opened = open(device.path(), &options()).unwrap();
    let error = refused(device.path(), &options());
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert_eq!(
        message(device.path(), &error),
        "cannot open it for writing (the device is in use: mounted, part of another device, or served already); \
         unmount it, stop who uses it, or serve it with readonly=on"
    );
    drop(opened);
    let made = Command::new("mkfs.ext4").arg("-q").arg(device.path()).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no mkfs.ext4");
        return;
    }
    let folder = memory();
    let (path, at) = (device.path().to_str().unwrap(), folder.path().to_str().unwrap());
    with_mount(&[path, at], || {
        assert!(matches!(refused(device.path(), &options()), OpenError::InUse { .. }));
        open(device.path(), &OpenOptions { read_only: true, ..options() }).unwrap();
    });
}

#[test]
fn a_device_has_its_size_and_its_blocks() {
    let Some(device) = Device::new(8 * MIB, &["--sector-size", "4096"]) else { return };
    let blocks = |block_bytes, size_bytes| OpenOptions { block_bytes, size_bytes, ..options() };
    let error = refused(device.path(), &blocks(Some(512), None));
    assert_eq!(
        message(device.path(), &error),
        "cannot serve it (the device has 4096-byte blocks, larger than the disk's 512 bytes); \
         use block-size=4096"
    );
    for stated in [None, Some(4096)] {
        let error = refused(device.path(), &blocks(stated, Some(9 * MIB)));
        assert!(matches!(error, OpenError::TooSmall { file_bytes: 8_388_608, .. }), "{error}");
        let error = refused(device.path(), &blocks(stated, Some(MIB + 512)));
        assert!(matches!(error, OpenError::BadSize { .. }), "{error}");
        assert_eq!(capacity(&open(device.path(), &blocks(stated, Some(MIB))).unwrap()), MIB);
        let opened = open(device.path(), &blocks(stated, None)).unwrap();
        assert_eq!((capacity(&opened), opened.disk.geometry().block_bytes), (8 * MIB, 4096));
    }
    let required = OpenOptions { require_durable: Some(Durability::CacheLine), ..options() };
    assert!(matches!(refused(device.path(), &required), OpenError::NotDurable { .. }));
}

#[test]
fn a_device_that_takes_no_write_is_only_read() {
    let Some(device) = Device::new(8 * MIB, &["--read-only"]) else { return };
    let error = refused(device.path(), &options());
    assert!(matches!(error, OpenError::Permission { .. }), "{error}");
    assert_eq!(
        message(device.path(), &error),
        "cannot write to it (the device is read-only); make it writable (blockdev --setrw), or use readonly=on"
    );
    let description = describe(device.path()).unwrap();
    assert!(!description.writable && description.refusal.is_none());
    open(device.path(), &OpenOptions { read_only: true, ..options() }).unwrap();
}

#[test]
fn a_device_that_is_made_read_only_while_it_is_served_says_so() {
    let Some(device) = Device::new(8 * MIB, &[]) else { return };
    let opened = open(device.path(), &options()).unwrap();
    write(&opened, 0, &mut [7; 4096]).unwrap();
    let set = |flag| host::succeeds(Command::new("blockdev").arg(flag).arg(device.path()));
    assert!(set("--setro"));
    for error in [
        write(&opened, 0, &mut [8; 4096]).unwrap_err(),
        opened.disk.write_zeroes(0, 4096, false).unwrap_err(),
    ] {
        assert!(error.to_string().contains("the device has been made read-only since"), "{error}");
    }
    let mut bytes = [0; 4096];
    read(&opened, 0, &mut bytes).unwrap();
    assert!(bytes == [7; 4096]);
    assert!(set("--setrw"));
    write(&opened, 0, &mut [8; 4096]).unwrap();
}
