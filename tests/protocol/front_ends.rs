//! What front-ends that cannot be run here say, message by message, as they were seen to (`strace`) or as their sources
//! send it: which messages, in which order, how long, with or without a wish for an answer.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::SendFlags;

use super::{DISK_BYTES, assert_works, daemon, with_disks};
use crate::common::frontend::features::{FLUSH, IN_ORDER, RO};
use crate::common::frontend::memory::{Memory, Span};
use crate::common::frontend::message::{
    GET_CONFIG, GET_FEATURES, GET_PROTOCOL_FEATURES, GET_QUEUE_NUM, GET_VRING_BASE, SET_BACKEND_REQ_FD,
    SET_CONFIG, SET_FEATURES, SET_MEM_TABLE, SET_OWNER, SET_PROTOCOL_FEATURES, SET_VRING_ADDR,
    SET_VRING_BASE, SET_VRING_CALL, SET_VRING_ENABLE, SET_VRING_KICK, SET_VRING_NUM,
};
use crate::common::frontend::request::{OK, Request};
use crate::common::frontend::ring::{Ring, Vring};
use crate::common::frontend::wire::{Message, VERSION, Verdict, Wire};
use crate::common::frontend::{EVENT_IDX, INDIRECT_DESC, PROTOCOL_FEATURES, SPANS, VERSION_1, fd_of};
use crate::common::{PATIENCE, is_readable, pattern, wait_for, wait_readable};

/// Protocol features.
const MQ: u64 = 1 << 0;
const REPLY_ACK: u64 = 1 << 3;
const BACKEND_REQ: u64 = 1 << 5;
const CONFIG: u64 = 1 << 9;
const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
const DEVICE_STATE: u64 = 1 << 19;

/// Room for the configuration in each message of SPDK's.
const SPDK_CONFIG_BYTES: usize = 256;

/// A front-end's end of the socket.
struct FrontEnd {
    wire: Wire,
    /// Whether it asks to be told how each message went.
    needs_reply: bool,
}

impl FrontEnd {
    fn say(&self, code: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        if self.needs_reply {
            assert_eq!(self.wire.tell(code, payload, fds), Verdict::Ack, "message {code}");
        } else {
            assert!(self.wire.send(code, VERSION, payload, fds), "message {code}: closed");
        }
    }

    fn ask(&self, code: u32, payload: &[u8]) -> Message {
        assert!(self.wire.send(code, VERSION, payload, &[]), "message {code}: closed");
        let answer = self.wire.receive().unwrap_or_else(|| panic!("message {code}: closed"));
        assert_eq!(answer.code, code);
        answer
    }

    /// As much of the configuration, in a message with as much room.
    fn config(&self, offset: u32, bytes: u32) -> Vec<u8> {
        let mut payload = [offset, bytes, 0].map(u32::to_le_bytes).as_flattened().to_vec();
        payload.resize(12 + bytes as usize, 0);
        let answer = self.ask(GET_CONFIG, &payload);
        assert_eq!(answer.payload.len(), payload.len(), "{bytes} bytes of configuration at {offset}");
        answer.payload[12..].to_vec()
    }

    fn share(&self, memory: &Memory, room: usize) {
        let regions = memory.announcement();
        let mut table = [regions.len() as u32, 0].map(u32::to_le_bytes).as_flattened().to_vec();
        for region in &regions {
            let fields =
                [region.guest_phys_addr, region.memory_size, region.userspace_addr, region.mmap_offset];
            table.extend_from_slice(fields.map(u64::to_le_bytes).as_flattened());
        }
        table.resize(8 + room.max(regions.len()) * 32, 0);
        self.say(SET_MEM_TABLE, &table, &vec![memory.fd(); regions.len()]);
    }

    fn size(&self, ring: &Vring) {
        self.say(SET_VRING_NUM, &state(ring, ring.size.into()), &[]);
    }

    fn base(&self, ring: &Vring, base: u32) {
        self.say(SET_VRING_BASE, &state(ring, base), &[]);
    }

