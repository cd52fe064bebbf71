//! The messages of a postcopy migration, what each does, and their answers.
//!
//! `vhost` knows them only with its feature `postcopy`, which `vhost-user-backend` has to be built with as well then;
//! and that takes libclang.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};

use super::error::SessionError;
use super::message::Message;
use super::payload;
use super::postcopy::{Permit, Postcopy, PostcopyError};
use super::reply::{Hangup, Replier, Reply};
use super::session::Session;
use crate::disk::Disk;
use crate::limits::budget::Amounts;
use crate::log::Cause;
use crate::virtio::memory::{MemoryTable, RegionSpec};

/// Guest address, length in bytes, the front-end's own address, offset in the file.
type Region = [u64; 4];

/// Length of the word that the front-end knows where memory is mapped.
const ACK_BYTES: usize = 8;

/// Whether a message of a session is another one while pages are missing than it is otherwise, and comes here then.
pub(super) fn takes<D: Disk>(session: &Session<D>, message: &Message) -> bool {
    message.code == u32::from(FrontendReq::SET_MEM_TABLE) && session.rings.state().is_listening()
}

/// `POSTCOPY_ADVISE`. The front-end waits for a descriptor: there is no way to say no, but to hang up.
pub(super) fn advise<D: Disk>(replier: &Replier<'_, D>, message: &Message) -> Result<Reply, Hangup> {
    let advised = check_negotiated(replier.session).and_then(|()| begin(replier.session));
    let userfault = advised.map_err(|error| Hangup::refused(message, error))?;
    replier.send_descriptor(message, userfault.as_fd())?;
    Ok(Reply::Descriptor)
}

/// What the front-end will hear of missing pages by.
fn begin<D: Disk>(session: &Session<D>) -> Result<OwnedFd, SessionError> {
    let mut state = session.rings.state();
    if state.is_listening() {
        return Err(PostcopyError::IsListening.into());
    }
    let (postcopy, userfault) = Postcopy::advise()?;
    // One that was begun before this and came to nothing: its memory was waited for by nobody.
    state.postcopy = Some(postcopy);
    Ok(userfault)
}

/// `POSTCOPY_LISTEN`.
pub(super) fn listen<D: Disk>(replier: &Replier<'_, D>, message: &Message) -> Result<Reply, Hangup> {
    let done = check_negotiated(replier.session).and_then(|()| begin_to_listen(replier.session));
    replier.acknowledge(message, done.map_err(|error| error.to_string()))
}

/// Memory that is announced from now on has not come yet.
fn begin_to_listen<D: Disk>(session: &Session<D>) -> Result<(), SessionError> {
    let context = &session.context;
    let mut state = session.rings.state();
    let has_memory = !state.memory.is_empty();
    let postcopy = state.postcopy.as_mut().ok_or(PostcopyError::NotAdvised)?;
    if postcopy.is_listening() {
        return Err(PostcopyError::IsListening.into());
    }
    if has_memory {
        return Err(PostcopyError::HasMemory.into());
    }
    let permit = Permit::take(&context.is_in_postcopy)?;
    let charge = context.budget.charge(Amounts::postcopy(context.device.queues()))?;
    postcopy.listen(session.id(), session.connection.clone(), &context.pool, permit, charge)?;
    if let Some(suppressed) = context.log_limit.admit(Cause::PostcopyBegins) {
        let (disk, session) = (session.disk(), session.id());
        tracing::info!(disk, session, suppressed, "the guest runs before its memory has arrived (postcopy)");
    }
    Ok(())
}

/// `POSTCOPY_END`. Answered whether it was asked for or not.
pub(super) fn end<D: Disk>(replier: &Replier<'_, D>, message: &Message) -> Result<Reply, Hangup> {
    let done = check_negotiated(replier.session).and_then(|()| finish(replier.session));
    if let Err(error) = &done {
        replier.log_refusal(message, &error.to_string());
    }
    replier.send(&message.acknowledgement(done.is_ok()))?;
    Ok(done.map_or_else(|error| Reply::Refused(error.to_string()), |()| Reply::Done))
}

