//! Every bound that a guest, a front-end, a reader of metrics or of the log can meet, with its unit.
//!
//! The constants are what the code enforces. [`table`](super::table) says for users what happens beyond each of them, and
//! which metric counts that. `cargo test --test readme` fails when a bound is defined anywhere else in `src`, or has no row
//! in the table.

use std::time::Duration;

/// Queues that a disk can offer: `SET_VRING_KICK` carries a ring's index in 8 bits.
pub const MAX_QUEUES: u16 = 256;

/// Entries of a ring (VIRTIO 1.2 §2.7, §2.8): crosvm asks for that many.
pub const MAX_QUEUE_SIZE: u16 = 1 << 15;

/// Descriptors in a chain, whatever the size of its ring or table: as many as QEMU takes. Longer ones fail. Where a buffer
/// runs over the border of two regions, each piece counts.
pub const MAX_CHAIN: u16 = 1024;

/// Data segments of a request that can be announced: with header and status, as many descriptors as a chain may have.
pub const MAX_SEG_MAX: u16 = MAX_CHAIN - 2;

/// Bytes of one direction of a chain (VIRTIO 1.2 §2.7.5.2).
pub const MAX_REQUEST_BYTES: u64 = u32::MAX as u64;

/// Ranges in one DISCARD or WRITE_ZEROES.
pub const MAX_RANGES: u16 = 32;

/// Longest range in a DISCARD that is announced, in sectors: 1 GiB.
pub const MAX_DISCARD_SECTORS: u32 = 1 << 21;

/// Longest range in a WRITE_ZEROES that is announced, in sectors: 16 MiB, since zeroes may have to be stored there.
pub const MAX_WRITE_ZEROES_SECTORS: u32 = 1 << 15;

/// Requests of a ring after which other rings of the worker have their turn.
pub const MAX_TURN_REQUESTS: u16 = 32;

/// Bytes after which they have it as well: a driver with large requests should have the first ones back while the others
/// are copied.
///
/// Bytes of requests that fail count too, and a chain with that many is the last that is taken at once: so the ring goes no
/// further where one is done in slices. Unit tests make do with less.
pub const MAX_TURN_BYTES: u32 = if cfg!(test) { 8 << 10 } else { 256 << 10 };

/// Bytes of a request that are read, written or zeroed by stores in one slice: a fraction of a millisecond. A power of two: slices
/// end at its multiples on the disk, so that none has a part of a page that the request has all of. Unit tests slice what is
/// small.
pub const MAX_SLICE_BYTES: u64 = if cfg!(test) { 8 << 10 } else { 1 << 20 };

/// The same of space that the file system gives back: a fraction of a millisecond on tmpfs. On DAX it is more than a huge
/// page, as only whole ones are given back.
pub const MAX_UNMAP_SLICE_BYTES: u64 = 4 * MAX_SLICE_BYTES;

const _: () =
    assert!(MAX_TURN_BYTES as u64 <= MAX_SLICE_BYTES, "no chain is taken behind one that is done in slices");

/// Requests of a ring that are begun and not published, on media that may make one wait.
pub const MAX_PENDING_REQUESTS: u16 = 128;

/// Longest write of a file that a worker does itself, in bytes: others go to threads of the disk's at once.
pub const MAX_QUICK_WRITE_BYTES: u64 = if cfg!(test) { 4 << 10 } else { 64 << 10 };

/// Threads of a disk on such media: so many of its requests are under way at the same time.
pub const MAX_IO_THREADS: usize = 64;

/// Transfers of a worker that the kernel does by itself, of all its rings. (`fs.aio-max-nr` bounds those of all processes.)
pub const MAX_DIRECT_TRANSFERS: u16 = 256;

/// How long such a thread waits for something to do before it ends.
pub const IO_THREAD_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Length of a serial number in bytes (VIRTIO 1.2 §5.2.6.1, `VIRTIO_BLK_ID_BYTES`).
pub const SERIAL_BYTES: usize = 20;

/// Bytes of a configuration file: tens of thousands of disks.
pub const MAX_CONFIG_FILE_BYTES: u64 = 16 << 20;

/// Longest path of a socket in bytes (`sun_path` of unix(7), which ends in a zero).
pub const MAX_SOCKET_PATH_BYTES: usize =
    size_of::<libc::sockaddr_un>() - std::mem::offset_of!(libc::sockaddr_un, sun_path) - 1;

/// Longest time in µs that a worker can be told to poll empty rings: a minute.
pub const MAX_POLL_US: u64 = 60_000_000;

/// Front-ends of one disk at the same time; a migration needs two. One that has sent nothing makes room for one that comes.
pub const MAX_FRONT_ENDS: usize = 16;

/// Front-ends of a template at the same time, each with a disk of its own.
pub const MAX_PRIVATE_FRONT_ENDS: usize = 1024;

/// Connections of a disk, with those whose session is about to end.
pub const MAX_CONNECTIONS: usize = 2 * MAX_FRONT_ENDS;

/// Longest body of a message: as much as `vhost` takes.
pub const MAX_MESSAGE_BYTES: u32 = 0x1000;

