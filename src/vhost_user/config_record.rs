//! What the front-end of a disk knows of its configuration, recorded for when the daemon is started anew.
//!
//! A front-end that comes back does not read the configuration again, and does not repeat that its guest has switched to
//! write-through (QEMU 10). To notify it though nothing has changed is not harmless: its guest logs a new size, and is shown
//! a cache mode that it has not chosen. So what the front-end knows is kept as an extended attribute of the file (xattr(7)).
//! The attribute is written once the guest has written to the media itself: a disk that is only read stays untouched. If the
//! daemon is killed before that, the next one knows nothing, and has the front-end read the configuration anew.

use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::attribute::Attribute;
use crate::disk::{BackingFile, Durability};

/// What a front-end knows of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownConfig {
    /// Size of the disk in sectors; 0 where that is not known.
    pub capacity_sectors: u64,
    /// The cache mode that its guest has chosen, if it has.
    pub writeback: Option<bool>,
}

/// What the front-end whose rings ran last knows of the configuration, as far as it is recorded.
#[derive(Debug, Default)]
pub struct ConfigRecord {
    /// Where it is kept; if none, the record lasts as long as this process.
    attribute: Option<Attribute>,
    contents: Mutex<Contents>,
    /// Since when the file is asked, as long as it has not answered.
    asked: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Contents {
    known: Option<KnownConfig>,
    /// What the attribute says.
    stored: Option<KnownConfig>,
    /// The guest has written to the media, or the media is memory: writing the attribute is no harm.
    may_store: bool,
}

impl ConfigRecord {
    /// What an earlier process has left at this file or device.
    pub fn load(file: Option<Arc<BackingFile>>, durability: Durability) -> Self {
        let attribute = file.map(Attribute::of);
        let known = attribute.as_ref().and_then(read);
        let may_store = durability == Durability::Volatile;
        let contents = Mutex::new(Contents { known, stored: known, may_store });
        Self { attribute, contents, asked: Mutex::default() }
    }

    /// Before this process gives up its privileges ([`crate::sandbox`]): records that take one to be kept go on being kept.
    pub(crate) fn outlive_privileges<'a>(records: impl Iterator<Item = &'a mut Self>) {
        let attributes = records.filter_map(|record| record.attribute.as_mut());
        if let Err(error) = Attribute::outlive_privileges(attributes) {
            tracing::warn!(
                "a guest that has switched to write-through on a device is not known again if this process is killed ({error})"
            );
        }
    }

    /// What is known.
    pub fn known(&self) -> Option<KnownConfig> {
        self.lock().known
    }

    /// As [`known`](Self::known), with what another process has left meanwhile: a guest may come from there.
    pub(super) fn reload(&self) -> Option<KnownConfig> {
        let mut contents = self.lock();
        if let Some(left) = self.ask(read).flatten() {
            (contents.known, contents.stored) = (Some(left), Some(left));
        }
        contents.known
    }

    /// Changes it. Where it cannot be stored, a later process asks for nothing: it has the front-end read anew.
    pub fn update(&self, change: impl FnOnce(Option<KnownConfig>) -> Option<KnownConfig>) {
        let mut contents = self.lock();
        contents.known = change(contents.known);
        self.store(&mut contents);
    }

    /// The guest has changed what is on the media, or has said how that is to be done: what is known may be kept there.
    pub fn media_is_written(&self) {
        let mut contents = self.lock();
        contents.may_store = true;
        self.store(&mut contents);
    }

    fn store(&self, contents: &mut Contents) {
        if !contents.may_store || contents.known == contents.stored {
            return;
        }
        self.ask(|attribute| write(attribute, contents.known));
        contents.stored = contents.known;
    }

    /// Since when the file is asked for what it keeps: its media may hang.
    pub fn asked_since(&self) -> Option<Instant> {
        *self.asked()
    }

    fn ask<T>(&self, ask: impl FnOnce(&Attribute) -> T) -> Option<T> {
        let attribute = self.attribute.as_ref()?;
        *self.asked() = Some(Instant::now());
        let answer = ask(attribute);
        *self.asked() = None;
        Some(answer)
    }

    fn asked(&self) -> MutexGuard<'_, Option<Instant>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(attribute: &Attribute) -> Option<KnownConfig> {
    parse(std::str::from_utf8(&attribute.read()?).ok()?)
}

fn write(attribute: &Attribute, known: Option<KnownConfig>) {
    let text = known.map(text);
    if !attribute.write(text.as_ref().map(String::as_bytes)) {
        tracing::debug!(
            ?attribute,
            "the configuration that the front-end knows cannot be stored as an attribute"
        );
    }
}

fn text(known: KnownConfig) -> String {
    let mode = match known.writeback {
        None => "unknown",
        Some(true) => "writeback",
        Some(false) => "writethrough",
    };
    format!("{} {mode}", known.capacity_sectors)
}

fn parse(text: &str) -> Option<KnownConfig> {
    let (sectors, mode) = text.split_once(' ')?;
    let writeback = match mode {
        "unknown" => None,
        "writeback" => Some(true),
        "writethrough" => Some(false),
        _ => return None,
    };
    Some(KnownConfig { capacity_sectors: sectors.parse().ok()?, writeback })
}

#[cfg(test)]
mod tests {
    use rustix::fs::XattrFlags;

    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for writeback in [None, Some(true), Some(false)] {
            for capacity_sectors in [0, 1, u64::MAX] {
                let known = KnownConfig { capacity_sectors, writeback };
                assert_eq!(parse(&text(known)), Some(known));
                assert!(text(known).len() <= super::super::attribute::MAX_BYTES);
            }
        }
        for text in ["", "1", "1 ", " writeback", "x writeback", "1 writeback "] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    #[allow(clippy::print_stderr, reason = "whoever runs the tests is told what is skipped")]
    fn it_outlives_who_wrote_it() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = folder.path().join("disk.img");
        std::fs::write(&file, "").unwrap();
        if rustix::fs::setxattr(&file, "user.test", b"", XattrFlags::empty()).is_err() {
            eprintln!("skipped: no attributes in /dev/shm");
            return;
        }
        let known = KnownConfig { capacity_sectors: 7, writeback: Some(false) };
        let open = || Arc::new(BackingFile::from(std::fs::File::open(&file).unwrap()));
        let record = |durability| ConfigRecord::load(Some(open()), durability);
        assert_eq!(record(Durability::Volatile).known(), None);
        record(Durability::Volatile).update(|_| Some(known));
        assert_eq!(record(Durability::Page).known(), Some(known));
        record(Durability::Page).update(|_| None);
        let last = record(Durability::CacheLine);
        assert_eq!(last.known(), Some(known), "media is not written to for it alone");
        last.update(|_| None);
        last.media_is_written();
        assert_eq!(record(Durability::Page).known(), None);
    }
}
