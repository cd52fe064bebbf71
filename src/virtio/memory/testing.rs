//! Guest memory for tests.

use std::fs::File;
use std::sync::Arc;

use super::{MemoryTable, RegionSpec};

/// One region at guest address 0: so many bytes of this file.
pub(crate) fn table_of(file: &File, len_bytes: u64) -> Arc<MemoryTable> {
    let file = file.try_clone().unwrap();
    let spec = RegionSpec { guest_start: 0, len_bytes, user_start: 0, file_offset: 0, file, charge: None };
    Arc::new(MemoryTable::map(vec![spec]).unwrap())
}