/// How long a message may take from its first byte to its last, and an answer until there is room for it.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Descriptors with a message: one for each region of SET_MEM_TABLE.
pub const MAX_MESSAGE_DESCRIPTORS: usize = 32;

/// Regions in one SET_MEM_TABLE: as many descriptors come with a message.
pub const MAX_TABLE_REGIONS: u32 = 32;

/// Regions that a table can have: what vhost-user calls memory slots; QEMU stops at 509 as KVM did.
pub const MAX_REGIONS: usize = 509;

/// How long `CHECK_DEVICE_STATE` waits for an end that should have come: the front-end has written all there is, or read it.
pub const STATE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a device's state may be under way, whether its end is asked for or not.
pub const STATE_TRANSFER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the descriptor checker may take on a machine that is busy. It waits for nobody but the processor.
pub const CHECKER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a descriptor waits to be passed between these processes and the daemon, while those of the same user have too many on
/// their way (`ETOOMANYREFS`): less than what the answer is waited for.
pub const IN_FLIGHT_TIMEOUT: Duration = Duration::from_secs(4);

/// Messages of a connection with descriptors that are refused for what they are: each costs a process.
pub const MAX_REFUSED_MESSAGES: u64 = 64;

/// Checker processes that close what front-ends of one disk have sent, which may make them wait: beyond it nothing more with
/// descriptors is taken of its front-ends, and nobody is let in. Each connection that there is then may take one more at its
/// end, and so may the disk's socket.
pub const MAX_RETIRED_CHECKERS: usize = 64;

/// How long a message with descriptors waits until one of them has ended.
pub const RETIRED_CHECKERS_TIMEOUT: Duration = Duration::from_secs(10);

/// What a call of a driver, or to begin or end to wait for its kicks, may take of the processor without being noted: most take a
/// few microseconds at most.
pub const LONG_CALL: Duration = Duration::from_micros(100);

/// The same of a turn of a ring, waits for guest memory included, but not while the disk is populated: 32 huge pages that are touched first take that.
pub const LONG_TURN: Duration = Duration::from_millis(4);

/// What such calls of a disk's rings may take together until it has workers of its own …
pub const HOLD_UP: Duration = Duration::from_millis(3);

/// … and what such turns may: nobody honest has hundreds wait for a call, but a guest that starts touches its memory first, in huge
/// pages that are cleared then, or waits for one that was swapped out. A dozen such turns in a row are no reason to be put behind
/// others for minutes …
pub const HOLD_UP_TURNS: Duration = Duration::from_millis(50);

/// … besides this part of the time (1 of 200) …
pub const HOLD_UP_SHARE: u32 = 200;

/// … and at least so many of them, however long each takes.
pub const HOLD_UPS: u32 = 3;

/// How long a worker that disks share may do one turn of each of its rings, if pages of guest memory are the reason: the turn is
/// ended then, and its disk has workers of its own.
pub const MAX_ROUND: Duration = Duration::from_millis(50);

/// How long a disk has workers of its own after the last of them.
pub const HOLD_UPS_MEMORY: Duration = Duration::from_secs(600);

/// How nice such a worker is to the others (nice(1)): where there are too few processors it has a tenth of one.
pub const OWN_WORKER_NICE: i32 = 10;

/// Longest pause of such a worker after a turn that took its processor for long: it pauses for as long.
pub const MAX_PAUSE: Duration = Duration::from_millis(100);

/// Guest memory of all front-ends: half of what a process can address (47 bits on x86-64); disks are mapped, too.
pub const MAX_GUEST_MEMORY_BYTES: u64 = 64 << 40;

/// One region of guest memory for so many mappings: it takes three, and half is left to what is not guest memory.
pub const MAPPINGS_PER_REGION: u64 = 8;

/// Guest memory is refused once so many quarters of the process's mappings are taken, by threads too.
pub const MEMORY_MAPPING_QUARTERS: usize = 2;

/// Quarters of them that threads may take, with guest memory: it is more, so that those who come first with much memory keep
/// nobody out.
pub const THREAD_MAPPING_QUARTERS: usize = 3;

/// Address space that is left beside what a peer has mapped, in bytes: for some threads, and heaps of their own.
pub const MIN_FREE_ADDRESS_SPACE_BYTES: usize = 256 << 20;

/// Address space that there is when a thread is started, in bytes: for its stacks, and what is allocated meanwhile.
pub const MIN_THREAD_ADDRESS_SPACE_BYTES: usize = 16 << 20;

/// Ranges of memory in which faults are expected: the memory of 128 front-ends with as many regions as there can be, or of
/// thousands that have a few each. Those that are not used are not resident.
pub const MAX_WATCHED_RANGES: usize = 1 << 16;

/// Descriptors of the process itself: standard streams, signals, workers, what watches disks that grow; with room to
/// spare.
pub const PROCESS_DESCRIPTORS: u64 = 64;

/// Descriptors of a disk that nobody is connected to: its file, for I/O and for its mapping, and its socket.
pub const DISK_DESCRIPTORS: u64 = 3;

/// Those of one with DAX: the kernel's list of its bad ranges besides, to read it and to wait for it.
pub const DAX_DISK_DESCRIPTORS: u64 = DISK_DESCRIPTORS + 2;

