//! What each message does to a [`Session`], in the order of `vhost`'s trait. Messages that `vhost` does not dispatch are in
//! `postcopy_messages.rs` and `connection.rs` (`SET_BACKEND_REQ_FD`).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandler};

use super::debug_log;
use super::device_state::DeviceState;
use super::device_state::transfer::Transfer;
use super::error::SessionError;
use super::session::Session;
use super::state::{F_LOG_ALL, FRONT_END_FEATURES};
use crate::disk::Disk;
use crate::limits::budget::Amounts;
use crate::log::Cause;
use crate::virtio::blk::WRITEBACK_OFFSET;
use crate::virtio::memory::{DirtyLog, MAX_REGIONS, MemoryTable, RegionSpec};
use crate::virtio::queue::{RingAddresses, RingKind};
use crate::worker::Notifier;

/// What is offered: each of these is implemented, and nothing else is but `PAGEFAULT`, with which there are no memory
/// slots.
pub const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::BACKEND_REQ)
    .union(VhostUserProtocolFeatures::LOG_SHMFD)
    .union(VhostUserProtocolFeatures::DEVICE_STATE)
    .union(VhostUserProtocolFeatures::RESET_DEVICE);

impl From<SessionError> for Error {
    fn from(error: SessionError) -> Self {
        Self::ReqHandlerError(io::Error::other(error))
    }
}

/// For messages whose protocol feature is not offered: a front-end that sends them all the same.
fn unsupported<T>(what: &'static str) -> Result<T> {
    Err(SessionError::Unsupported(what).into())
}

/// What each message that `vhost` dispatches does to a session.
#[derive(Debug)]
pub(super) struct MessageHandler<D: Disk>(Arc<Session<D>>);

impl<D: Disk> MessageHandler<D> {
    pub(super) const fn new(session: Arc<Session<D>>) -> Self {
        Self(session)
    }

    fn offered_protocol(&self) -> VhostUserProtocolFeatures {
        use VhostUserProtocolFeatures as P;
        match self.0.context.offers_postcopy {
            true => (PROTOCOL_FEATURES - P::CONFIGURE_MEM_SLOTS) | P::PAGEFAULT,
            false => PROTOCOL_FEATURES,
        }
    }

    /// A ring's first descriptor is charged with all that it can have: kick, call and err.
    fn take_for_ring(&self, index: u32) -> std::result::Result<(), SessionError> {
        let mut state = self.0.rings.state();
        let vring = state.vring(index)?;
        if vring.charge.is_none() {
            vring.charge = Some(self.0.context.budget.charge(Amounts::RING)?);
        }
        Ok(())
    }

    /// Logs an error of a message that is answered with a value: `vhost` puts it into that, and does not return it.
    fn tell_of(&self, outcome: std::result::Result<(), SessionError>) -> Result<()> {
        if let Err(error) = &outcome {
            self.0.context.front_ends.count_refused_message();
            if let Some(suppressed) = self.0.context.log_limit.admit(Cause::Message) {
                tracing::warn!(disk = self.0.disk(), session = self.0.id(), suppressed, "{error}");
            }
        }
        Ok(outcome?)
    }

    /// A region that is about to be mapped, with what it takes of the disk's budget.
    fn spec(
        &self,
        region: &VhostUserMemoryRegion,
        file: File,
    ) -> std::result::Result<RegionSpec, SessionError> {
        Ok(RegionSpec {
            guest_start: region.guest_phys_addr,
            len_bytes: region.memory_size,
            user_start: region.user_addr,
            file_offset: region.mmap_offset,
            file,
            charge: Some(self.0.context.budget.charge(Amounts::region(region.memory_size))?),
        })
    }

    /// `SET_DEVICE_STATE_FD`: begins to save or load the device's state. A transfer that is under way is given up.
    ///
    /// # Errors
    /// A ring runs: what is saved would not be what it is then.
    fn begin_transfer(
        &self,
        direction: VhostTransferStateDirection,
        through: OwnedFd,
    ) -> std::result::Result<(), SessionError> {
        // Locked until the transfer has begun: no ring is started meanwhile.
        let state = self.0.rings.state();
        if !state.running().is_empty() {
            return Err(SessionError::StateOfRunning);
        }
        let transfer = match direction {
            VhostTransferStateDirection::SAVE => {
                let saved =
                    DeviceState::of(&self.0.context.device, state.features, self.0.config.chosen_mode());
                Transfer::save(through, &saved.to_bytes())
            }
            VhostTransferStateDirection::LOAD => Transfer::load(through),
        };
        self.0.set_transfer(Some((direction, transfer?)));
        Ok(())
    }

