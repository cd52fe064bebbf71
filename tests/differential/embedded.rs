//! The disk inside a daemon on `vhost-user-backend`, compared in the same way.

#[path = "../common/stock.rs"]
mod session;

use std::path::Path;
use std::sync::Arc;

use vhost_user_pmem::disk::{self, Backing, OpenOptions};
use vhost_user_pmem::stock::Stock;
use vhost_user_pmem::virtio::blk::{Device, Identity};

use self::session::Embedded;
use super::{Subject, compare_everywhere, serial};
use crate::common::daemon::Setup;

struct Stocked {
    setup: Setup,
    device: Arc<Device<Backing>>,
}

impl Subject for Stocked {
    fn start(setup: Setup, block_bytes: u32, read_only: bool) -> Self {
        let block_bytes = Some(block_bytes);
        let options = OpenOptions { block_bytes, read_only, ..OpenOptions::new("disk") };
        let disk = disk::open(&setup.image(0), &options).unwrap().disk;
        let identity = Identity { name: "disk".to_owned(), serial: serial() };
        Self { setup, device: Arc::new(Device::new(disk, identity, 1)) }
    }

    fn serve(&self, run: impl FnOnce(&Path)) {
        let socket = self.setup.socket(0);
        let session = Embedded::serve(&socket, &Arc::new(Stock::new(self.device.clone()).unwrap()));
        run(&socket);
        session.finish();
    }

    fn stop(self) {}
}

#[test]
fn embedded_disks_of_512_byte_blocks_do_what_the_oracle_does() {
    compare_everywhere::<Stocked>(512, false, 0);
}

#[test]
fn embedded_disks_of_4096_byte_blocks_do_what_the_oracle_does() {
    compare_everywhere::<Stocked>(4096, false, 1000);
}

#[test]
fn embedded_read_only_disks_do_what_the_oracle_does() {
    compare_everywhere::<Stocked>(512, true, 2000);
}