    fn addresses(&self, ring: &Vring, log: u64) {
        let fields = [Ring::user(ring.descriptors), Ring::user(ring.used), Ring::user(ring.available), log];
        let fields = fields.map(u64::to_le_bytes);
        self.say(SET_VRING_ADDR, &[state(ring, 0).as_slice(), fields.as_flattened()].concat(), &[]);
    }

    fn call(&self, ring: &Vring) {
        self.say(SET_VRING_CALL, &number(ring), &[fd_of(&*ring.call.current())]);
    }

    fn kick(&self, ring: &Vring) {
        self.say(SET_VRING_KICK, &number(ring), &[fd_of(&*ring.kick.current())]);
    }

    fn enable(&self, ring: &Vring, enable: bool) {
        self.say(SET_VRING_ENABLE, &state(ring, enable.into()), &[]);
    }

    /// What Cloud Hypervisor, Firecracker and crosvm say in this order, but for what comes before and in between.
    fn addresses_base_events(&self, ring: &Ring) {
        self.addresses(ring, 0);
        self.base(ring, ring.available_base());
        self.call(ring);
        self.kick(ring);
    }
}

/// Connects, and lets features be negotiated: those of `features` and `protocol` must all be offered.
fn connect(path: &std::path::Path, features: u64, protocol: u64) -> FrontEnd {
    let front_end = FrontEnd { wire: Wire::connect(path), needs_reply: false };
    front_end.say(SET_OWNER, &[], &[]);
    let offered = front_end.ask(GET_FEATURES, &[]).value();
    assert_eq!(features & !offered, 0, "virtio features that are missed");
    let offered = front_end.ask(GET_PROTOCOL_FEATURES, &[]).value();
    assert_eq!(protocol & !offered, 0, "protocol features that are missed");
    front_end
}

fn state(ring: &Vring, number: u32) -> Vec<u8> {
    [u32::from(ring.index), number].map(u32::to_le_bytes).as_flattened().to_vec()
}

fn number(ring: &Vring) -> [u8; 8] {
    u64::from(ring.index).to_le_bytes()
}

fn capacity(config: &[u8]) -> u64 {
    u64::from_le_bytes(config[..8].try_into().unwrap())
}

/// User-Mode Linux 6.1.176, as seen: one region in a table with room for two, a call that is one end of a stream socket
/// pair, and a driver that is taken away by ENABLE 0 alone and comes back with an empty ring at base 0, twelve times.
#[test]
fn user_mode_linux_binds_its_driver_again_and_again() {
    const FEATURES: u64 = 0x5_7000_7e44;
    // Where it looks, and as far as what it looks for: it always asks from 0 on.
    const FIELDS: [u32; 13] = [0x10, 0x24, 0x21, 0x18, 0x19, 0x1a, 0x1c, 0x20, 0x30, 0x28, 0x2c, 0x34, 0x08];
    let daemon = daemon("");
    let memory = Memory::new(&[Span { guest_start: 0x2b24_6000, bytes: 64 << 20 }]);
    let mut linux = connect(&daemon.socket(0), FEATURES, REPLY_ACK | BACKEND_REQ | CONFIG);
    linux.needs_reply = true;
    linux.say(SET_PROTOCOL_FEATURES, &(REPLY_ACK | BACKEND_REQ | CONFIG).to_le_bytes(), &[]);
    let (channel, back_end) = UnixStream::pair().unwrap();
    linux.say(SET_BACKEND_REQ_FD, &[], &[back_end.as_fd()]);
    drop(back_end);
    let mut content = Vec::new();
    for round in 0..12 {
        assert_eq!(linux.ask(GET_FEATURES, &[]).value() & FEATURES, FEATURES);
        linux.say(SET_FEATURES, &FEATURES.to_le_bytes(), &[]);
        assert_eq!(capacity(&linux.config(0, 0x10)), DISK_BYTES / 512);
        linux.share(&memory, 2);
        let mut ring = Ring::new(&memory, 0, 256, FEATURES);
        let (call, back_end) = UnixStream::pair().unwrap();
        let kick = eventfd(0, EventfdFlags::empty()).unwrap();
        linux.say(SET_VRING_CALL, &[0; 8], &[back_end.as_fd()]);
        drop(back_end);
        linux.size(&ring);
        linux.base(&ring, 0);
        linux.addresses(&ring, u64::MAX);
        linux.say(SET_VRING_KICK, &[0; 8], &[kick.as_fd()]);
        linux.enable(&ring, true);
        for field in FIELDS {
            linux.config(0, field);
        }
        let mut run = |request: &Request| {
            let head = ring.submit(request);
            rustix::io::write(&kick, &1_u64.to_le_bytes()).unwrap();
            let used = wait_for("the request is done", || ring.next_used());
            assert_eq!(used.head, head, "round {round}");
            wait_readable("the socket says so", &call);
            let mut signals = [0; 4096];
            let bytes = rustix::io::read(&call, &mut signals).unwrap();
            assert!(bytes > 0 && bytes % 8 == 0, "round {round}: {bytes} bytes");
            ring.answer(request, used)
        };
        if round > 0 {
            assert!(run(&Request::read(0, 4096)).data == content, "round {round}");
        }
        content = pattern(round, 4096);
        assert_eq!(run(&Request::write(0, &content)).status, OK, "round {round}");
        linux.enable(&ring, false);
    }
    assert!(!is_readable(&channel, std::time::Duration::ZERO), "nothing has changed that it must be told of");
    assert!(!daemon.log().contains("WARN"), "{}", daemon.log());
}