/// Descriptors of a connection: its socket thrice, the pair that `vhost` reads from, the channel, the dirty log; with room
/// to spare.
pub const CONNECTION_DESCRIPTORS: u64 = 12;

/// Descriptors of a ring: kick, call and err.
pub const RING_DESCRIPTORS: u64 = 3;

/// Threads of front-ends, for all disks together …
pub const MAX_THREADS: u64 = 8192;

/// … or so many for each disk, where that is more.
pub const MAX_THREADS_PER_DISK: u64 = 8;

/// Threads of a connection: its own, the one that waits for another front-end, the one that carries the device's state.
pub const CONNECTION_THREADS: u64 = 3;

/// Lines of the log of one cause and disk that are admitted in each second.
pub const MAX_LOG_LINES_PER_SECOND: u64 = 5;

/// Lines of the log that wait to be written.
pub const MAX_WAITING_LOG_LINES: usize = 4096;

/// Bytes of the lines that wait.
pub const MAX_WAITING_LOG_BYTES: usize = 4 << 20;

/// How long the end of the process waits for lines of the log, or a start message, that nobody may ever read.
pub const LAST_OUTPUT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a reader of metrics may take to ask and to take its answer.
pub const METRICS_TIMEOUT: Duration = Duration::from_secs(2);

/// Readers of metrics that are connected to one socket at a time.
pub const MAX_METRICS_READERS: usize = 8;

/// Bytes of the line and fields of a request for metrics.
pub const MAX_HTTP_HEAD_BYTES: usize = 8192;

/// How long whoever is connected to the control socket may take to ask, and to take the answer.
pub const CONTROL_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections to the control socket at a time.
pub const MAX_CONTROL_CONNECTIONS: usize = 32;

/// Changes that are asked for there and under way at a time, each on a thread; and as many that only look.
pub const MAX_CONTROL_OPERATIONS: usize = 8;

/// Bytes of the line and fields of a request there.
pub const MAX_CONTROL_HEAD_BYTES: usize = 16 << 10;

/// Bytes of its body.
pub const MAX_CONTROL_BODY_BYTES: usize = 64 << 10;

/// Connections to the control socket that follow events at a time, besides the others.
pub const MAX_EVENT_FOLLOWERS: usize = 32;

/// Events that are kept for those who ask later, or fall behind.
pub const MAX_EVENTS: usize = 1024;

/// Bytes of them.
pub const MAX_EVENT_BYTES: usize = 1 << 20;

/// Bytes of one text in an event; what is longer is cut.
pub const MAX_EVENT_TEXT_BYTES: usize = 4096;

/// How long the end waits for followers to take the last events.
pub const LAST_EVENTS_TIMEOUT: Duration = Duration::from_secs(1);

/// How long front-ends of a disk that is removed may be given to leave.
pub const MAX_DRAIN_TIMEOUT: Duration = Duration::from_secs(3600);

/// How long metrics wait for workers; one that is busy with slow media is left out until the next time.
pub const COLLECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Bad ranges of a disk that metrics list one by one; all of them are in the sum.
pub const MAX_LISTED_BAD_BLOCKS: usize = 256;

/// Queues of a disk that metrics show one by one; all of them are in the sum.
pub const MAX_LISTED_RINGS: usize = 64;

/// Bad ranges of a disk that are kept; others are found when they are read.
pub const MAX_BAD_BLOCKS: usize = 4096;

/// How long a start waits for whoever has a lease on the file: an NFS server for a client (a delegation), Samba. The
/// kernel takes it away after 45 s (`/proc/sys/fs/lease-break-time`).
pub const LEASE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a start waits for a lock whose process has ended. It lasts until nobody reads about that process in `/proc` any
/// more (`ps`, monitoring): whoever does holds its memory, with the mapping of the file, and so the open file.
pub const ENDED_HOLDER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the end waits for requests and flushes of media that do not answer, unless it is told otherwise …
pub const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// … at most so many seconds: a day.
pub const MAX_STOP_TIMEOUT_S: i64 = 86_400;

/// How long a request waits before the log names it, and how often it does.
pub const STALL_INTERVAL: Duration = Duration::from_secs(10);

/// Longest time that a request may take and not be called slow (`slow-ms=`), in milliseconds.
pub const MAX_SLOW_MS: u16 = 60_000;

/// How often it is looked for requests that are slow and have not ended: as `slow-ms=` says, and within these.
pub const SLOW_INTERVALS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// How long the end of the process waits for a step of populating that is under way. On slow media a step may take much longer;
/// the thread is not waited for then, and ends with the process.
pub const THREAD_STOP_TIMEOUT: Duration = Duration::from_millis(200);

/// How long it is waited until nobody uses a disk any more that was removed; its file is closed later then.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a service manager that reads nothing is waited for.
pub const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest name of a descriptor that the service manager keeps, in bytes.
pub const MAX_KEPT_NAME_BYTES: usize = 255;

/// How long a start waits for another process that is at work on sockets of the same folder.
pub const SOCKET_FOLDER_TIMEOUT: Duration = Duration::from_secs(10);
