//! A disk whose turns wait: its rings get another worker, and those of others stay.

use std::num::NonZeroU16;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use super::{AVAILABLE, STATUS, disk, guest, ring, status};
use crate::copy::{PrefetchHint, Segments};
use crate::disk::testing::pass_on;
use crate::disk::{Disk, DiskError, MappedDisk};
use crate::limits::bounds::LONG_TURN;
use crate::worker::{Polling, Pool};

/// How long a step may take on a machine that is busy.
const STEP_TIME: Duration = Duration::from_secs(60);

/// As where pages are waited for.
#[derive(Debug)]
struct WaitingDisk {
    disk: MappedDisk,
    waits: bool,
    reader: Arc<Mutex<Option<ThreadId>>>,
}

impl Disk for WaitingDisk {
    pass_on!(disk: geometry, durability, write, fence, try_flush, flush, discard, write_zeroes);
    fn read(&self, offset: u64, into: Segments<'_>, next: PrefetchHint) -> Result<(), DiskError> {
        *self.reader.lock().unwrap() = Some(std::thread::current().id());
        if self.waits {
            // Who waits for a page is brought one: no allocator keeps as much as this.
            let mut pages = vec![0_u8; 64 << 20];
            std::hint::black_box(&mut pages)[0] = 1;
            std::thread::sleep(2 * LONG_TURN);
        }
        self.disk.read(offset, into, next)
    }
}

fn wait_until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + STEP_TIME;
    while !is_so() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_disk_whose_turns_wait_leaves_the_worker_that_it_shares() {
    let pool = Pool::new(NonZeroU16::new(1), Polling::Never);
    let attached = [true, false].map(|waits| {
        let (guest, reader) = (guest(0), Arc::default());
        let disk = WaitingDisk { disk: disk(), waits, reader: Arc::clone(&reader) };
        let ring = ring(disk, &guest, waits.into());
        let (key, hold_ups) = (ring.key(), ring.hold_ups().clone());
        let kick = ring.kick().try_clone_to_owned().unwrap();
        let id = pool.attach(ring, None).unwrap();
        wait_until(|| status(&guest) == 0);
        let read = move |number: u16| {
            guest.write_all_at(&[0xff], STATUS).unwrap();
            guest.write_all_at(&number.to_le_bytes(), AVAILABLE + 2).unwrap();
            rustix::io::write(kick.as_fd(), &1_u64.to_ne_bytes()).unwrap();
            wait_until(|| status(&guest) == 0);
            reader.lock().unwrap().unwrap()
        };
        (id, key, hold_ups, read)
    });
    let [(id, key, hold_ups, read), (.., others, read_other)] = attached;
    let moves = Arc::new(AtomicU64::new(0));
    let counted = moves.clone();
    hold_ups.move_by(move || _ = counted.fetch_add(1, Ordering::SeqCst));
    let mut number = 1;
    let shared = read_other(2);
    while !hold_ups.is_apart() {
        number += 1;
        assert!(number < 1000, "each of them waits");
        assert_eq!(read(number), shared, "one look may be wrong");
    }
    let held_up = hold_ups.count();
    assert!(held_up >= 3 && !others.is_apart());
    wait_until(|| moves.load(Ordering::SeqCst) == 1);
    let ring = pool.detach(id, key).unwrap();
    let id = pool.attach(ring, None).unwrap();
    let own = read(number + 1);
    assert!(own != shared && read_other(3) == shared);
    assert_eq!((pool.threads(), hold_ups.count()), (2, held_up));
    assert!(pool.detach(id, key).is_some());
    pool.stop();
}
