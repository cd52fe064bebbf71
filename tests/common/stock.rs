//! A daemon on the crate `vhost-user-backend`, in this process, with our disk inside.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use vhost_user_pmem::disk::Disk;
use vhost_user_pmem::stock::Stock;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// A session of one front-end, on a thread of its own.
#[derive(Debug)]
pub struct Embedded {
    session: JoinHandle<()>,
}

impl Embedded {
    /// Listens on `socket`, and serves the first front-end that comes.
    pub fn serve<D: Disk>(socket: &Path, stock: &Arc<Stock<D>>) -> Self {
        let (mut listener, stock) = (Listener::new(socket, true).unwrap(), stock.clone());
        Self { session: std::thread::spawn(move || serve_one(&mut listener, stock)) }
    }

    /// Waits until the front-end has left and the disk is no longer used.
    pub fn finish(self) {
        self.session.join().unwrap();
    }
}

/// Serves one front-end until it leaves.
pub fn serve_one<D: Disk>(listener: &mut Listener, stock: Arc<Stock<D>>) {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("stock".to_owned(), stock, memory).unwrap();
    daemon.start(listener).unwrap();
    // Ends with an error that says how the front-end left, which is of no interest.
    let _ = daemon.wait();
}
