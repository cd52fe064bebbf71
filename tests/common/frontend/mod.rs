//! A front-end without a guest: `vhost`'s `Frontend` for what it can say, the bare socket for the rest, and
//! rings laid out by hand in memory of its own.

#![allow(unsafe_code)]

pub mod chains;
pub mod event_fd;
pub mod features;
pub mod handover;
pub mod load;
pub mod memory;
pub mod message;
pub mod pages;
pub mod request;
pub mod ring;
pub mod wire;

use std::collections::HashMap;
use std::fmt::Debug;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Error as ProtocolError, Frontend, VhostUserFrontend};
use vhost::{Error, VhostBackend, VringConfigData};

use super::PATIENCE;
use memory::{Memory, Span};
use message::SET_VRING_BASE;
use ring::{Ring, Vring};
use wire::{Verdict, Wire};

/// Feature bit: entries of the rings say when to notify.
pub const EVENT_IDX: u64 = 1 << 29;
/// Feature bit: a descriptor may be a table of descriptors.
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Feature bit: the device is not a legacy one.
pub const VERSION_1: u64 = 1 << 32;
/// Feature bit: rings are packed (VIRTIO 1.2 §2.8).
pub const RING_PACKED: u64 = 1 << 34;
/// Feature bit: there are protocol features, and rings wait for being enabled.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Feature bit: what is written to memory is marked in the dirty log.
pub const LOG_ALL: u64 = 1 << 26;

/// Two regions, neither at the address 0 nor next to each other.
pub const SPANS: [Span; 2] =
    [Span { guest_start: 0x10_0000, bytes: 1 << 30 }, Span { guest_start: 0x1_0000_0000, bytes: 16 << 20 }];

/// What is acknowledged, of what is offered, and which memory is shared.
#[derive(Debug, Clone)]
pub struct Options {
    /// Virtio feature bits.
    pub features: u64,
    /// [`RING_PACKED`] too.
    pub packed: bool,
    /// Protocol feature bits.
    pub protocol: VhostUserProtocolFeatures,
    /// The regions of the memory table.
    pub spans: Vec<Span>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            features: u64::MAX,
            packed: false,
            protocol: VhostUserProtocolFeatures::all(),
            spans: SPANS.to_vec(),
        }
    }
}

impl Options {
    /// Both kinds of rings: split and packed.
    pub fn both_kinds() -> [Self; 2] {
        [false, true].map(|packed| Self { packed, ..Self::default() })
    }
}

/// A front-end's session.
pub struct Session {
    /// The socket itself.
    pub wire: Wire,
    /// What is shared.
    pub memory: Memory,
    /// Virtio feature bits acknowledged.
    pub features: u64,
    control: Frontend,
    socket: UnixStream,
}

impl Session {
    /// Connects, acknowledges everything that is offered (but for packed rings) and shares [`SPANS`].
    pub fn connect(path: &Path) -> Self {
        Self::connect_with(path, &Options::default())
    }

    /// A front-end with split rings, and after that has left one with packed rings.
    pub fn of_each_kind(path: &Path) -> impl Iterator<Item = Self> {
        Options::both_kinds().into_iter().map(move |options| {
            eprintln!("packed rings: {}", options.packed);
            Self::connect_with(path, &options)
        })
    }

    /// Connects, negotiates and shares memory.
    pub fn connect_with(path: &Path, options: &Options) -> Self {
        let mut session = Self::open(path, &options.spans);
        session.negotiate(options);
        session.share_memory();
        session
    }

    /// Connects and says nothing.
    pub fn open(path: &Path, spans: &[Span]) -> Self {
        // Its own number, since every test may try rings that do not exist.
        const MAX_QUEUES: u64 = 256;
        let socket = UnixStream::connect(path).unwrap();
        let wire = Wire::new(socket.try_clone().unwrap());
        let control = Frontend::from_stream(socket.try_clone().unwrap(), MAX_QUEUES);
        Self { wire, memory: Memory::new(spans), features: 0, control, socket }
    }

