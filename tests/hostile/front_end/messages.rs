//! Messages of a wrong form, with numbers that do not exist, or at a wrong time.

use std::os::fd::OwnedFd;

use rustix::event::EventfdFlags;

use super::Stage::{Connected, Negotiated, Shared};
use super::{OF_RING, Said, is_question, refusal, state, words};
use crate::common::frontend::RING_PACKED;
use crate::common::frontend::message::*;
use crate::common::frontend::wire::{NEED_REPLY, REPLY, VERSION};
use crate::table::Answer::{Done, HungUp, Nack, Silence};
use crate::table::{Kind, Row};

/// Rings of a disk.
const RINGS: u32 = 64;

/// Longest payload.
const MOST_BYTES: usize = 4096;

/// Bit of the number in a message with a ring's descriptor: there is none.
const NO_DESCRIPTOR: u64 = 1 << 8;

/// The rows.
pub(super) fn rows() -> Vec<Row> {
    let all = [sizes(), headers(), unknown(), lists(), numbers(), early(), late(), twice(), descriptors()];
    all.into_iter().flatten().map(|said| said.row(Kind::Message)).collect()
}

/// Messages whose payload has one length: their name, number, and that.
const OF_ONE_LENGTH: [(&str, u32, usize); 21] = [
    ("GET_FEATURES", GET_FEATURES, 0),
    ("SET_FEATURES", SET_FEATURES, 8),
    ("SET_OWNER", SET_OWNER, 0),
    ("RESET_OWNER", RESET_OWNER, 0),
    ("SET_LOG_BASE", SET_LOG_BASE, 16),
    ("SET_VRING_NUM", SET_VRING_NUM, 8),
    ("SET_VRING_ADDR", SET_VRING_ADDR, 40),
    ("SET_VRING_BASE", SET_VRING_BASE, 8),
    ("GET_VRING_BASE", GET_VRING_BASE, 8),
    ("SET_VRING_KICK", SET_VRING_KICK, 8),
    ("SET_VRING_CALL", SET_VRING_CALL, 8),
    ("SET_VRING_ERR", SET_VRING_ERR, 8),
    ("GET_PROTOCOL_FEATURES", GET_PROTOCOL_FEATURES, 0),
    ("SET_PROTOCOL_FEATURES", SET_PROTOCOL_FEATURES, 8),
    ("GET_QUEUE_NUM", GET_QUEUE_NUM, 0),
    ("SET_VRING_ENABLE", SET_VRING_ENABLE, 8),
    ("RESET_DEVICE", RESET_DEVICE, 0),
    ("GET_MAX_MEM_SLOTS", GET_MAX_MEM_SLOTS, 0),
    ("ADD_MEM_REG", ADD_MEM_REG, 40),
    ("REM_MEM_REG", REM_MEM_REG, 40),
    ("SET_DEVICE_STATE_FD", SET_DEVICE_STATE_FD, 8),
];

fn sizes() -> Vec<Said> {
    let wrong = |(name, code, right): (&'static str, u32, usize)| {
        let lengths =
            if right == 0 { vec![1, 8, MOST_BYTES] } else { vec![0, right - 1, right + 1, MOST_BYTES] };
        lengths.into_iter().map(move |bytes| {
            let said = Said::new(format!("{name} of {bytes} bytes"), code, &vec![0; bytes], refusal(code));
            said.logged(format!("its payload has {bytes} bytes, not {right}"))
        })
    };
    OF_ONE_LENGTH.into_iter().flat_map(wrong).collect()
}

