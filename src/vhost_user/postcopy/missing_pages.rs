//! Guest memory whose pages come later.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::copy::fault::Userfault;
use crate::virtio::memory::{MemoryError, MemoryTable};

/// All memory of one guest whose pages come later.
#[derive(Debug)]
pub(in crate::vhost_user) struct MissingPages {
    userfault: Userfault,
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    /// Also those that are not in force any more: somebody may be waiting in them still.
    all: Vec<Weak<MemoryTable>>,
    is_given_up: bool,
}

impl MissingPages {
    pub(super) fn new(userfault: Userfault) -> Self {
        Self { userfault, tables: Mutex::default() }
    }

    /// What the front-end hears of missing pages by.
    pub(super) fn for_front_end(&self) -> std::io::Result<OwnedFd> {
        self.userfault.as_fd().try_clone_to_owned()
    }

    /// From now on whoever touches a page of this table that is missing waits for it. Before anybody has touched any.
    pub(super) fn add(&self, table: &Arc<MemoryTable>) -> Result<(), MemoryError> {
        let mut tables = self.lock();
        if tables.is_given_up {
            table.give_up(&self.userfault);
        } else {
            table.wait_for_pages(&self.userfault)?;
        }
        tables.all.retain(|table| table.strong_count() != 0);
        tables.all.push(Arc::downgrade(table));
        Ok(())
    }

    /// Nobody brings pages of this table any more.
    pub(super) fn give_up_table(&self, table: &MemoryTable) {
        table.give_up(&self.userfault);
    }

    /// Nobody brings pages any more: whoever waits for one is woken, and fails.
    pub(super) fn give_up(&self) {
        let mut tables = self.lock();
        tables.is_given_up = true;
        tables.all.iter().filter_map(Weak::upgrade).for_each(|table| table.give_up(&self.userfault));
    }

    /// All pages have come: whoever waits for one is woken, and goes on. To be called without the session's state locked,
    /// which whoever waits may have locked.
    pub(in crate::vhost_user) fn cease_waiting(&self) {
        self.lock()
            .all
            .iter()
            .filter_map(Weak::upgrade)
            .for_each(|table| table.cease_waiting(&self.userfault));
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