/// Its call is a socket that nobody reads, until it is full: the guest has been woken, and all goes on.
#[test]
fn a_call_socket_that_is_full_holds_nobody_up() {
    let daemon = daemon("");
    let memory = Memory::new(&SPANS);
    let linux = connect(&daemon.socket(0), VERSION_1 | PROTOCOL_FEATURES, 0);
    linux.say(SET_FEATURES, &(VERSION_1 | PROTOCOL_FEATURES).to_le_bytes(), &[]);
    linux.share(&memory, 2);
    let mut ring = Ring::new(&memory, 0, 64, VERSION_1);
    let (call, back_end) = UnixStream::pair().unwrap();
    linux.say(SET_VRING_CALL, &[0; 8], &[back_end.as_fd()]);
    linux.size(&ring);
    linux.base(&ring, 0);
    linux.addresses(&ring, u64::MAX);
    linux.kick(&ring);
    linux.enable(&ring, true);
    // A stream socket holds some hundred signals.
    for _ in 0..100 {
        let heads: Vec<u16> = (0..ring.slots()).map(|_| ring.submit(&Request::read(0, 512))).collect();
        ring.kick.signal();
        for head in heads {
            assert_eq!(wait_for("the request is done", || ring.next_used()).head, head);
        }
    }
    let more = rustix::net::send(&back_end, &[0; 8], SendFlags::DONTWAIT);
    println!("the socket is full: {}", more == Err(rustix::io::Errno::AGAIN));
    assert!(is_readable(&call, PATIENCE));
    let flags = rustix::fs::fcntl_getfl(&back_end).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK), "flags that the front-end shares are changed");
}

