//! A table whose pages come later: those of a guest that has moved here before its memory has.

use super::{MemoryError, MemoryTable};
use crate::copy::fault::Userfault;

impl MemoryTable {
    /// From now on whoever touches a page of it that is missing waits for it. Before anybody has touched any.
    ///
    /// # Errors
    /// [`MemoryError::Unwaitable`].
    pub fn wait_for_pages(&self, userfault: &Userfault) -> Result<(), MemoryError> {
        for region in &self.regions {
            let waits = region.watch().wait_for_pages(userfault);
            waits.map_err(|error| MemoryError::Unwaitable(region.guest_start, error))?;
        }
        Ok(())
    }

    /// All pages have come.
    pub fn cease_waiting(&self, userfault: &Userfault) {
        for region in &self.regions {
            if let Err(error) = region.watch().cease_waiting(userfault) {
                tracing::debug!(region = region.guest_start, %error, "its pages were not waited for");
            }
        }
    }

    /// Nobody brings pages any more: all of it is lost, and whoever waits is told so.
    pub fn give_up(&self, userfault: &Userfault) {
        for region in &self.regions {
            if let Err(error) = region.watch().give_up(userfault) {
                tracing::error!(region = region.guest_start, %error, "guest memory that is lost stays mapped");
            }
        }
    }

    /// Waits until `len_bytes` bytes at an address of the front-end's own address space are there; what is not in the
    /// table is not waited for. False when they are lost.
    pub fn touch_user(&self, address: u64, len_bytes: u64) -> bool {
        let mut regions = self.regions.iter();
        let found = regions.find_map(|region| {
            let offset = address.checked_sub(region.user_start)?;
            (offset.checked_add(len_bytes)? <= region.len_bytes).then_some((region, offset))
        });
        let Some((region, offset)) = found else { return true };
        match (usize::try_from(offset), usize::try_from(len_bytes)) {
            (Ok(offset), Ok(len)) => region.watch().touch(offset, len),
            _ => true,
        }
    }

    /// Where in this process the region is mapped that begins at a guest address.
    pub fn host_address(&self, guest_start: u64) -> Option<u64> {
        let extent = self.by_guest.iter().find(|extent| extent.start == guest_start)?;
        u64::try_from(extent.host.addr()).ok()
    }
}
