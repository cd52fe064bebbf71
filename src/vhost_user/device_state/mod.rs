//! The state of a device between a snapshot and its restoration, or on both sides of a migration.
//!
//! The state of the rings is in guest memory: requests are done in order, and the used index says up to which. So the only
//! content here is the cache mode that the guest has chosen; the rest says which disk it was, so that no guest wakes up on
//! another one.
//!
//! ```text
//! magic 8 bytes · version u32 · block size u32 · capacity in bytes u64 · features u64 · serial 20 bytes ·
//! cache mode u8 · read-only u8 · reserved 10 bytes, zero            (64 bytes, little-endian)
//! ```

pub(super) mod transfer;

use crate::disk::Disk;
use crate::virtio::blk::Device;

/// Length of a state in bytes.
pub(super) const STATE_BYTES: usize = 64;

const MAGIC: [u8; 8] = *b"vupmemst";

/// The only version so far. A later one is a change that this one cannot load.
const VERSION: u32 = 1;

/// Which disk it was, and what the guest has chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeviceState {
    pub(super) block_bytes: u32,
    pub(super) capacity_bytes: u64,
    /// Virtio features that the driver has acknowledged.
    pub(super) features: u64,
    pub(super) serial: [u8; 20],
    /// Whether the guest has chosen write-back or write-through, if it has.
    pub(super) writeback: Option<bool>,
    pub(super) read_only: bool,
}

/// Why a state is refused: what was saved, what is here, what can be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum StateError {
    #[error("it has {0} bytes instead of {STATE_BYTES}: it belongs to another program, or is incomplete")]
    Length(usize),
    #[error("it is not the state of a disk of vhost-user-pmem")]
    Magic,
    #[error(
        "its version is {0}, this program knows {VERSION}: use the release that saved it, or a later one"
    )]
    Version(u32),
    #[error(
        "serial: it belongs to disk {saved:?}, this is {here:?}: serve that disk, or give it that serial="
    )]
    Serial { saved: String, here: String },
    #[error("size: the disk had {saved} bytes, this one has {here}: serve the same disk, not a smaller one")]
    Capacity { saved: u64, here: u64 },
    #[error("block size: the disk had blocks of {saved} bytes, this one has {here}: set block-size={saved}")]
    BlockSize { saved: u32, here: u32 },
    #[error("read-only: {saved} when it was saved, {here} here: set readonly= as it was", saved = on_off(*.saved), here = on_off(*.here))]
    ReadOnly { saved: bool, here: bool },
    #[error("features: the driver uses {missing:#x}, which are not offered here")]
    Features { missing: u64 },
}

const fn on_off(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}

impl DeviceState {
    /// The state of a device whose driver has acknowledged these features.
    pub(super) fn of<D: Disk>(device: &Device<D>, features: u64, writeback: Option<bool>) -> Self {
        let geometry = device.disk().geometry();
        Self {
            block_bytes: geometry.block_bytes,
            capacity_bytes: geometry.capacity_bytes,
            features: features & device.features(),
            serial: device.identity().serial,
            writeback,
            read_only: geometry.read_only,
        }
    }

    /// Whether a guest that was saved with `self` can go on with `here`. A disk may have grown meanwhile.
    ///
    /// # Errors
    /// The first field that forbids it.
    pub(super) fn check<D: Disk>(&self, here: &Device<D>) -> Result<(), StateError> {
        let offered = here.features();
        let here = Self::of(here, 0, None);
        if self.serial != here.serial {
            let [saved, here] = [self.serial, here.serial].map(|serial| text(&serial));
            return Err(StateError::Serial { saved, here });
        }
        if self.block_bytes != here.block_bytes {
            return Err(StateError::BlockSize { saved: self.block_bytes, here: here.block_bytes });
        }
        if self.capacity_bytes > here.capacity_bytes {
            return Err(StateError::Capacity { saved: self.capacity_bytes, here: here.capacity_bytes });
        }
        if self.read_only != here.read_only {
            return Err(StateError::ReadOnly { saved: self.read_only, here: here.read_only });
        }
        match self.features & !offered {
            0 => Ok(()),
            missing => Err(StateError::Features { missing }),
        }
    }

    pub(super) fn to_bytes(&self) -> [u8; STATE_BYTES] {
        let mut bytes = [0; STATE_BYTES];
        let cache_mode = self.writeback.map_or(0, |writeback| if writeback { 2 } else { 1 });
        let parts: [&[u8]; 8] = [
            &MAGIC,
            &VERSION.to_le_bytes(),
            &self.block_bytes.to_le_bytes(),
            &self.capacity_bytes.to_le_bytes(),
            &self.features.to_le_bytes(),
            &self.serial,
            &[cache_mode],
            &[u8::from(self.read_only)],
        ];
        for (place, byte) in bytes.iter_mut().zip(parts.concat()) {
            *place = byte;
        }
        bytes
    }

    /// Reads a state. Nothing of it has been compared with anything yet.
    ///
    /// # Errors
    /// It is no state of ours.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let mut rest =
            <&[u8; STATE_BYTES]>::try_from(bytes).map_err(|_| StateError::Length(bytes.len()))?.as_slice();
        if take::<8>(&mut rest) != MAGIC {
            return Err(StateError::Magic);
        }
        let version = u32::from_le_bytes(take(&mut rest));
        if version != VERSION {
            return Err(StateError::Version(version));
        }
        Ok(Self {
            block_bytes: u32::from_le_bytes(take(&mut rest)),
            capacity_bytes: u64::from_le_bytes(take(&mut rest)),
            features: u64::from_le_bytes(take(&mut rest)),
            serial: take(&mut rest),
            writeback: match take(&mut rest) {
                [1] => Some(false),
                [2] => Some(true),
                _ => None,
            },
            read_only: take(&mut rest) == [1],
        })
    }
}

/// The next `N` bytes; zeroes where there are none.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    rest.split_off(..N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

/// A serial number for people.
fn text(serial: &[u8]) -> String {
    String::from_utf8_lossy(serial).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_lies_where_it_is_documented() {
        let state = DeviceState {
            block_bytes: 4096,
            capacity_bytes: 0x0123_4567_89ab_c000,
            features: 0xf0f1_f2f3_f4f5_f6f7,
            serial: *b"12345678901234567890",
            writeback: Some(true),
            read_only: true,
        };
        let bytes = state.to_bytes();
        assert_eq!(bytes[..16], *b"vupmemst\x01\0\0\0\0\x10\0\0");
        assert_eq!(bytes[32..], *b"12345678901234567890\x02\x01\0\0\0\0\0\0\0\0\0\0");
        for writeback in [None, Some(false), Some(true)] {
            for read_only in [false, true] {
                let state = DeviceState { writeback, read_only, ..state.clone() };
                assert_eq!(DeviceState::from_bytes(&state.to_bytes()), Ok(state));
            }
        }
    }
}