/// SPDK's initiator (lib/virtio): no answers are asked for, protocol features come after the virtio ones, ENABLE comes
/// before everything else of a ring, a table is followed by a question instead of an acknowledgement, and messages about
/// the configuration carry 256 bytes whatever they are about.
#[test]
fn spdk_enables_its_rings_first() {
    const FEATURES: u64 = VERSION_1 | PROTOCOL_FEATURES | EVENT_IDX | 1 << 11 | 1 << 12 | 1 << 13 | FLUSH;
    let daemon = daemon("");
    let front_end = FrontEnd { wire: Wire::connect(&daemon.socket(0)), needs_reply: false };
    front_end.say(SET_OWNER, &[], &[]);
    assert_eq!(front_end.ask(GET_FEATURES, &[]).value() & FEATURES, FEATURES);
    front_end.say(SET_FEATURES, &FEATURES.to_le_bytes(), &[]);
    assert_eq!(front_end.ask(GET_PROTOCOL_FEATURES, &[]).value() & (MQ | CONFIG), MQ | CONFIG);
    front_end.say(SET_PROTOCOL_FEATURES, &(MQ | CONFIG).to_le_bytes(), &[]);
    let config = front_end.config(0, SPDK_CONFIG_BYTES as u32);
    assert_eq!(capacity(&config), DISK_BYTES / 512);
    let memory = Memory::new(&SPANS);
    for _ in 0..3 {
        let mut rings = [0, 1].map(|index| Ring::new(&memory, index, 512, FEATURES));
        rings.iter().for_each(|ring| front_end.enable(ring, true));
        assert_eq!(front_end.ask(GET_QUEUE_NUM, &[]).value(), 64);
        rings.iter().for_each(|ring| front_end.call(ring));
        front_end.share(&memory, 0);
        front_end.ask(GET_FEATURES, &[]);
        for ring in &rings {
            front_end.size(ring);
            front_end.base(ring, 0);
            front_end.addresses(ring, 0);
            front_end.kick(ring);
        }
        rings.iter_mut().for_each(|ring| assert_works(ring, 0));
        for ring in &rings {
            assert_eq!(front_end.ask(GET_VRING_BASE, &state(ring, 0)).payload[4..], [2, 0, 0, 0]);
        }
    }
    // The `writeback` byte.
    let mut payload = [32_u32, 1, 0].map(u32::to_le_bytes).as_flattened().to_vec();
    payload.resize(12 + SPDK_CONFIG_BYTES, 0);
    front_end.say(SET_CONFIG, &payload, &[]);
    assert_eq!(
        front_end.config(0, SPDK_CONFIG_BYTES as u32)[32],
        0,
        "a byte in a message with room for more"
    );
}

/// crosvm (autumn 2026) with its default options: all queues that are offered, each of 32,768 entries, no answers asked
/// for though REPLY_ACK is acknowledged; it sleeps and wakes on the same connection.
#[test]
fn crosvm_asks_for_rings_of_32768() {
    const FEATURES: u64 = VERSION_1 | PROTOCOL_FEATURES | EVENT_IDX | INDIRECT_DESC | 1 << 12 | FLUSH;
    let protocol = CONFIG | MQ | BACKEND_REQ | DEVICE_STATE | REPLY_ACK;
    let daemon = daemon("");
    let crosvm = connect(&daemon.socket(0), FEATURES, protocol);
    crosvm.say(SET_PROTOCOL_FEATURES, &protocol.to_le_bytes(), &[]);
    let (_channel, back_end) = UnixStream::pair().unwrap();
    crosvm.say(SET_BACKEND_REQ_FD, &[], &[back_end.as_fd()]);
    assert_eq!(crosvm.ask(GET_QUEUE_NUM, &[]).value(), 64);
    for (offset, bytes) in [(0, 4), (4, 4), (12, 4), (20, 4), (32, 1), (34, 2), (56, 1)] {
        crosvm.config(offset, bytes);
    }
    crosvm.say(SET_FEATURES, &FEATURES.to_le_bytes(), &[]);
    let memory = Memory::new(&[Span { guest_start: 0, bytes: 4 << 30 }]);
    let mut rings = [0, 1, 63].map(|index| Ring::new(&memory, index, 32_768, FEATURES));
    for round in 0..3 {
        crosvm.share(&memory, 0);
        for ring in &rings {
            crosvm.size(ring);
            crosvm.addresses_base_events(ring);
            crosvm.enable(ring, true);
        }
        rings.iter_mut().for_each(|ring| assert_works(ring, round * 8));
        // More at once than a ring of 1024 has room for.
        for ring in &mut rings {
            let read = Request::read(0, 512);
            let heads: Vec<u16> = (0..ring.slots().min(3000)).map(|_| ring.submit(&read)).collect();
            ring.kick.signal();
            for head in heads {
                let used = ring.wait();
                assert_eq!((used.head, ring.answer(&read, used).status), (head, OK));
            }
        }
        for ring in &rings {
            crosvm.enable(ring, false);
            let base = crosvm.ask(GET_VRING_BASE, &state(ring, 0)).payload;
            assert_eq!(base[4..], ring.available_base().to_le_bytes());
        }
    }
    assert!(!daemon.log().contains("WARN"), "{}", daemon.log());
}