    /// Acknowledges what is both offered and wanted.
    pub fn negotiate(&mut self, options: &Options) {
        self.negotiate_protocol(options);
        self.set_features(self.features);
    }

    /// As [`Self::negotiate`], but for the virtio features, which are only asked for.
    pub fn negotiate_protocol(&mut self, options: &Options) {
        let offered = self.ask(|control| control.get_features()).unwrap();
        self.ask(|control| control.set_owner()).unwrap();
        self.features = offered & options.features & if options.packed { u64::MAX } else { !RING_PACKED };
        if self.features & PROTOCOL_FEATURES != 0 {
            let offered = self.ask(|control| control.get_protocol_features()).unwrap();
            let wanted = offered & options.protocol;
            self.ask(|control| control.set_protocol_features(wanted)).unwrap();
            if wanted.contains(VhostUserProtocolFeatures::REPLY_ACK) {
                self.control.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            }
        }
    }

    /// Announces the memory as a whole table.
    pub fn share_memory(&self) {
        let table = self.memory.announcement();
        self.ask(|control| control.set_mem_table(&table)).unwrap();
    }

    /// Lets `vhost`'s front-end say something. It would wait for an answer for ever; this does not.
    pub fn ask<T>(&self, say: impl FnOnce(&mut Frontend) -> T) -> T {
        let _limit = Limit::on(&self.socket);
        say(&mut self.control.clone())
    }

    /// Makes a ring of the negotiated kind and starts it.
    pub fn ring(&self, index: u16, size: u16) -> Ring {
        let ring = self.new_ring(index, size);
        self.start(&ring, 0).unwrap();
        ring
    }

    /// Makes a ring of the negotiated kind, of which the back-end hears nothing yet.
    pub fn new_ring(&self, index: u16, size: u16) -> Ring {
        Ring::new(&self.memory, index, size, self.features)
    }

    /// Starts a ring in QEMU's order.
    pub fn start(&self, ring: &Vring, base: u32) -> vhost::Result<()> {
        let index = usize::from(ring.index);
        self.ask(|control| control.set_vring_num(index, ring.size))?;
        self.set_base(ring.index, base)?;
        self.set_addresses(ring)?;
        self.set_events(ring)?;
        self.enable(ring, true)
    }

    /// Starts a ring in Cloud Hypervisor's order: the base after the addresses.
    pub fn start_base_last(&self, ring: &Vring, base: u32) -> vhost::Result<()> {
        let index = usize::from(ring.index);
        self.ask(|control| control.set_vring_num(index, ring.size))?;
        self.set_addresses(ring)?;
        self.set_base(ring.index, base)?;
        self.set_events(ring)?;
        self.enable(ring, true)
    }

    /// Says where a ring goes on. `vhost`'s front-end has 16 bits for it, which is too few for a packed ring.
    fn set_base(&self, index: u16, base: u32) -> vhost::Result<()> {
        if let Ok(base) = u16::try_from(base) {
            return self.ask(|control| control.set_vring_base(index.into(), base));
        }
        let state = [u32::from(index), base].map(u32::to_le_bytes);
        match self.wire.tell(SET_VRING_BASE, state.as_flattened(), &[]) {
            Verdict::Ack => Ok(()),
            Verdict::Nack => Err(Error::VhostUserProtocol(ProtocolError::BackendInternalError)),
            Verdict::Closed => Err(Error::VhostUserProtocol(ProtocolError::Disconnected)),
        }
    }

    /// Announces where a ring is.
    pub fn set_addresses(&self, ring: &Vring) -> vhost::Result<()> {
        self.set_addresses_and_log(ring, None)
    }

