//! What is known of the disks besides what the server knows.
//!
//! A name is here while its disk is served: whoever adds, grows or removes one has its [turn](super::turns), and says so here
//! before that ends.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::config::json::Object;
use crate::config::keys::Key;

/// The disks by name.
#[derive(Debug, Default)]
pub(super) struct KnownDisks(Mutex<BTreeMap<String, Known>>);

/// A disk.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) options: Object,
    /// It is one of those that the configuration names: a reload may remove it.
    pub(super) is_configured: bool,
}

impl KnownDisks {
    /// Those that are served from the start.
    pub(super) fn new(configured: Vec<Object>) -> Self {
        let known = configured.into_iter().filter_map(|options| {
            let name = options.get(Key::Name.name())?.as_str()?.to_owned();
            Some((name, Known { options, is_configured: true }))
        });
        Self(Mutex::new(known.collect()))
    }

    pub(super) fn options(&self, name: &str) -> Option<Object> {
        self.lock().get(name).map(|known| known.options.clone())
    }

    /// All of them, as they are now.
    pub(super) fn all(&self) -> BTreeMap<String, Known> {
        self.lock().clone()
    }

    pub(super) fn insert(&self, name: &str, known: Known) {
        self.lock().insert(name.to_owned(), known);
    }

    pub(super) fn remove(&self, name: &str) {
        self.lock().remove(name);
    }

    pub(super) fn set_size(&self, name: &str, bytes: u64) {
        if let Some(known) = self.lock().get_mut(name)
            && let Some(size) = known.options.get_mut(Key::Size.name())
        {
            *size = bytes.into();
        }
    }

    /// Their limits are these from now on: those of `options`.
    pub(super) fn set_limits<'a>(&self, names: impl Iterator<Item = &'a String>, options: &Object) {
        let mut known = self.lock();
        for name in names {
            let Some(known) = known.get_mut(name) else { continue };
            for key in Key::limits().map(Key::name) {
                match options.get(key) {
                    Some(value) => known.options.insert(key.to_owned(), value.clone()),
                    None => known.options.remove(key),
                };
            }
        }
    }

    /// This option is as in `options` from now on.
    pub(super) fn set_option(&self, name: &str, key: Key, options: &Object) {
        if let Some(known) = self.lock().get_mut(name) {
            match options.get(key.name()) {
                Some(value) => known.options.insert(key.name().to_owned(), value.clone()),
                None => known.options.remove(key.name()),
            };
        }
    }

    /// The configuration names it from now on.
    pub(super) fn set_configured(&self, name: &str) {
        if let Some(known) = self.lock().get_mut(name) {
            known.is_configured = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