/// All pages have come. Also where it came to none, and the guest has all of its memory.
fn finish<D: Disk>(session: &Session<D>) -> Result<(), SessionError> {
    let missing = session.rings.state().postcopy.as_ref().map(Postcopy::missing_pages);
    // First: what follows would wait for whoever waits still.
    missing.ok_or(PostcopyError::NotAdvised)?.cease_waiting();
    let mut ended = None;
    session.rings.change_all(|state| {
        ended = state.postcopy.take();
        Ok(())
    })?;
    if let Some(postcopy) = ended {
        postcopy.finish();
    }
    if let Some(suppressed) = session.context.log_limit.admit(Cause::PostcopyEnds) {
        let (disk, session) = (session.disk(), session.id());
        tracing::info!(disk, session, suppressed, "all of the guest's memory has arrived (postcopy)");
    }
    Ok(())
}

/// `SET_MEM_TABLE`: regions are answered by where they are mapped; then comes an acknowledgement of that, under the same
/// code.
pub(super) fn exchange_memory<D: Disk>(
    replier: &Replier<'_, D>,
    mut message: Message,
) -> Result<Reply, Hangup> {
    if let Ok(ack) = <[u8; ACK_BYTES]>::try_from(message.payload()) {
        let is_known = u64::from_ne_bytes(ack) == 0;
        if is_known {
            acknowledge_memory(replier.session);
        }
        return replier
            .acknowledge(&message, is_known.then_some(()).ok_or("the front-end has failed".into()));
    }
    payload::check(FrontendReq::SET_MEM_TABLE, &mut message)
        .map_err(|error| Hangup::refused(&message, error))?;
    let files = std::mem::take(&mut message.files).into_iter().map(File::from).collect();
    let mapped = map_missing(replier.session, &message, files);
    let answer = mapped.map_err(|error| Hangup::refused(&message, error))?;
    replier.send(&message.reply(&answer))?;
    Ok(Reply::Value(answer))
}

/// The front-end knows where all memory is mapped: rings may run.
fn acknowledge_memory<D: Disk>(session: &Session<D>) {
    let mut state = session.rings.state();
    if let Some(postcopy) = state.postcopy.as_mut() {
        postcopy.acknowledged();
    }
    session.rings.start_all(&mut state);
}

/// Maps what is announced, and puts it in force; the payload of the answer is that of the message with our addresses.
fn map_missing<D: Disk>(
    session: &Session<D>,
    message: &Message,
    files: Vec<File>,
) -> Result<Vec<u8>, SessionError> {
    let (head, regions) = regions(message.payload()).ok_or(PostcopyError::Malformed)?;
    let specs = regions.iter().zip(files).map(|(region, file)| missing_spec(session, region, file));
    let memory = Arc::new(MemoryTable::map(specs.collect::<Result<_, _>>()?)?);
    session.rings.change_all(|state| {
        let before = state.memory.clone();
        state.set_memory(memory.clone())?;
        if let Some(postcopy) = &mut state.postcopy {
            postcopy.table_replaced(&before);
        }
        Ok(())
    })?;
    let ours = regions.iter().flat_map(|&[guest_start, len_bytes, _, file_offset]| {
        [guest_start, len_bytes, memory.host_address(guest_start).unwrap_or_default(), file_offset]
    });
    Ok([head].into_iter().chain(ours).flat_map(u64::to_ne_bytes).collect())
}

fn missing_spec<D: Disk>(
    session: &Session<D>,
    region: &Region,
    file: File,
) -> Result<RegionSpec, SessionError> {
    let &[guest_start, len_bytes, user_start, file_offset] = region;
    let charge = Some(session.context.budget.charge(Amounts::region(len_bytes))?);
    Ok(RegionSpec { guest_start, len_bytes, user_start, file_offset, file, charge })
}

fn check_negotiated<D: Disk>(session: &Session<D>) -> Result<(), SessionError> {
    match session.has_protocol(VhostUserProtocolFeatures::PAGEFAULT) {
        true => Ok(()),
        false => Err(PostcopyError::NotNegotiated.into()),
    }
}

/// What is before the first region of a message, and all of its regions.
fn regions(payload: &[u8]) -> Option<(u64, Vec<Region>)> {
    let (words, rest) = payload.as_chunks::<8>();
    let (&head, words) = words.split_first()?;
    let (regions, odd) = words.as_chunks::<4>();
    let is_whole = rest.is_empty() && odd.is_empty();
    let numbers = |region: &[[u8; 8]; 4]| region.map(u64::from_ne_bytes);
    is_whole.then(|| (u64::from_ne_bytes(head), regions.iter().map(numbers).collect()))
}