    /// As [`Self::set_addresses`]; the used ring is logged as if it were at this guest address, if any.
    pub fn set_addresses_and_log(&self, ring: &Vring, log_addr: Option<u64>) -> vhost::Result<()> {
        const F_LOG: u32 = 1;
        let addresses = VringConfigData {
            queue_max_size: ring.size,
            queue_size: ring.size,
            flags: if log_addr.is_some() { F_LOG } else { 0 },
            desc_table_addr: Ring::user(ring.descriptors),
            used_ring_addr: Ring::user(ring.used),
            avail_ring_addr: Ring::user(ring.available),
            log_addr,
        };
        self.ask(|control| control.set_vring_addr(usize::from(ring.index), &addresses))
    }

    /// Acknowledges other features while rings run.
    pub fn set_features(&mut self, features: u64) {
        self.features = features;
        self.ask(|control| control.set_features(features)).unwrap();
    }

    /// Hands over a ring's eventfds; the kick starts it.
    pub fn set_events(&self, ring: &Vring) -> vhost::Result<()> {
        let index = usize::from(ring.index);
        self.ask(|control| control.set_vring_err(index, &ring.err.current()))?;
        self.ask(|control| control.set_vring_call(index, &ring.call.current()))?;
        self.ask(|control| control.set_vring_kick(index, &ring.kick.current()))
    }

    /// Enables or disables a ring, where that is negotiated.
    pub fn enable(&self, ring: &Vring, enable: bool) -> vhost::Result<()> {
        if self.features & PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        self.ask(|control| control.set_vring_enable(usize::from(ring.index), enable))
    }

    /// Stops a ring; returns its base.
    pub fn stop(&self, ring: &Vring) -> u32 {
        self.ask(|control| control.get_vring_base(usize::from(ring.index))).unwrap()
    }

    /// Reads the configuration space.
    pub fn config(&self, offset: u32, bytes: u32) -> vhost::Result<Vec<u8>> {
        let nothing = vec![0; bytes as usize];
        let flags = vhost::vhost_user::message::VhostUserConfigFlags::WRITABLE;
        self.ask(|control| control.get_config(offset, bytes, flags, &nothing)).map(|(_, payload)| payload)
    }
}

/// Insists that the back-end has refused, and has said so.
pub fn assert_refused<T: Debug>(what: &str, result: vhost::Result<T>) {
    let is_nack = matches!(result, Err(Error::VhostUserProtocol(ProtocolError::BackendInternalError)));
    assert!(is_nack, "{what} was not refused with a NACK: {result:?}");
}

/// Gives a back-end time to do what it must not do, before a test checks that it did not.
pub fn settle() {
    std::thread::sleep(Duration::from_millis(100));
}

/// Borrows the descriptor behind a type that does not say that it owns one.
pub fn fd_of(owner: &impl AsRawFd) -> BorrowedFd<'_> {
    // SAFETY: the owners used here (eventfds) keep their descriptor open as long as they live.
    unsafe { BorrowedFd::borrow_raw(owner.as_raw_fd()) }
}

/// Shuts a socket down when it is not dropped in time, so that whoever waits at it fails.
struct Limit(u64);

type Deadlines = Mutex<(u64, HashMap<u64, (Instant, UnixStream)>)>;

impl Limit {
    fn on(socket: &UnixStream) -> Self {
        let mut deadlines = Self::deadlines().lock().unwrap();
        deadlines.0 += 1;
        let number = deadlines.0;
        deadlines.1.insert(number, (Instant::now() + PATIENCE, socket.try_clone().unwrap()));
        Self(number)
    }

    fn deadlines() -> &'static Deadlines {
        static DEADLINES: OnceLock<Deadlines> = OnceLock::new();
        DEADLINES.get_or_init(|| {
            std::thread::spawn(|| {
                loop {
                    std::thread::sleep(Duration::from_secs(1));
                    let deadlines = Self::deadlines().lock().unwrap();
                    for (_, socket) in deadlines.1.values().filter(|(when, _)| *when < Instant::now()) {
                        eprintln!("no answer within {PATIENCE:?}");
                        let _ = socket.shutdown(std::net::Shutdown::Both);
                    }
                }
            });
            Mutex::default()
        })
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        Self::deadlines().lock().unwrap().1.remove(&self.0);
    }
}
