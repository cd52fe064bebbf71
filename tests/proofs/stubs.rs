//! As much of a disk as a flush needs.

use std::io;

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("{operation}: {source}")]
    Sync { operation: &'static str, source: io::Error },
}

pub trait Disk: std::fmt::Debug + Send + Sync + 'static {
    fn flush(&self) -> Result<(), DiskError>;
}

impl Disk for () {
    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
}

/// As much of a device as a worker's thread needs.
pub mod blk {
    #[derive(Debug)]
    pub struct Device<D>(pub std::marker::PhantomData<D>);

    impl<D> Device<D> {
        pub fn submit(&self, _: &mut Vec<()>) {}

        pub fn do_quick(&self, _: &mut Vec<()>) {}
    }

    #[derive(Debug, Clone, Copy)]
    pub struct Counters;
}