/// What is no message at all.
fn headers() -> Vec<Said> {
    let flags = [
        ("version 0", NEED_REPLY),
        ("version 2", 2 | NEED_REPLY),
        ("version 3", 3 | NEED_REPLY),
        ("an answer that nobody asked for", VERSION | REPLY),
        ("a flag that is not defined", VERSION | NEED_REPLY | 0x10),
        ("the last flag", VERSION | NEED_REPLY | 0x8000_0000),
        ("all flags", u32::MAX),
        ("no flags", 0),
    ];
    let of_flags = |(name, flags): (&str, u32)| {
        let said = Said::new(name, SET_VRING_NUM, &state(0, 64), HungUp).flags(flags);
        said.logged("not a vhost-user request")
    };
    let too_long = Said::new("a payload of a byte too many", SET_VRING_NUM, &[0; MOST_BYTES + 1], HungUp);
    let mut all: Vec<Said> = flags.into_iter().map(of_flags).collect();
    all.push(too_long.logged("payload of 4097 bytes"));
    all
}

fn unknown() -> Vec<Said> {
    let known = "is not a known request";
    let codes = [0, 45, 46, 100, 0x8000_0000, u32::MAX];
    let of_code = |code: u32| Said::new(format!("message {code}"), code, &[0xff; 8], Nack).logged(known);
    let mut all: Vec<Said> = codes.into_iter().map(of_code).collect();
    for (name, code, bytes) in [
        ("SET_LOG_FD", SET_LOG_FD, 0),
        ("SEND_RARP", SEND_RARP, 8),
        ("NET_SET_MTU", NET_SET_MTU, 8),
        ("IOTLB_MSG", IOTLB_MSG, 40),
        ("SET_VRING_ENDIAN", SET_VRING_ENDIAN, 8),
        ("CREATE_CRYPTO_SESSION", CREATE_CRYPTO_SESSION, 8),
        ("CLOSE_CRYPTO_SESSION", CLOSE_CRYPTO_SESSION, 8),
        ("GET_INFLIGHT_FD", GET_INFLIGHT_FD, 24),
        ("SET_INFLIGHT_FD", SET_INFLIGHT_FD, 24),
        ("GPU_SET_SOCKET", GPU_SET_SOCKET, 0),
        ("SET_STATUS", SET_STATUS, 8),
        ("GET_STATUS", GET_STATUS, 8),
        ("GET_SHARED_OBJECT", GET_SHARED_OBJECT, 16),
        ("GET_SHMEM_CONFIG", GET_SHMEM_CONFIG, 0),
    ] {
        let reason = if is_question(code) || code == SET_INFLIGHT_FD {
            "was not negotiated"
        } else {
            "is not supported"
        };
        let name = format!("{name}, which is not offered");
        all.push(Said::new(name, code, &vec![0; bytes], refusal(code)).logged(reason));
    }
    all
}

/// The head of a part of the configuration, and room.
pub(super) fn config(offset: u32, bytes: u32, room: usize) -> Vec<u8> {
    [[offset, bytes, 0].map(u32::to_le_bytes).as_flattened(), &vec![0; room]].concat()
}

