//! The table of what hangs: whatever waits for media of one disk, nobody else's request or message waits with it, and all is done
//! when the media answers again.

use std::time::Duration;

use vhost::vhost_user::VhostUserFrontend as _;
use vhost::vhost_user::message::VhostUserConfigFlags;

use crate::common::daemon::Daemon;
use crate::common::frontend::message::RESET_DEVICE;
use crate::common::frontend::request::{DISCARD, OK, OUT, Request, WRITE_ZEROES, range};
use crate::common::frontend::ring::Ring;
use crate::common::frontend::{Options, Session, settle};
use crate::common::{SECTOR_BYTES, metrics, pattern};
use crate::fuse::{BYTES, Media, contents, with_disks};
use crate::others::{Neighbour, say_everything};

/// What is checked once the media answers again.
pub(crate) type Then = Box<dyn FnOnce(&mut Hung)>;

/// What is tried while the media hangs.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) begin: fn(&mut Hung) -> Then,
}

/// The disk that hangs, and its front-end.
pub(crate) struct Hung<'a> {
    daemon: &'a Daemon,
    front_end: Option<(Session, Ring)>,
    /// What is on the disk.
    contents: Vec<u8>,
    /// Counts up, so that no two rows touch the same bytes.
    next: u64,
    packed: bool,
    media: Media,
}

impl Row {
    /// Whether something of it waits for such media.
    pub(crate) fn hangs(&self, media: Media) -> bool {
        let only_writes = ["a write", "20 writes", "a write, and a read of what it writes", "zeroes"]
            .contains(&self.name)
            || self.name.starts_with("a front-end that leaves");
        // A loop device over a file of FUSE has no zeroes for it: the request fails, hung or not.
        let fails = media == Media::Device && self.name.starts_with("zeroes");
        !fails && (media.writes_wait() || !only_writes)
    }
}

impl<'a> Hung<'a> {
    pub(crate) fn of(daemon: &'a Daemon, packed: bool, media: Media) -> Self {
        Self { daemon, front_end: None, contents: contents(), next: 0, packed, media }
    }

    fn connect(&mut self) -> &mut (Session, Ring) {
        let (daemon, packed) = (self.daemon, self.packed);
        self.front_end.get_or_insert_with(|| {
            let session = Session::connect_with(&daemon.socket(0), &Options { packed, ..Options::default() });
            let ring = session.ring(0, 256);
            (session, ring)
        })
    }

    /// A place on the disk that nothing has read or written: 128 KiB of it.
    fn place(&mut self) -> u64 {
        self.next += 1;
        self.next * 256 % (BYTES / 512)
    }

    /// Nothing is left to be flushed.
    pub(crate) fn connect_and_flush(&mut self) {
        let (_, ring) = self.connect();
        assert_eq!(ring.run(&Request::flush()).status, OK);
    }

    fn take_front_end(&mut self) -> (Session, Ring) {
        self.connect();
        self.front_end.take().unwrap()
    }

    /// Submits requests; then they are answered in their order, well.
    fn submit(&mut self, requests: Vec<Request>) -> Then {
        let may_be_done = !self.media.writes_wait() && requests[0].kind == OUT;
        let (_, ring) = self.connect();
        let heads: Vec<_> = requests.iter().map(|request| ring.submit(request)).collect();
        ring.notify();
        settle();
        assert!(may_be_done || ring.next_used().is_none(), "it cannot be done while the media hangs");
        Box::new(move |hung| {
            for (request, head) in requests.iter().zip(heads) {
                let (_, ring) = hung.front_end.as_mut().unwrap();
                let used = ring.wait();
                assert_eq!(used.head, head, "in the ring's order");
                let answer = ring.answer(request, used);
                assert_eq!(answer.status, OK, "{request:?}");
                hung.apply(request, &answer.data);
            }
        })
    }

    /// A request that was done does to the disk what it does to the contents, which it reads.
    fn apply(&mut self, request: &Request, data: &[u8]) {
        let at = request.sector as usize * SECTOR_BYTES;
        match request.kind {
            WRITE_ZEROES => {
                let sector = u64::from_le_bytes(request.payload[..8].try_into().unwrap()) as usize;
                self.contents[sector * SECTOR_BYTES..][..64 << 10].fill(0);
            }
            DISCARD => {
                // What is there then is nobody's business; it is written before it is read.
            }
            _ if request.writable_bytes > 0 => {
                assert!(data == &self.contents[at..][..data.len()], "sector {}", request.sector);
            }
            _ => self.contents[at..][..request.payload.len()].copy_from_slice(&request.payload),
        }
    }

