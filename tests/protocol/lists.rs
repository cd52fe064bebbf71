//! Messages that carry a list may have room for more than they count (User-Mode Linux: a memory table of one region in
//! 72 bytes), never for less.

use super::{assert_works, daemon};
use crate::common::frontend::memory::Span;
use crate::common::frontend::message::{GET_CONFIG, SET_CONFIG, SET_MEM_TABLE};
use crate::common::frontend::wire::Verdict;
use crate::common::frontend::{Options, Session};

const SPAN: Span = Span { guest_start: 0x10_0000, bytes: 64 << 20 };

const WRITEBACK_OFFSET: u32 = 32;

/// The table of the session's one region, counted as `regions`, in a body of `body_bytes`.
fn table(session: &Session, regions: u32, body_bytes: usize) -> Vec<u8> {
    let region = session.memory.announcement().remove(0);
    let words = [region.guest_phys_addr, region.memory_size, region.userspace_addr, region.mmap_offset];
    let mut body =
        [u64::from(regions)].iter().chain(&words).flat_map(|it| it.to_ne_bytes()).collect::<Vec<_>>();
    body.resize(body_bytes, 0xee);
    body
}

fn config(offset: u32, bytes: u32, room: usize) -> Vec<u8> {
    let head = [offset, bytes, 0].map(u32::to_ne_bytes);
    [head.as_flattened(), &vec![0; room]].concat()
}

fn session(daemon: &crate::common::daemon::Daemon) -> Session {
    let mut session = Session::open(&daemon.socket(0), &[SPAN]);
    session.negotiate(&Options::default());
    session
}

#[test]
fn a_memory_table_may_have_room_for_more_regions_than_it_has() {
    let daemon = daemon("");
    for body_bytes in [40, 41, 72, 4096] {
        let session = session(&daemon);
        let fd = session.memory.fd();
        let verdict = session.wire.tell(SET_MEM_TABLE, &table(&session, 1, body_bytes), &[fd]);
        assert_eq!(verdict, Verdict::Ack, "{body_bytes} bytes");
        assert_works(&mut session.ring(0, 64), 0);
    }
}

#[test]
fn parts_of_the_configuration_may_come_with_more_room_than_they_fill() {
    let daemon = daemon("");
    let session = session(&daemon);
    let whole = session.wire.ask(GET_CONFIG, &config(0, 60, 60), &[]).unwrap().payload;
    assert_eq!(whole.len(), 12 + 60);
    for room in [61, 256, 4096 - 12] {
        let answer = session.wire.ask(GET_CONFIG, &config(0, 60, room), &[]).unwrap();
        assert!(answer.payload == whole, "{room} bytes of room: {answer:?}");
    }
    let written = session.wire.tell(SET_CONFIG, &config(WRITEBACK_OFFSET, 1, 64), &[]);
    assert_eq!(written, Verdict::Ack);
    assert_eq!(session.config(WRITEBACK_OFFSET, 1).unwrap(), [0]);
}

#[test]
fn what_counts_more_than_its_body_has_is_refused_in_numbers() {
    let daemon = daemon("");
    let session = session(&daemon);
    let fd = session.memory.fd();
    let told = |code, body: &[u8], files: &[_]| session.wire.tell(code, body, files);
    for (what, verdict, log) in [
        (
            "two regions",
            told(SET_MEM_TABLE, &table(&session, 2, 71), &[fd, fd]),
            "its payload has 71 bytes, 2 memory regions take 72",
        ),
        (
            "more regions than there are",
            told(SET_MEM_TABLE, &table(&session, u32::MAX, 4096), &[fd]),
            "4294967295 memory regions take 137438953448",
        ),
        ("no region", told(SET_MEM_TABLE, &table(&session, 0, 40), &[fd]), "a table of 0 memory regions"),
        (
            "two descriptors",
            told(SET_MEM_TABLE, &table(&session, 1, 40), &[fd, fd]),
            "1 memory regions come with 2 descriptors",
        ),
    ] {
        assert_eq!(verdict, Verdict::Nack, "{what}");
        daemon.wait_for_log(log);
    }
    let bytes = config(WRITEBACK_OFFSET, 2, 1);
    assert_eq!(session.wire.tell(SET_CONFIG, &bytes, &[]), Verdict::Nack);
    daemon.wait_for_log("its payload has 13 bytes, 2 bytes of the configuration take 14");
    session.share_memory();
    assert_works(&mut session.ring(0, 64), 0);
}