/// Cloud Hypervisor v53: all sizes first, each ring's base is the driver's index and comes after its addresses, ENABLE
/// last. It pauses with ENABLE 0 alone while the driver goes on, and on resuming says everything again, on the same
/// connection: what the driver has made available meanwhile, before the base that is sent, is not lost.
#[test]
fn cloud_hypervisor_resumes_on_a_live_connection() {
    const FEATURES: u64 =
        VERSION_1 | PROTOCOL_FEATURES | EVENT_IDX | INDIRECT_DESC | 1 << 11 | 1 << 12 | FLUSH;
    let protocol = CONFIG | MQ | CONFIGURE_MEM_SLOTS | REPLY_ACK | DEVICE_STATE;
    for features in [FEATURES, FEATURES | IN_ORDER] {
        let daemon = daemon("");
        let mut vmm = connect(&daemon.socket(0), features, protocol);
        vmm.say(SET_PROTOCOL_FEATURES, &protocol.to_le_bytes(), &[]);
        vmm.needs_reply = true;
        assert_eq!(vmm.ask(GET_QUEUE_NUM, &[]).value(), 64);
        assert_eq!(capacity(&vmm.config(0, 60)), DISK_BYTES / 512);
        let memory = Memory::new(&SPANS);
        let mut rings = [0, 1].map(|index| Ring::new(&memory, index, 128, features));
        let read = Request::read(0, 4096);
        for round in 0..12_u64 {
            vmm.say(SET_FEATURES, &features.to_le_bytes(), &[]);
            vmm.share(&memory, 0);
            rings.iter().for_each(|ring| vmm.size(ring));
            rings.iter().for_each(|ring| vmm.addresses_base_events(ring));
            rings.iter().for_each(|ring| vmm.enable(ring, true));
            if round > 0 {
                for ring in &mut rings {
                    for _ in 0..ring.slots() {
                        let used = ring.wait();
                        assert_eq!(ring.answer(&read, used).status, OK, "round {round}");
                    }
                    assert_eq!(ring.next_used(), None, "round {round}: something was done twice");
                }
            }
            rings.iter_mut().for_each(|ring| assert_works(ring, round * 8));
            rings.iter().for_each(|ring| vmm.enable(ring, false));
            for ring in &mut rings {
                for _ in 0..ring.slots() {
                    ring.submit(&read);
                }
                ring.kick.signal();
            }
        }
    }
}

/// Firecracker v1.16: knows nothing but CONFIG, asks for 60 bytes of it, and again after its user's PATCH. Without
/// FLUSH where its user has not asked for `Writeback`.
#[test]
fn firecracker_wants_nothing_but_the_configuration() {
    for flush in [0, FLUSH] {
        let features = VERSION_1 | PROTOCOL_FEATURES | EVENT_IDX | flush;
        let daemon = daemon("");
        let vmm = connect(&daemon.socket(0), features, CONFIG);
        vmm.say(SET_PROTOCOL_FEATURES, &CONFIG.to_le_bytes(), &[]);
        assert_eq!(capacity(&vmm.config(0, 60)), DISK_BYTES / 512);
        vmm.say(SET_FEATURES, &features.to_le_bytes(), &[]);
        let memory = Memory::new(&SPANS);
        vmm.share(&memory, 0);
        let mut ring = Ring::new(&memory, 0, 256, features);
        vmm.size(&ring);
        vmm.addresses_base_events(&ring);
        vmm.enable(&ring, true);
        assert_works(&mut ring, 0);
        let file = std::fs::File::options().write(true).open(daemon.image(0)).unwrap();
        file.set_len(2 * DISK_BYTES).unwrap();
        drop(file);
        wait_for("the PATCH shows the new size", || {
            (capacity(&vmm.config(0, 60)) == 2 * DISK_BYTES / 512).then_some(())
        });
        assert_works(&mut ring, 2 * DISK_BYTES / 512 - 8);
    }
    // A read-only disk is read-only by its own bit.
    let frozen = with_disks(&["readonly=on"]).start();
    connect(&frozen.socket(0), VERSION_1 | PROTOCOL_FEATURES | RO, CONFIG);
}
