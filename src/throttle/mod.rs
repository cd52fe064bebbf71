//! Limits of what guests take: operations and bytes a second, of a disk or of a group of disks.
//!
//! The meaning is that of QEMU's `throttling.*`: leaky buckets. What is done fills a bucket, which leaks at the average rate; a
//! request is taken while what is in it is no more than the bucket holds: a tenth of a second at the average rate, or with a
//! burst so many seconds at the burst's rate. Then a second bucket, of a tenth of a second, leaks at that rate.
//!
//! A [`Throttle`] is shared by all rings of a disk, or of all disks of a group, on whatever workers they are: each of its buckets
//! is one number, the time at which it will be empty, which is moved by one compare-and-swap. Each ring has a [`Share`] of
//! it: it *reserves* a quantum of units in advance, which moves that time at once, and knows by it when it may use them. So
//! rings that wait are served in the order in which they have reserved, a quantum each: fairly, without a queue or a lock.
//! What a request takes beyond its quantum its ring pays before it takes another one (deficit round robin), so that a ring
//! with large requests gets no more bytes than one with small ones.
//!
//! | kind of request | operations | bytes |
//! | --- | --- | --- |
//! | read | `iops`, `iops-rd` | `bps`, `bps-rd` |
//! | write, DISCARD, WRITE_ZEROES | `iops`, `iops-wr` | `bps`, `bps-wr`: of the ranges, as in QEMU |
//! | FLUSH, GET_ID, what is refused or malformed | `iops`, `iops-rd` and `iops-wr` | none |
//!
//! QEMU counts none of the last row; here they are no way around a limit.

mod bucket;
mod clock;
mod limits;
mod share;
#[cfg(test)]
mod tests;

pub use bucket::Throttle;
pub use limits::{Burst, LimitError, Limits, MAX_BURST_SECONDS, MAX_RATE, Measure, Rate};
pub use share::{Admission, Kind, Moment, Share};
