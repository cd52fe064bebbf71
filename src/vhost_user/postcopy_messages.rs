//! The messages of a postcopy migration, and their answers.
//!
//! `vhost` knows them only with its feature `postcopy`, which `vhost-user-backend` has to be built with as well then;
//! and that takes libclang.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;

use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};

use super::connection::{Connection, Hangup, name};
use super::debug_log::Answer;
use super::message::{self, Message};
use super::payload;
use super::postcopy::PostcopyError;
use super::rings::{Session, SessionError};
use crate::disk::Disk;
use crate::limits::budget::Amounts;
use crate::virtio::memory::{MemoryTable, RegionSpec};

/// Guest address, length in bytes, the front-end's own address, offset in the file.
type Region = [u64; 4];

/// Length of the word that the front-end knows where memory is mapped.
const ACK_BYTES: usize = 8;

/// Whether the message is another one while pages are missing than it is otherwise.
pub(super) fn is_about_memory(message: &Message) -> bool {
    message.code == u32::from(FrontendReq::SET_MEM_TABLE)
}

impl<D: Disk> Connection<D> {
    /// The front-end waits for a descriptor: there is no way to say no, but to hang up.
    pub(super) fn advise_postcopy(&self, message: &Message) -> Result<Answer, Hangup> {
        let advised = self.session.check_negotiated().and_then(|()| self.session.advise_postcopy());
        let refusal =
            |error: SessionError| Hangup::Refused { request: name(message.code), reason: error.to_string() };
        let userfault = advised.map_err(refusal)?;
        message::send(&self.stream, &message.answer(&[]), &[userfault.as_fd()])?;
        Ok(Answer::Descriptor)
    }

    pub(super) fn listen_to_postcopy(&self, message: &Message) -> Result<Answer, Hangup> {
        let done = self.session.check_negotiated().and_then(|()| self.session.listen_to_postcopy());
        self.conclude(message, done.map_err(|error| error.to_string()))
    }

    /// Answered whether it was asked for or not.
    pub(super) fn end_postcopy(&self, message: &Message) -> Result<Answer, Hangup> {
        let done = self.session.check_negotiated().and_then(|()| self.session.end_postcopy());
        if let Err(error) = &done {
            self.log_refusal(message, &error.to_string());
        }
        (&self.stream).write_all(&message.acknowledgement(done.is_ok()))?;
        Ok(done.map_or_else(|error| Answer::Refused(error.to_string()), |()| Answer::Done))
    }

    /// Regions are answered by where they are mapped; then comes an acknowledgement of that, under the same code.
    pub(super) fn exchange_memory(&self, mut message: Message) -> Result<Answer, Hangup> {
        let code = message.code;
        let refusal = |reason: String| Hangup::Refused { request: name(code), reason };
        if let Ok(ack) = <[u8; ACK_BYTES]>::try_from(message.body()) {
            let is_known = u64::from_ne_bytes(ack) == 0;
            if is_known {
                self.session.acknowledge_memory();
            }
            return self.conclude(&message, is_known.then_some(()).ok_or("the front-end has failed".into()));
        }
        payload::fit(FrontendReq::SET_MEM_TABLE, &mut message).map_err(|error| refusal(error.to_string()))?;
        let files = std::mem::take(&mut message.files).into_iter().map(File::from).collect();
        let taken = self.session.take_missing(&message, files);
        let answer = taken.map_err(|error| refusal(error.to_string()))?;
        (&self.stream).write_all(&message.answer(&answer))?;
        Ok(Answer::Value(answer))
    }
}

impl<D: Disk> Session<D> {
    fn check_negotiated(&self) -> Result<(), SessionError> {
        match self.has_protocol(VhostUserProtocolFeatures::PAGEFAULT) {
            true => Ok(()),
            false => Err(PostcopyError::NotNegotiated.into()),
        }
    }

    /// Maps what is announced; the body of the answer is that of the message with our addresses.
    fn take_missing(&self, message: &Message, files: Vec<File>) -> Result<Vec<u8>, SessionError> {
        let (head, regions) = regions(message.body()).ok_or(PostcopyError::Malformed)?;
        let specs = regions.iter().zip(files).map(|(region, file)| self.missing_spec(region, file));
        let memory = MemoryTable::map(specs.collect::<Result<_, _>>()?)?;
        let memory = self.set_missing_memory(memory)?;
        let ours = regions.iter().flat_map(|&[guest_start, len_bytes, _, file_offset]| {
            [guest_start, len_bytes, memory.host_address(guest_start).unwrap_or_default(), file_offset]
        });
        Ok([head].into_iter().chain(ours).flat_map(u64::to_ne_bytes).collect())
    }

    fn missing_spec(&self, region: &Region, file: File) -> Result<RegionSpec, SessionError> {
        let &[guest_start, len_bytes, user_start, file_offset] = region;
        let charge = Some(self.context.budget.charge(Amounts::region(len_bytes))?);
        Ok(RegionSpec { guest_start, len_bytes, user_start, file_offset, file, charge })
    }
}

/// What is before the first region of a message, and all of its regions.
fn regions(body: &[u8]) -> Option<(u64, Vec<Region>)> {
    let (words, rest) = body.as_chunks::<8>();
    let (&head, words) = words.split_first()?;
    let (regions, odd) = words.as_chunks::<4>();
    let is_whole = rest.is_empty() && odd.is_empty();
    let numbers = |region: &[[u8; 8]; 4]| region.map(u64::from_ne_bytes);
    is_whole.then(|| (u64::from_ne_bytes(head), regions.iter().map(numbers).collect()))
}
