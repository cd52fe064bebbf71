//! A worker's thread, the control plane and a driver: no command and no kick is lost, whether the worker sleeps or polls, and a
//! ring that is taken back is served by nobody until it is handed over again.

use std::sync::Arc;
use std::task::Waker;

use super::any_ring::{AnyRing, Shared};
use super::mailbox::{Command, Mailbox, mailbox};
use super::poll::Polling;
use super::relief::Post;
use super::ring::RingKey;
use super::run::Runner;
use crate::check::explore;
use crate::sync::kernel;
use crate::sync::mpsc::channel;

const KEY: RingKey = RingKey(1);

/// The control plane's side, as in `worker/pool.rs`.
fn attach(mailbox: &Mailbox<()>, ring: AnyRing<()>) {
    let (answer, answered) = channel();
    mailbox.post(Command::Attach(ring, answer));
    answered.recv().unwrap().unwrap();
}

fn detach(mailbox: &Mailbox<()>) -> AnyRing<()> {
    let (answer, answered) = channel();
    mailbox.post(Command::Detach(KEY, answer));
    answered.recv().unwrap().unwrap()
}

fn stop(mailbox: &Mailbox<()>) {
    let (answer, answered) = channel();
    mailbox.post(Command::Stop(answer));
    answered.recv().unwrap();
}

fn start(polling: Polling) -> (Mailbox<()>, loom::thread::JoinHandle<()>) {
    kernel::begin();
    let (mailbox, inbox) = mailbox().unwrap();
    let runner = Runner::new(inbox, polling, Post::new()).unwrap();
    let run = move || runner.run();
    (mailbox, loom::thread::Builder::new().stack_size(1 << 14).spawn(run).unwrap())
}

/// A driver sends some requests while its ring is taken from the worker and handed back, so many times; and then the worker is
/// stopped.
pub fn driven(polling: Polling, requests: u32, returns: u32, preemptions: usize) -> Result<usize, String> {
    explore(preemptions, move || {
        let (mailbox, worker) = start(polling);
        let shared = Arc::new(Shared::new(false));
        attach(&mailbox, AnyRing::start(&shared));
        let sent = shared.clone();
        let driver = loom::thread::spawn(move || sent.drive(requests));
        for _ in 0..returns {
            let ring = detach(&mailbox);
            assert!(ring.is_quiet(), "a ring was given back, and what was fetched from it is not published");
            attach(&mailbox, ring);
        }
        driver.join().unwrap();
        stop(&mailbox);
        worker.join().unwrap();
    })
}

/// A ring waits for a flush, whose end another thread tells.
pub fn held(polling: Polling, preemptions: usize) -> Result<usize, String> {
    explore(preemptions, move || {
        let (mailbox, worker) = start(polling);
        let shared = Arc::new(Shared::new(true));
        attach(&mailbox, AnyRing::start(&shared));
        let flushed = shared.clone();
        let flusher = loom::thread::spawn(move || flushed.flush());
        shared.drive(1);
        flusher.join().unwrap();
        stop(&mailbox);
        worker.join().unwrap();
    })
}
