//! A connection as the stack of HTTP reads and writes it, of which somebody else sees whether the other side is still there; and
//! events as the body of an answer.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::body::{Body, Bytes, Frame};
use hyper::rt::{Read, ReadBufCursor, Write};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown};
use tokio::net::UnixStream;

use crate::log::Follower;

/// One end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Stream(Arc<UnixStream>);

impl Stream {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self(Arc::new(stream))
    }

    /// The user at the other end, as it was when it connected.
    pub(super) fn uid(&self) -> Option<u32> {
        self.0.peer_cred().ok().map(|peer| peer.uid())
    }

    /// Whether the other end is closed. One that only says nothing more is not.
    pub(super) fn is_closed(&self) -> bool {
        let mut asked = [PollFd::new(&*self.0, PollFlags::empty())];
        let answer = poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        answer == Ok(1) && asked.iter().any(|it| it.revents().intersects(PollFlags::HUP | PollFlags::ERR))
    }
}

impl Read for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; 4096];
        let room = buffer.remaining().min(bytes.len());
        let Some(bytes) = bytes.get_mut(..room) else { return Poll::Ready(Ok(())) };
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    buffer.put_slice(bytes.get(..read?).unwrap_or_default());
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(shutdown(&*self.0, Shutdown::Write)?))
    }
}

/// Lines of events, until there are no more.
#[derive(Debug)]
pub(super) struct Events(pub(super) Follower);

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_next(context).map(|lines| lines.map(|lines| Ok(Frame::data(lines.into()))))
    }
}
