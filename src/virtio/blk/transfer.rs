//! Reads and writes of the common shape that need nothing but their copy: nearly all there are.

use super::cache::CacheMode;
use super::counters::{Counters, Effect};
use super::device::Device;
use super::pending::Span;
use super::request::{Direction, OK, direction, guess_offset, offset_of};
use super::units::Limits;
use crate::copy::PrefetchHint;
use crate::copy::fault::interruption;
use crate::disk::{Disk, DiskError};
use crate::virtio::queue::{Completion, ContiguousChain, Header};

/// What requests are checked against at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    limits: Limits,
    /// As [`Device::writes_are_copies`] says.
    writes_are_copies: bool,
}

/// What became of a chain.
#[derive(Debug)]
pub enum Transfer<'a> {
    /// It is finished.
    Done(Completion),
    /// It is for [`Device::execute`]: it asks for something else, or for what cannot be done.
    Other(ContiguousChain<'a>),
    /// The page that the status goes to is lost.
    Lost,
}

impl<D: Disk> Device<D> {
    /// What requests that have been taken before this call are checked against. For those that are taken later it must be
    /// called again: the guest may know by then that the disk has grown, or have chosen another cache mode.
    #[inline]
    pub fn rules(&self, cache: &CacheMode) -> Rules {
        Rules { limits: self.limits(), writes_are_copies: self.writes_are_copies(cache) }
    }

    /// A function for the header of each request that is executed soon: it prefetches the media that a transfer goes to or
    /// comes from, and returns where that is. `None` for any other request, which is to be executed before more headers are
    /// read.
    #[inline(always)]
    pub fn prefetcher(&self) -> impl Fn(&Header) -> Option<PrefetchHint> {
        let disk = self.disk();
        move |header| {
            let media = disk.prefetch_hint(guess_offset(header)?);
            media.prefetch();
            Some(media)
        }
    }

    /// As what [`prefetcher`](Self::prefetcher) returns, for rings whose media may make one wait: a second place that uses that one
    /// would cost every request of the others 32 instructions, as the compiler would not inline it any more.
    #[inline(never)]
    pub fn prefetch(&self, header: &Header) -> Option<PrefetchHint> {
        let media = self.disk().prefetch_hint(guess_offset(header)?);
        media.prefetch();
        Some(media)
    }

    /// Does what a chain asks if it is a transfer that is done by its copy alone.
    #[inline(always)]
    pub fn transfer<'a>(
        &self,
        chain: ContiguousChain<'a>,
        rules: &Rules,
        counters: &mut Counters,
    ) -> Transfer<'a> {
        let (disk, data) = (self.disk(), chain.data());
        let transfer = |finished: Option<Completion>| finished.map_or(Transfer::Lost, Transfer::Done);
        let Some(offset) = offset_of(&chain, &rules.limits) else { return Transfer::Other(chain) };
        match direction(&chain) {
            Some(Direction::Read) => {
                match disk.read(offset, data, chain.next_source()) {
                    Ok(()) => {
                        counters.count(Effect::Read(data.total_bytes() as u64));
                        // Whole sectors and the status: that does not wrap.
                        let written_bytes = chain.data_bytes().wrapping_add(1);
                        transfer(chain.finish(OK, written_bytes))
                    }
                    // The status counts only where no gap is before it (VIRTIO 1.2 §2.7.8.2).
                    Err(error) => transfer(self.refuse(chain, 0, "read", &error, counters)),
                }
            }
            Some(Direction::Write) if rules.writes_are_copies => {
                match disk.write(offset, data, chain.next_source()) {
                    Ok(()) => {
                        let bytes = data.total_bytes() as u64;
                        let media_bytes = disk.media_written_bytes(offset, bytes);
                        counters.count(Effect::Written { bytes, media_bytes });
                        transfer(chain.finish(OK, 1))
                    }
                    Err(error) => transfer(self.refuse(chain, 1, "write", &error, counters)),
                }
            }
            _ => Transfer::Other(chain),
        }
    }

    /// Does what a chain asks if it is a read that takes no waiting for media, nor for a request before it.
    #[inline(always)]
    pub fn try_transfer<'a>(
        &self,
        chain: ContiguousChain<'a>,
        rules: &Rules,
        counters: &mut Counters,
        is_free: impl FnOnce(&Span) -> bool,
    ) -> Transfer<'a> {
        let data = chain.data();
        let Some(offset) = offset_of(&chain, &rules.limits) else { return Transfer::Other(chain) };
        if !matches!(direction(&chain), Some(Direction::Read))
            || !is_free(&Span::of_transfer(offset, data.total_bytes(), false))
        {
            return Transfer::Other(chain);
        }
        if !self.disk().try_read(offset, data, chain.next_source()) {
            return Transfer::Other(chain);
        }
        counters.count(Effect::Read(data.total_bytes() as u64));
        let written_bytes = chain.data_bytes().wrapping_add(1);
        chain.finish(OK, written_bytes).map_or(Transfer::Lost, Transfer::Done)
    }

    #[cold]
    #[inline(never)]
    fn refuse(
        &self,
        chain: ContiguousChain<'_>,
        written_bytes: u32,
        operation: &str,
        error: &DiskError,
        counters: &mut Counters,
    ) -> Option<Completion> {
        if interruption::is_interrupted() {
            // It has not failed: it is done again.
            return None;
        }
        counters.count(Effect::Failed);
        chain.finish(self.failed(operation, error).status(), written_bytes)
    }
}