fn lists() -> Vec<Said> {
    let table = |count: u32, room: usize| {
        let mut bytes = state(count, 0);
        bytes.resize(room, 0);
        bytes
    };
    let range = "of the configuration, whose space has 1 to 4096";
    vec![
        Said::new("a table without a head", SET_MEM_TABLE, &[0; 7], Nack).logged("has 7 bytes, not 8"),
        Said::new("a table of no regions", SET_MEM_TABLE, &table(0, 8), Nack)
            .logged("a table of 0 memory regions"),
        Said::new("a table without its region", SET_MEM_TABLE, &table(1, 8), Nack)
            .logged("1 memory regions take 40"),
        Said::new("a table of a region and a half", SET_MEM_TABLE, &table(2, 56), Nack)
            .logged("2 memory regions take 72"),
        Said::new("a table of 33 regions", SET_MEM_TABLE, &table(33, 1064), Nack).logged("a table of 33"),
        Said::new("a table of 2^32 - 1 regions", SET_MEM_TABLE, &table(u32::MAX, 4096), Nack)
            .logged("4294967295 memory regions take"),
        Said::new("no part of the configuration", GET_CONFIG, &config(0, 0, 0), HungUp).logged(range),
        Said::new("half a question for the configuration", GET_CONFIG, &[0; 11], HungUp)
            .logged("has 11 bytes, not 12"),
        Said::new("more than the configuration", GET_CONFIG, &config(0, 4097, 4084), HungUp).logged(range),
        Said::new("behind the configuration", GET_CONFIG, &config(4096, 1, 1), HungUp).logged(range),
        Said::new("an offset that overflows", GET_CONFIG, &config(u32::MAX, 2, 2), HungUp).logged(range),
        Said::new("room for less than is asked", GET_CONFIG, &config(0, 60, 59), HungUp)
            .logged("60 bytes of the configuration take 72"),
        Said::new("the capacity is written", SET_CONFIG, &config(0, 8, 8), Nack)
            .logged("only the writeback byte"),
        Said::new("behind the cache mode is written", SET_CONFIG, &config(33, 1, 1), Nack)
            .logged("only the writeback byte"),
        Said::new("a third cache mode", SET_CONFIG, &[config(32, 1, 0), vec![2]].concat(), Nack)
            .logged("only the writeback byte"),
        Said::new("the configuration is written for 4 GiB", SET_CONFIG, &config(32, u32::MAX, 1), Nack)
            .logged(range),
    ]
}

fn numbers() -> Vec<Said> {
    let mut all = Vec::new();
    for (name, code) in [
        ("SET_VRING_NUM", SET_VRING_NUM),
        ("SET_VRING_BASE", SET_VRING_BASE),
        ("GET_VRING_BASE", GET_VRING_BASE),
        ("SET_VRING_ENABLE", SET_VRING_ENABLE),
        ("SET_VRING_ADDR", SET_VRING_ADDR),
    ] {
        for ring in [RINGS, 256, 65_536, u32::MAX] {
            let rest = if code == SET_VRING_ADDR { vec![0; 32] } else { Vec::new() };
            let number = match code {
                SET_VRING_ENABLE => 1,
                SET_VRING_ADDR => 0,
                _ => 64,
            };
            let payload = [state(ring, number), rest].concat();
            all.push(
                Said::new(format!("{name} of ring {ring}"), code, &payload, refusal(code))
                    .logged(format!("ring {ring} does not exist")),
            );
        }
    }
    for (name, code) in OF_RING {
        for ring in [RINGS, 255] {
            let said = Said::new(format!("{name} of ring {ring}"), code, &words(&[ring.into()]), Nack);
            all.push(said.with(event).logged(format!("ring {ring} does not exist")));
        }
    }
    for size in [0, 3, 6, 100, 1023, 1025, 32_767, 32_769, 65_535, 65_536, 65_536 + 64, u32::MAX] {
        all.push(
            Said::new(format!("a ring of {size} descriptors"), SET_VRING_NUM, &state(0, size), Nack)
                .logged(format!("queue size {size} is not")),
        );
    }
    all
}

pub(super) fn event() -> Vec<OwnedFd> {
    vec![rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap()]
}