    fn write(&mut self) -> Request {
        let place = self.place();
        Request::write(place, &pattern(place, 4096))
    }

    fn read(&mut self) -> Request {
        Request::read(self.place(), 4096)
    }

    fn of_range(&mut self, kind: u32, flags: u32) -> Request {
        let payload = range(self.place(), 128, flags).to_vec();
        Request { kind, sector: 0, payload, writable_bytes: 0 }
    }

    /// Has a thread say something that waits for the media, with requests under way; the front-end is back when it was answered.
    fn waits(&mut self, say: fn(&Session, &Ring)) -> Then {
        let requests = vec![self.write(), self.read()];
        self.connect();
        let (session, mut ring) = self.take_front_end();
        for request in &requests {
            ring.submit(request);
        }
        ring.notify();
        settle();
        let waits = std::thread::spawn(move || {
            say(&session, &ring);
            (session, ring)
        });
        settle();
        assert!(!waits.is_finished(), "it is answered before what is under way is done");
        Box::new(move |hung| {
            // Nobody else's ring starts before its own has stopped.
            drop(waits.join().unwrap());
            // Done or not, each is done when the next ring has gone on.
            requests.iter().for_each(|request| hung.done_again(request));
        })
    }

    /// Has a thread say something that may be answered or not while requests are under way, which are done then.
    fn says(&mut self, say: fn(&Session), and_then: fn(&Session)) -> Then {
        let requests = vec![self.write(), self.read()];
        let then = self.submit(requests);
        let (session, ring) = self.take_front_end();
        let says = std::thread::spawn(move || {
            say(&session);
            (session, ring)
        });
        settle();
        Box::new(move |hung| {
            hung.front_end = Some(says.join().unwrap());
            then(hung);
            and_then(&hung.front_end.as_ref().unwrap().0);
        })
    }

    /// A request that may have been done is done by another front-end.
    fn done_again(&mut self, request: &Request) {
        let (_, ring) = self.connect();
        let answer = ring.run(request);
        assert_eq!(answer.status, OK);
        self.apply(request, &answer.data);
    }
}

fn set_writeback(session: &Session, writeback: u8) {
    // `writeback` of the configuration space (VIRTIO 1.2 §5.2.4).
    let flags = VhostUserConfigFlags::empty();
    session.ask(|control| control.set_config(32, flags, &[writeback])).unwrap();
}

