//! For tests: disks that do most of what they do as another one does.

/// Methods of [`Disk`](crate::disk::Disk) that are passed on to a field: `pass_on!(disk: geometry, flush);`.
macro_rules! pass_on {
    ($disk:ident: $($method:ident),+ $(,)?) => {
        $($crate::disk::testing::pass_on!(@ $disk $method);)+
    };
    (@ $disk:ident geometry) => {
        fn geometry(&self) -> $crate::disk::Geometry {
            self.$disk.geometry()
        }
    };
    (@ $disk:ident durability) => {
        fn durability(&self) -> $crate::disk::Durability {
            self.$disk.durability()
        }
    };
    (@ $disk:ident read) => {
        fn read(
            &self,
            offset: u64,
            into: $crate::copy::Segments<'_>,
            next: $crate::copy::PrefetchHint,
        ) -> Result<(), $crate::disk::DiskError> {
            self.$disk.read(offset, into, next)
        }
    };
    (@ $disk:ident write) => {
        fn write(
            &self,
            offset: u64,
            from: $crate::copy::Segments<'_>,
            next: $crate::copy::PrefetchHint,
        ) -> Result<(), $crate::disk::DiskError> {
            self.$disk.write(offset, from, next)
        }
    };
    (@ $disk:ident fence) => {
        fn fence(&self) {
            self.$disk.fence();
        }
    };
    (@ $disk:ident try_flush) => {
        fn try_flush(&self) -> Option<Result<(), $crate::disk::DiskError>> {
            self.$disk.try_flush()
        }
    };
    (@ $disk:ident flush) => {
        fn flush(&self) -> Result<(), $crate::disk::DiskError> {
            self.$disk.flush()
        }
    };
    (@ $disk:ident discard) => {
        fn discard(&self, offset: u64, len: u64) -> Result<(), $crate::disk::DiskError> {
            self.$disk.discard(offset, len)
        }
    };
    (@ $disk:ident write_zeroes) => {
        fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<u64, $crate::disk::DiskError> {
            self.$disk.write_zeroes(offset, len, unmap)
        }
    };
}

pub(crate) use pass_on;
