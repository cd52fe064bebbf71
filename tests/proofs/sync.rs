//! In place of `std::sync` and threads: loom's.

pub use std::sync::{Arc, PoisonError};

pub use loom::sync::{Condvar, Mutex, MutexGuard, RwLock};

pub mod atomic {
    pub use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
}

#[path = "kernel.rs"]
pub mod kernel;

/// Not loom's, which cannot be dropped where a model has failed.
pub mod mpsc {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::sync::mpsc::{RecvError, SendError, TryRecvError};

    use loom::sync::{Condvar, Mutex};

    #[derive(Debug)]
    struct Channel<T> {
        queue: Mutex<VecDeque<T>>,
        changed: Condvar,
    }

    #[derive(Debug)]
    pub struct Sender<T>(Arc<Channel<T>>);

    pub type SyncSender<T> = Sender<T>;

    #[derive(Debug)]
    pub struct Receiver<T>(Arc<Channel<T>>);

    pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
        let channel = Arc::new(Channel { queue: Mutex::new(VecDeque::new()), changed: Condvar::new() });
        (Sender(channel.clone()), Receiver(channel))
    }

    impl<T> Sender<T> {
        pub fn send(&self, message: T) -> Result<(), SendError<T>> {
            self.0.queue.lock().unwrap().push_back(message);
            self.0.changed.notify_one();
            Ok(())
        }
    }

    impl<T> Receiver<T> {
        pub fn recv(&self) -> Result<T, RecvError> {
            let mut queue = self.0.queue.lock().unwrap();
            loop {
                match queue.pop_front() {
                    Some(message) => return Ok(message),
                    None => queue = self.0.changed.wait(queue).unwrap(),
                }
            }
        }

        pub fn try_recv(&self) -> Result<T, TryRecvError> {
            self.0.queue.lock().unwrap().pop_front().ok_or(TryRecvError::Empty)
        }
    }
}

/// In place of `crate::copy`.
pub mod copy {
    pub fn full_fence() {
        loom::sync::atomic::fence(loom::sync::atomic::Ordering::SeqCst);
    }
}

/// In place of `crate::limits::thread`.
pub mod thread {
    pub use loom::thread::JoinHandle;

    pub fn spawn<T: 'static>(
        _: crate::sandbox::ThreadKind,
        _: &str,
        run: impl FnOnce() -> T + 'static,
    ) -> std::io::Result<JoinHandle<T>> {
        Ok(loom::thread::spawn(run))
    }
}

/// What a thread sleeps on until it is signalled: an eventfd that is waited for edge-triggered.
#[derive(Debug)]
pub struct Event {
    is_set: Mutex<bool>,
    changed: Condvar,
}

impl Event {
    pub fn new() -> Self {
        Self { is_set: Mutex::new(false), changed: Condvar::new() }
    }

    pub fn signal(&self) {
        *self.is_set.lock().unwrap() = true;
        self.changed.notify_one();
    }

    pub fn wait(&self) {
        let mut is_set = self.is_set.lock().unwrap();
        while !*is_set {
            is_set = self.changed.wait(is_set).unwrap();
        }
        *is_set = false;
    }
}