/// Before it is time for them.
fn early() -> Vec<Said> {
    vec![
        Said::new("a ring's size before features", SET_VRING_NUM, &state(0, 64), Silence).at(Connected),
        Said::new("a kick before features", SET_VRING_KICK, &words(&[0]), Silence).with(event).at(Connected),
        Said::new("a ring is enabled before features", SET_VRING_ENABLE, &state(0, 1), Silence).at(Connected),
        Said::new("a ring is stopped before features", GET_VRING_BASE, &state(0, 0), Done).at(Connected),
        Said::new("the configuration before it is negotiated", GET_CONFIG, &config(0, 60, 60), HungUp)
            .at(Connected),
        Said::new("the cache mode before it is negotiated", SET_CONFIG, &config(32, 1, 1), Silence)
            .at(Connected),
        Said::new(
            "a slot before slots are negotiated",
            ADD_MEM_REG,
            &words(&[0, 1 << 40, 4096, 0, 0]),
            Silence,
        )
        .at(Connected)
        .with(memory),
        Said::new("a table of no memory before features", SET_MEM_TABLE, &words(&[0]), Silence).at(Connected),
        Said::new("a channel before it is negotiated", SET_BACKEND_REQ_FD, &[], Silence)
            .at(Connected)
            .with(socket)
            .logged("was not negotiated"),
        Said::new("a device's state before it is negotiated", SET_DEVICE_STATE_FD, &words(&[0]), Done)
            .at(Connected)
            .with(memory),
        Said::new("a dirty log before it is negotiated", SET_LOG_BASE, &words(&[4096, 0]), HungUp)
            .at(Connected)
            .with(memory),
        Said::new("postcopy, which is not offered", POSTCOPY_ADVISE, &[], HungUp)
            .logged("was not negotiated"),
        Said::new("postcopy begins unannounced", POSTCOPY_LISTEN, &[], Nack).logged("was not negotiated"),
        Said::new("postcopy ends that never began", POSTCOPY_END, &[], Nack).logged("was not negotiated"),
        Said::new("a ring without a kick", SET_VRING_KICK, &words(&[9 | NO_DESCRIPTOR]), Nack)
            .logged("ring 9: kicks without a descriptor are not supported"),
        Said::new("a ring without a call", SET_VRING_CALL, &words(&[9 | NO_DESCRIPTOR]), Done),
        Said::new("a kick before memory", SET_VRING_KICK, &words(&[0]), Done).with(event).at(Negotiated),
        Said::new("a kick before addresses", SET_VRING_KICK, &words(&[9]), Done).with(event).at(Shared),
        Said::new("a ring that was never set up is enabled", SET_VRING_ENABLE, &state(9, 1), Done),
        Said::new("a ring that never ran is stopped", GET_VRING_BASE, &state(9, 0), Done),
        Said::new("a state that was not begun is checked", CHECK_DEVICE_STATE, &[], Nack)
            .logged("none was saved or loaded"),
        Said::new(
            "a slot that is not there is removed",
            REM_MEM_REG,
            &words(&[0, 1 << 40, 4096, 0, 0]),
            Nack,
        )
        .logged("no region of 0x1000 bytes at 0x10000000000"),
    ]
}

/// When it is too late for them.
fn late() -> Vec<Said> {
    vec![
        Said::new("all features while a ring runs", SET_FEATURES, &words(&[u64::MAX]), Done).stops_ring(),
        Said::new("the kind of a running ring is changed", SET_FEATURES, &words(&[RING_PACKED]), Done)
            .stops_ring(),
        Said::new("no features while a ring runs", SET_FEATURES, &words(&[0]), Done).stops_ring(),
        Said::new("no protocol features while a ring runs", SET_PROTOCOL_FEATURES, &words(&[0]), Silence),
        Said::new("a running ring gets another size", SET_VRING_NUM, &state(0, 128), Done).stops_ring(),
        Said::new("a running ring gets another base", SET_VRING_BASE, &state(0, 999), Done),
        Said::new("the owner is given up while a ring runs", RESET_OWNER, &[], Done).stops_ring(),
        Said::new("the device is reset while a ring runs", RESET_DEVICE, &[], Done).stops_ring(),
        Said::new("the state is saved while a ring runs", SET_DEVICE_STATE_FD, &words(&[0]), Nack)
            .with(memory)
            .logged("only be saved or loaded while no ring runs"),
    ]
}

fn twice() -> Vec<Said> {
    vec![
        Said::new("a second owner", SET_OWNER, &[], Done),
        Said::new("a second call", SET_VRING_CALL, &words(&[0]), Done).with(event).stops_ring(),
        Said::new("a ring is enabled again", SET_VRING_ENABLE, &state(0, 1), Done),
        Said::new("features again", GET_FEATURES, &[], Done),
        Said::new("features again, before all else", GET_FEATURES, &[], Done).at(Connected),
    ]
}

