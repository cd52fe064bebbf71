//! Why a benchmark has no result.

use std::io;
use std::num::NonZeroU16;
use std::path::PathBuf;

use crate::tools::bench::verify::Mismatch;

/// Names the socket, what was done, the cause and what to do.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Requests consist of sectors.
    #[error("--bs: a block of {bytes} bytes is impossible; write a multiple of 512")]
    BlockSize {
        /// What was asked for.
        bytes: u32,
    },
    /// A queue would need more descriptors than back-ends allow.
    #[error("--iodepth: {depth} requests do not fit in a queue; at most {most} do")]
    Depth {
        /// What was asked for.
        depth: NonZeroU16,
        /// What fits.
        most: u32,
    },
    /// The buffers would be too large.
    #[error(
        "the buffers would take {bytes} bytes, and {most} is the most; lower --bs, --iodepth or --numqueues"
    )]
    Buffers {
        /// What they would take.
        bytes: u64,
        /// The limit.
        most: u64,
    },
    /// Nothing can be connected to.
    #[error("{}: cannot connect ({source}); {}", .socket.display(), advice_of(.source.kind()))]
    Connect {
        /// The back-end.
        socket: PathBuf,
        /// The kernel's error, or what it means.
        source: io::Error,
    },
    /// It took the connection, and then did not behave like such a back-end.
    #[error(
        "{}: cannot {step} ({source}); is it a vhost-user-blk back-end, with REPLY_ACK and CONFIG?",
        .socket.display()
    )]
    Protocol {
        /// The back-end.
        socket: PathBuf,
        /// What was being done.
        step: &'static str,
        /// What went wrong.
        source: io::Error,
    },
    /// It took the connection and says nothing.
    #[error(
        "{}: no answer to the first messages within {seconds} s; is another front-end connected to it, or is it no vhost-user back-end?",
        .socket.display()
    )]
    Silent {
        /// The back-end.
        socket: PathBuf,
        /// How long it was waited for.
        seconds: u64,
    },
    /// Packed rings where there are only split ones.
    #[error(
        "{}: the back-end offers no packed rings (VIRTIO_F_RING_PACKED); leave --packed out, or have it offer them",
        .socket.display()
    )]
    NotPacked {
        /// The back-end.
        socket: PathBuf,
    },
    /// Fewer queues than asked for.
    #[error(
        "{}: the back-end offers {offered} queues and not {wanted}; lower --numqueues, or have it offer more",
        .socket.display()
    )]
    Queues {
        /// The back-end.
        socket: PathBuf,
        /// What it offers.
        offered: usize,
        /// What was asked for.
        wanted: NonZeroU16,
    },
    /// Writes to a disk that takes none.
    #[error(
        "{}: the disk is read-only, and --rw {rw} would write to it; use randread or read, or serve it writable",
        .socket.display()
    )]
    ReadOnly {
        /// The back-end.
        socket: PathBuf,
        /// What was asked for.
        rw: &'static str,
    },
    /// Blocks that the disk cannot do.
    #[error("{}: the disk has blocks of {block_bytes} bytes; --bs must be a multiple of that", .socket.display())]
    DiskBlock {
        /// The back-end.
        socket: PathBuf,
        /// Its logical block size.
        block_bytes: u32,
    },
    /// The part of the disk to be used has not enough blocks.
    #[error(
        "{}: {bytes} bytes are {} for this load; use another --size, or change --bs, --iodepth or --numqueues",
        .socket.display(), if *.too_large { "too large a part of the disk, or too many blocks to verify," } else { "too few" }
    )]
    Span {
        /// The back-end.
        socket: PathBuf,
        /// The part of the disk.
        bytes: u64,
        /// There is too much of it, not too little.
        too_large: bool,
    },
    /// A request came back with an error.
    #[error(
        "{}: the back-end failed a {operation} of {bytes} bytes at offset {offset} ({cause}); its own log may say why",
        .socket.display()
    )]
    Request {
        /// The back-end.
        socket: PathBuf,
        /// `read` or `write`.
        operation: &'static str,
        /// Where.
        offset: u64,
        /// How many.
        bytes: u32,
        /// What its status means.
        cause: io::Error,
    },
    /// What was read is not what was written.
    #[error("{}: verification failed: {mismatch}", .socket.display())]
    Mismatch {
        /// The back-end.
        socket: PathBuf,
        /// Where, and how it differs.
        mismatch: Mismatch,
    },
    /// The connection was closed under the load.
    #[error(
        "{}: the back-end hung up while requests were under way ({source}); its own log may say why",
        .socket.display()
    )]
    HungUp {
        /// The back-end.
        socket: PathBuf,
        /// What the connection said.
        source: io::Error,
    },
    /// The connection stands and nothing is completed.
    #[error(
        "{}: no request was completed for {seconds} s, though the connection stands; {}",
        .socket.display(),
        "is the back-end stopped, or does it miss kicks or calls (try the other one of --poll and --event)?"
    )]
    Stalled {
        /// The back-end.
        socket: PathBuf,
        /// For how long.
        seconds: u64,
    },
    /// A ring or an event descriptor failed on this side.
    #[error(
        "{}: cannot {step} ({source}); the cause is on this side: check the limits of this process (ulimit -n, -v)",
        .socket.display()
    )]
    Local {
        /// The back-end.
        socket: PathBuf,
        /// What was being done.
        step: &'static str,
        /// What went wrong.
        source: io::Error,
    },
    /// The back-end's CPU time cannot be read.
    #[error("process {pid}: cannot read its CPU time in {} ({source}); name a process that runs here", .path.display())]
    Cpu {
        /// The process.
        pid: u32,
        /// What was read.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The plot cannot be written.
    #[error("{}: cannot write the plot ({reason}); name another file with --plot", .path.display())]
    Plot {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

const fn advice_of(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::NotFound => "start the back-end first, or name the socket that it listens on",
        io::ErrorKind::ConnectionRefused => "start the back-end",
        io::ErrorKind::PermissionDenied => "ask for the right to use the socket, or run as its owner",
        _ => "name the Unix socket of a vhost-user-blk back-end",
    }
}