    /// `CHECK_DEVICE_STATE`: ends the transfer, and says whether the device can go on with what was loaded. An empty state is
    /// that of a device that has none (Cloud Hypervisor).
    ///
    /// # Errors
    /// What went wrong with it, or that there was none.
    fn end_transfer(&self) -> std::result::Result<(), SessionError> {
        let (direction, transfer) = self.0.take_transfer().ok_or(SessionError::NoTransfer)?;
        let bytes = transfer.finish(self.0.connection.as_deref())?;
        if direction == VhostTransferStateDirection::SAVE || bytes.is_empty() {
            return Ok(());
        }
        let loaded = DeviceState::from_bytes(&bytes)?;
        loaded.check(&self.0.context.device)?;
        if let Some(writeback) = loaded.writeback {
            self.0.config.load_mode(writeback);
        }
        Ok(())
    }

    fn notifier(&self, index: u8, what: &'static str, file: Option<File>) -> Result<Option<Arc<Notifier>>> {
        let notifier = file.map(|file| Notifier::new(file, self.0.context.hold_ups.clone())).transpose();
        let notifier = notifier.map_err(|error| SessionError::Descriptor(u32::from(index), what, error))?;
        Ok(notifier.map(Arc::new))
    }
}

impl<D: Disk> VhostUserBackendReqHandler for MessageHandler<D> {
    fn set_owner(&self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&self) -> Result<()> {
        self.0.rings.reset();
        Ok(())
    }

    /// Stops all rings. The cache mode stays: QEMU keeps the byte that the guest has written over a reset.
    fn reset_device(&self) -> Result<()> {
        self.0.rings.reset();
        Ok(())
    }

    fn get_features(&self) -> Result<u64> {
        Ok(self.0.context.device.features() | FRONT_END_FEATURES)
    }

    fn set_features(&self, features: u64) -> Result<()> {
        let known = features & (self.0.context.device.features() | FRONT_END_FEATURES);
        debug_log::negotiated(self.0.disk(), self.0.id(), known, features);
        if known == self.0.rings.state().features {
            return Ok(());
        }
        self.0.rings.change_all(|state| {
            if state.features & !known & F_LOG_ALL != 0 {
                // The next migration sends a log of its own.
                state.log = None;
            }
            state.features = known;
            Ok(())
        })?;
        if self.0.rings.state().stays_write_through() {
            self.0.config.show_write_through();
        }
        Ok(())
    }