pub(super) fn memory() -> Vec<OwnedFd> {
    let file = rustix::fs::memfd_create("memory", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 1 << 20).unwrap();
    vec![file]
}

fn socket() -> Vec<OwnedFd> {
    vec![std::os::unix::net::UnixStream::pair().unwrap().0.into()]
}

/// So many of the same.
fn many<const COUNT: usize>(make: fn() -> Vec<OwnedFd>) -> Vec<OwnedFd> {
    let one = make().remove(0);
    (0..COUNT).map(|_| one.try_clone().unwrap()).collect()
}

/// Too many descriptors, or too few.
fn descriptors() -> Vec<Said> {
    let mut all = Vec::new();
    for (name, code) in OF_RING {
        let said = |what: &str, word| Said::new(format!("{name} with {what}"), code, &words(&[word]), Nack);
        all.extend([
            said("no descriptor", 0).logged("it comes with 0 descriptors, not with one"),
            said("a descriptor, and says none", NO_DESCRIPTOR)
                .with(event)
                .logged("and says that there is none"),
            said("two descriptors", 0).with(|| many::<2>(event)).logged("it comes with 2 descriptors"),
            said("9 descriptors", 0).with(|| many::<9>(event)).logged("it comes with 9 descriptors"),
            said("32 descriptors", 0).with(|| many::<32>(event)).logged("it comes with 32 descriptors"),
            said("33 descriptors", 0).with(|| many::<33>(event)).logged("it comes with 32 descriptors"),
            said("64 descriptors", 0).with(|| many::<64>(event)).logged("it comes with 32 descriptors"),
        ]);
    }
    let region = words(&[1, 1 << 40, 4096, 1 << 40, 0]);
    for (name, code, payload) in [
        ("SET_MEM_TABLE", SET_MEM_TABLE, &region[..]),
        ("ADD_MEM_REG", ADD_MEM_REG, &region),
        ("SET_BACKEND_REQ_FD", SET_BACKEND_REQ_FD, &[]),
        ("SET_LOG_BASE", SET_LOG_BASE, &words(&[4096, 0])),
        ("SET_DEVICE_STATE_FD", SET_DEVICE_STATE_FD, &words(&[0])),
    ] {
        let said =
            |what: &str| Said::new(format!("{name} with {what}"), code, payload, refusal(code)).at(Shared);
        all.push(said("no descriptor").logged("0 descriptors"));
        all.push(match code {
            SET_BACKEND_REQ_FD => said("two descriptors").with(|| many::<2>(socket)),
            _ => said("two descriptors").with(|| many::<2>(memory)),
        });
        all.push(match code {
            SET_BACKEND_REQ_FD => said("33 descriptors").with(|| many::<33>(socket)),
            _ => said("33 descriptors").with(|| many::<33>(memory)),
        });
    }
    for (name, code, payload) in [
        ("SET_OWNER", SET_OWNER, vec![]),
        ("SET_FEATURES", SET_FEATURES, words(&[0])),
        ("SET_VRING_NUM", SET_VRING_NUM, state(0, 64)),
        ("SET_VRING_ENABLE", SET_VRING_ENABLE, state(0, 1)),
        ("GET_VRING_BASE", GET_VRING_BASE, state(0, 0)),
        ("GET_CONFIG", GET_CONFIG, config(0, 60, 60)),
    ] {
        let unused = |what: &str| Said::new(format!("{name} with {what}"), code, &payload, refusal(code));
        all.extend([
            unused("a descriptor").with(event).logged("1 descriptors, and has no use for any"),
            unused("8 descriptors").with(|| many::<8>(event)).logged("8 descriptors, and has no use"),
            unused("64 descriptors").with(|| many::<64>(event)).logged("descriptors, and has no use"),
        ]);
    }
    all.push(
        Said::new("a message that nobody knows, with descriptors", 77, &[0; 8], Nack)
            .with(|| many::<8>(event)),
    );
    all
}
