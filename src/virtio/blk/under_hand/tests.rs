//! What is under hand, seen by another thread.

use std::thread;

use super::*;

const NEVER: Duration = Duration::MAX;

fn asked(number: u64) -> Asked {
    let what = Timed::ALL.get(number as usize % Timed::ALL.len()).copied();
    Asked { what, offset: number, len_bytes: number.wrapping_mul(3) }
}

#[test]
fn what_is_slow_is_told_once_and_its_end_knows() {
    let hand = UnderHand::new(7);
    assert!(hand.take_slow(Duration::ZERO).is_none() && !hand.end());
    hand.begin(&asked(1), Instant::now());
    thread::sleep(Duration::from_millis(1));
    assert!(hand.take_slow(NEVER).is_none());
    let (told, took) = hand.take_slow(Duration::ZERO).unwrap();
    assert_eq!((told.what, told.offset, told.len_bytes), (Some(Timed::Write), 1, 3));
    assert!(took >= Duration::from_millis(1));
    assert!(hand.take_slow(Duration::ZERO).is_none(), "it was told");
    assert!(hand.end() && !hand.end());
    hand.begin(&asked(2), Instant::now());
    assert!(!hand.end(), "the next one was not");
    hand.begin(&Asked::UNKNOWN, Instant::now());
    assert!(hand.take_slow(Duration::ZERO).is_none());
}

/// Whoever looks sees one request, and never parts of two; and each is told by one of both at most.
#[test]
fn nothing_is_mixed_up() {
    const REQUESTS: u64 = 100_000;
    let hand = UnderHand::new(0);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let (seen, told) = thread::scope(|threads| {
        let looker = threads.spawn(|| {
            let mut seen = 0_u64;
            while !is_over.load(Ordering::Acquire) {
                let Some((found, _)) = hand.take_slow(Duration::ZERO) else { continue };
                let wanted = asked(found.offset);
                assert_eq!((found.what, found.len_bytes), (wanted.what, wanted.len_bytes));
                seen += 1;
            }
            seen
        });
        let mut told = 0_u64;
        for number in 0..REQUESTS {
            hand.begin(&asked(number), hand.origin);
            told += u64::from(hand.end());
        }
        is_over.store(true, Ordering::Release);
        (looker.join().unwrap(), told)
    });
    assert_eq!(seen, told);
}