    fn set_mem_table(
        &self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<vhost::VhostUserMemoryRegionBase>>> {
        if regions.len() != files.len() {
            return Err(SessionError::RegionFiles(regions.len(), files.len()).into());
        }
        let specs = regions.iter().zip(files).map(|(region, file)| self.spec(region, file));
        let specs = specs.collect::<std::result::Result<_, _>>()?;
        let memory = MemoryTable::map(specs).map_err(SessionError::from)?;
        self.0.rings.set_memory(memory)?;
        Ok(None)
    }

    fn set_vring_num(&self, index: u32, num: u32) -> Result<()> {
        if let Err(error) = self.0.rings.state().ring_kind().check_size(num) {
            let index = self.0.rings.number(index)?;
            return Err(SessionError::Ring(index, error).into());
        }
        Ok(self.0.rings.change(index, |vring| {
            vring.size = num;
            vring.is_prefaulted = false;
        })?)
    }

    fn set_vring_addr(
        &self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let addresses = RingAddresses { descriptors: descriptor, available, used };
        let log_address = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        Ok(self.0.rings.change(index, |vring| {
            vring.addresses = Some(addresses);
            vring.log_address = log_address;
            vring.is_prefaulted = false;
        })?)
    }

    /// Used for `GET_VRING_BASE`, and for packed rings of which there is no record of ours. A split ring starts at its used
    /// index, whatever was sent (QEMU sends the used index, Cloud Hypervisor the available index).
    fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        let mut state = self.0.rings.state();
        let bits = match state.ring_kind() {
            RingKind::Split => base & 0xffff,
            RingKind::Packed => base,
        };
        state.vring(index)?.base = bits;
        Ok(())
    }

    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        let base = self.0.rings.stop(index)?;
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&self, index: u8, fd: Option<File>) -> Result<()> {
        let index = u32::from(index);
        let kick = Arc::new(fd.ok_or(SessionError::Polling(index))?);
        self.take_for_ring(index)?;
        Ok(self.0.rings.change(index, |vring| vring.kick = Some(kick))?)
    }

    fn set_vring_call(&self, index: u8, fd: Option<File>) -> Result<()> {
        let call = self.notifier(index, "call", fd)?;
        self.take_for_ring(u32::from(index))?;
        let first = call.clone();
        self.0.rings.change(u32::from(index), |vring| vring.call = call)?;
        // Requests may have been completed while there was no call descriptor (QEMU's tests wait for this signal).
        if let Some(call) = first {
            call.signal();
        }
        Ok(())
    }

    fn set_vring_err(&self, index: u8, fd: Option<File>) -> Result<()> {
        let err = self.notifier(index, "err", fd)?;
        self.take_for_ring(u32::from(index))?;
        Ok(self.0.rings.change(u32::from(index), |vring| vring.err = err)?)
    }

    fn get_protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        Ok(self.offered_protocol())
    }

    fn set_protocol_features(&self, features: u64) -> Result<()> {
        let known = features & self.offered_protocol().bits();
        debug_log::negotiated_protocol(self.0.disk(), self.0.id(), known, features);
        self.0.set_protocol(known);
        Ok(())
    }

    fn get_queue_num(&self) -> Result<u64> {
        Ok(u64::from(self.0.context.device.queues()))
    }

    fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        Ok(self.0.rings.change(index, |vring| vring.is_enabled = enable)?)
    }

    fn get_config(&self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        self.0.config.mark_read();
        let is_before_first_ring = !self.0.rings.state().has_run;
        let len = usize::try_from(size).unwrap_or(0);
        Ok(self.0.config.bytes(offset, len, is_before_first_ring))
    }

    fn set_config(&self, offset: u32, bytes: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        match (offset, bytes) {
            (WRITEBACK_OFFSET, [writeback @ (0 | 1)]) => {
                // Rings are quiet meanwhile, so a mode is never changed under a write that is under way; and
                // what was acknowledged before the switch to write-through persists first.
                self.0.rings.change_all(|state| {
                    if *writeback == 1 && state.stays_write_through() {
                        return Err(SessionError::WriteThrough);
                    }
                    self.0.config.choose_mode(*writeback == 1);
                    self.0.context.device.disk().flush().map_err(SessionError::Flush)
                })?;
                if self.0.rings.state().has_run {
                    self.0.config.record(false);
                    self.0.config.media_is_written();
                }
                Ok(())
            }
            _ => Err(SessionError::ConfigReadOnly(offset, bytes.len()).into()),
        }
    }

    fn set_gpu_socket(&self, _gpu_backend: GpuBackend) -> Result<()> {
        unsupported("GPU_SET_SOCKET")
    }

    fn get_shared_object(&self, _uuid: VhostUserSharedMsg) -> Result<File> {
        unsupported("GET_SHARED_OBJECT")
    }

    fn get_inflight_fd(&self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported("GET_INFLIGHT_FD")
    }

    fn set_inflight_fd(&self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        unsupported("SET_INFLIGHT_FD")
    }

    fn get_max_mem_slots(&self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<vhost::VhostUserMemoryRegionBase>> {
        let memory = self.0.rings.state().memory.with(self.spec(region, fd)?).map_err(SessionError::from)?;
        self.0.rings.set_memory(memory)?;
        Ok(None)
    }

    /// Answered once no worker can touch the region any more: the rings were taken back, and given the new table.
    fn remove_mem_region(&self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let (start, len, user) = (region.guest_phys_addr, region.memory_size, region.user_addr);
        let memory = self.0.rings.state().memory.without(start, len, user).map_err(SessionError::from)?;
        self.0.rings.set_memory(memory)?;
        Ok(())
    }

    fn set_device_state_fd(
        &self,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        file: File,
    ) -> Result<Option<File>> {
        self.tell_of(self.begin_transfer(direction, file.into()))?;
        Ok(None)
    }

    fn check_device_state(&self) -> Result<()> {
        self.tell_of(self.end_transfer())
    }

    fn get_shmem_config(&self) -> Result<VhostUserShMemConfig> {
        unsupported("GET_SHMEM_CONFIG")
    }

    /// Answered once no worker marks pages in the log before it any more: the front-end reads that a last time then.
    fn set_log_base(&self, log: &VhostUserLog, file: File) -> Result<()> {
        let log = DirtyLog::map(&file, log.mmap_offset, log.mmap_size).map_err(SessionError::from)?;
        self.0.rings.change_all(|state| {
            state.log = Some(Arc::new(log));
            Ok(())
        })?;
        Ok(())
    }
}
