//! In place of `worker/ring.rs`: what a worker knows of rings.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingKey(pub u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    Idle,
    More,
    Held,
    /// Never: nothing is left to a worker here.
    Begun,
}