/// What is tried with requests, and with messages.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "a read",
        begin: |hung| {
            let read = hung.read();
            hung.submit(vec![read])
        },
    },
    Row {
        name: "20 reads",
        begin: |hung| {
            let reads = (0..20).map(|_| hung.read()).collect();
            hung.submit(reads)
        },
    },
    Row {
        name: "a write",
        begin: |hung| {
            let write = hung.write();
            hung.submit(vec![write])
        },
    },
    Row {
        name: "20 writes",
        begin: |hung| {
            let writes = (0..20).map(|_| hung.write()).collect();
            hung.submit(writes)
        },
    },
    Row {
        name: "a write, and a read of what it writes",
        begin: |hung| {
            let write = hung.write();
            let read = Request::read(write.sector, 4096);
            hung.submit(vec![write, read])
        },
    },
    Row {
        name: "a read, and a write over it",
        begin: |hung| {
            let read = hung.read();
            let write = Request::write(read.sector, &pattern(77, 4096));
            hung.submit(vec![read, write])
        },
    },
    Row {
        name: "a flush behind a write",
        begin: |hung| {
            let write = hung.write();
            hung.submit(vec![write, Request::flush()])
        },
    },
    Row {
        name: "a discard",
        begin: |hung| {
            let discard = hung.of_range(DISCARD, 0);
            hung.submit(vec![discard])
        },
    },
    Row {
        name: "zeroes",
        begin: |hung| {
            let zeroes = hung.of_range(WRITE_ZEROES, 0);
            hung.submit(vec![zeroes])
        },
    },
    Row {
        name: "zeroes that may give space back, and a read",
        begin: |hung| {
            let (zeroes, read) = (hung.of_range(WRITE_ZEROES, 1), hung.read());
            hung.submit(vec![zeroes, read])
        },
    },
    Row {
        name: "GET_VRING_BASE",
        begin: |hung| {
            hung.waits(|session, ring| {
                assert_eq!(session.stop(&ring.vring()), ring.used_base());
            })
        },
    },
    Row {
        name: "SET_VRING_ENABLE, disabled",
        begin: |hung| {
            hung.waits(|session, ring| {
                session.enable(&ring.vring(), false).unwrap();
            })
        },
    },
    Row { name: "SET_MEM_TABLE", begin: |hung| hung.waits(|session, _| session.share_memory()) },
    Row {
        name: "RESET_DEVICE",
        begin: |hung| {
            hung.waits(|session, _| {
                session.wire.tell(RESET_DEVICE, &[], &[]);
            })
        },
    },
    Row {
        name: "SET_CONFIG, write-through",
        begin: |hung| hung.says(|session| set_writeback(session, 0), |session| set_writeback(session, 1)),
    },
    Row {
        name: "SIGHUP, which looks at the size",
        begin: |hung| {
            hung.daemon.signal(libc::SIGHUP);
            let read = hung.read();
            hung.submit(vec![read])
        },
    },
    Row {
        name: "a front-end that leaves, and the next one's",
        begin: |hung| {
            let write = hung.write();
            let (session, mut ring) = hung.take_front_end();
            ring.submit(&write);
            ring.notify();
            settle();
            drop((session, ring));
            let next = hung.write();
            hung.connect();
            let then = hung.submit(vec![next]);
            Box::new(move |hung| {
                then(hung);
                hung.done_again(&write);
            })
        },
    },
    Row {
        name: "metrics, once the server's answers are out of date",
        begin: |hung| {
            let read = hung.read();
            let then = hung.submit(vec![read]);
            // FUSE keeps attributes for a second.
            std::thread::sleep(Duration::from_millis(1500));
            let metrics = metrics::read(&hung.daemon.metrics_socket());
            let of = |name: &str| metrics[&format!("{name}{{disk=\"disk0\"}}")];
            assert!(of("requests_in_flight") >= 1.0 && of("oldest_request_seconds") >= 1.5, "{metrics:?}");
            then
        },
    },
];

/// Says how long others took, and what was tried.
fn print(media: Media, packed: bool, name: &str, (worst, median): (Duration, Duration), message: Duration) {
    let ring = if packed { "packed" } else { "split" };
    eprintln!(
        "{media:?}, {ring}: {name}: others' requests {median:?}, of 100 the longest {worst:?}; messages up to {message:?}"
    );
}

/// Tries the rows that are `wanted`, of those that hang. Returns how many there were.
pub(crate) fn each_row(media: Media, packed: bool, wanted: impl Fn(&Row) -> bool + Sync) -> usize {
    let mut tried = 0;
    with_disks(media, 2, |setup, server| {
        let daemon = setup.start();
        let neighbour = Neighbour::start(&daemon);
        let mut hung = Hung::of(&daemon, packed, media);
        let before = (neighbour.wait_for_progress(), say_everything(&daemon));
        print(media, packed, "nothing hangs", before.0, before.1);
        for Row { name, begin } in ROWS.iter().filter(|row| row.hangs(media) && wanted(row)) {
            let write = hung.write();
            hung.done_again(&write);
            server.forget();
            server.hang();
            let then = begin(&mut hung);
            let (requests, messages) = (neighbour.wait_for_progress(), say_everything(&daemon));
            print(media, packed, name, requests, messages);
            server.go_on();
            then(&mut hung);
            tried += 1;
        }
        neighbour.stop();
        drop(hung.front_end.take());
        daemon.stop();
    });
    tried
}

#[test]
fn whatever_hangs_costs_its_own_disk() {
    for media in [Media::File, Media::Device] {
        // Two turns, with both kinds of rings: twice as many rows.
        for packed in [false, true] {
            let tried = each_row(media, packed, |_| true);
            assert!(tried == 0 || tried >= ROWS.len() - 2);
        }
    }
}
