//! A daemon on the crate `vhost-user-backend`, in this process, with our disk inside.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use vhost::vhost_user::Listener;
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringRwLock};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// What the crate serves: [`Stock`](vhost_user_pmem::stock::Stock), or something around it.
pub trait Backend: VhostUserBackend<Bitmap = (), Vring = VringRwLock> {}

impl<B: VhostUserBackend<Bitmap = (), Vring = VringRwLock>> Backend for B {}

/// A session of one front-end, on a thread of its own.
#[derive(Debug)]
pub struct Embedded {
    session: JoinHandle<()>,
}

impl Embedded {
    /// Listens on `socket`, and serves the first front-end that comes.
    pub fn serve<B: Backend + 'static>(socket: &Path, stock: &Arc<B>) -> Self {
        let (mut listener, stock) = (Listener::new(socket, true).unwrap(), stock.clone());
        Self { session: std::thread::spawn(move || serve_one(&mut listener, stock)) }
    }

    /// Waits until the front-end has left and the disk is no longer used.
    pub fn finish(self) {
        self.session.join().unwrap();
    }
}

/// Serves one front-end until it leaves.
pub fn serve_one<B: Backend + 'static>(listener: &mut Listener, stock: Arc<B>) {
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("stock".to_owned(), stock, memory).unwrap();
    daemon.start(listener).unwrap();
    // Ends with an error that says how the front-end left, which is of no interest.
    let _ = daemon.wait();
}
