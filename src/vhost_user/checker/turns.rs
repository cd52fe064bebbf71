//! A lock whose users have it in the order in which they came.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What is inside, and who waits for it.
#[derive(Debug)]
pub(super) struct Turns<T> {
    queue: Mutex<Queue>,
    is_next: Condvar,
    inside: Mutex<T>,
}

#[derive(Debug, Default)]
struct Queue {
    /// How many have come.
    came: u64,
    /// How many have gone.
    gone: u64,
}

/// The turn of one of them.
#[derive(Debug)]
pub(super) struct Turn<'a, T> {
    inside: MutexGuard<'a, T>,
    _end: End<'a, T>,
}

/// Dropped last: what is inside is free by then.
#[derive(Debug)]
struct End<'a, T>(&'a Turns<T>);

impl<T> Turns<T> {
    pub(super) fn new(inside: T) -> Self {
        Self { queue: Mutex::default(), is_next: Condvar::new(), inside: Mutex::new(inside) }
    }

    /// Waits for all who have come before.
    pub(super) fn take(&self) -> Turn<'_, T> {
        let mut queue = self.queue();
        let number = queue.came;
        queue.came = number.wrapping_add(1);
        while queue.gone != number {
            queue = self.is_next.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        drop(queue);
        let inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        Turn { inside, _end: End(self) }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inside
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inside
    }
}

impl<T> Drop for End<'_, T> {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.gone = queue.gone.wrapping_add(1);
        drop(queue);
        self.0.is_next.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::limits::thread;
    use crate::sandbox::ThreadKind;

    #[test]
    fn who_comes_first_is_first() {
        let turns = Arc::new(Turns::new(Vec::new()));
        let mut first = turns.take();
        let others: Vec<_> = (0..20)
            .map(|number| {
                let of_other = turns.clone();
                let other = thread::spawn(ThreadKind::Session, "turn", move || of_other.take().push(number));
                // It has come before the next one does.
                while turns.queue().came < number + 2 {
                    std::thread::yield_now();
                }
                other.unwrap()
            })
            .collect();
        first.push(u64::MAX);
        drop(first);
        others.into_iter().for_each(|other| other.join().unwrap());
        let order = turns.take();
        assert_eq!(order[0], u64::MAX);
        assert!(order[1..].is_sorted(), "{:?}", *order);
    }
}
