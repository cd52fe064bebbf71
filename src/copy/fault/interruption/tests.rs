use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::Duration;

use rustix::fs::FallocateFlags;

use super::*;
use crate::copy::testing::{memfd, pattern};
use crate::copy::{Engine, Load, PrefetchHint, Segment, Segments};

const PAGES: usize = 16;
const BYTES: usize = PAGES * 4096;

/// Has a thread copy, in rounds if it `may_end` and to memory of which pages are taken away all the time then, while another one has
/// it ended, until this says that it is enough: of how many bytes were not copied, and whether the copy was ended.
fn copy_until(may_end: bool, is_enough: impl Fn(u64, usize, bool) -> bool) {
    install().unwrap();
    let file = memfd("punched", BYTES as u64);
    // SAFETY: a new mapping, where the kernel chooses; it stays for the rest of the process.
    let memory = unsafe {
        let access = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        rustix::mm::mmap(std::ptr::null_mut(), BYTES, access, rustix::mm::MapFlags::SHARED, file.as_fd(), 0)
            .unwrap()
    };
    let segment = [Segment::new(memory.cast(), BYTES)];
    // SAFETY: mapped above.
    let into = unsafe { Segments::new(&segment) };
    let media = pattern(BYTES, 3);
    let (task, is_over) = (Arc::new(Interruptible::default()), AtomicBool::new(false));
    std::thread::scope(|scope| {
        if may_end {
            scope.spawn(|| punch(&file, &is_over));
        }
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                task.end(task.round(), true);
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let _on = task.on_this_thread();
        for round in 1.. {
            if may_end {
                task.begin_anew(round);
            }
            // SAFETY: as long as the segment, and elsewhere.
            let load = unsafe { Load::new(media.as_ptr(), into) };
            let left = Engine::get().load(load, PrefetchHint::NONE);
            task.pause();
            if is_enough(round, left, take()) {
                break;
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

fn punch(file: &File, is_over: &AtomicBool) {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    while !is_over.load(Ordering::Relaxed) {
        rustix::fs::fallocate(file, flags, 0, BYTES as u64).unwrap();
    }
}

#[test]
fn a_copy_whose_pages_are_taken_away_is_ended_and_says_so() {
    copy_until(true, |_, left, was_ended| {
        assert_eq!(left != 0, was_ended, "{left}");
        assert!(left <= BYTES);
        was_ended
    });
    assert!(!is_interrupted(), "nothing that this thread does can be");
}

#[test]
fn a_copy_of_a_thread_that_is_in_no_round_goes_on_to_its_end() {
    copy_until(false, |round, left, was_ended| {
        assert_eq!((left, was_ended), (0, false));
        round == 100
    });
}

#[test]
fn pages_are_the_reason_if_they_are_waited_for_or_very_many() {
    assert!(!are_reason(0, 0, true), "others are run");
    assert!(!are_reason(500, 0, true), "others are run, and memory is touched first");
    assert!(!are_reason(0, 9, true), "it waits for a lock");
    assert!(are_reason(1, 1, true));
    assert!(!are_reason(1, 1, false), "the disk is populated");
    assert!(are_reason(MANY_PAGES, 0, false), "whatever else is going on");
}

/// A page is brought to this thread, which has waited.
fn wait_for_a_page() {
    // No allocator keeps as much as this.
    let mut pages = vec![0_u8; 64 << 20];
    std::hint::black_box(&mut pages)[0] = 1;
    std::thread::sleep(Duration::from_millis(1));
}

#[test]
fn who_comes_behind_a_long_turn_is_not_ended_for_it() {
    let task =
        Interruptible { unwanted: AtomicU64::new(1), waits_count: true.into(), ..Interruptible::default() };
    task.begin_anew(1);
    task.turn_of(7);
    assert!(!task.is_to_end(), "the first look");
    wait_for_a_page();
    task.turn_of(8);
    assert!(!task.is_to_end(), "that was another's page");
    wait_for_a_page();
    assert!(task.is_to_end(), "and this one its own");
}

/// One that is not ours goes where it would have gone without us.
#[test]
fn a_signal_that_somebody_sends_is_no_reason_to_end() {
    install().unwrap();
    let task = Arc::new(Interruptible::default());
    let _on = task.on_this_thread();
    task.begin_anew(1);
    for _ in 0..3 {
        task.end(1, true);
        // SAFETY: no memory is involved.
        unsafe { libc::raise(SIGNAL) };
    }
    assert!(!is_interrupted(), "and nothing is copied");
}
