//! Reproducible randomness: from a seed, or from bytes that a fuzzer has made up.

/// `bytes` bytes that differ from one `seed` to the next and, mostly, from one place to the next.
pub fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut pattern = vec![0; bytes.next_multiple_of(8)];
    for word in pattern.chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    pattern.truncate(bytes);
    pattern
}

/// A reproducible random sequence (SplitMix64), or the choices that given bytes stand for.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
    /// The last one comes first.
    given: Option<Vec<u8>>,
}

impl Random {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed, given: None }
    }

    /// The choices that `bytes` stand for: as few of them for each as say it. Zeroes follow.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self { state: 0, given: Some(bytes.iter().rev().copied().collect()) }
    }

    /// Whether the bytes are used up.
    pub fn is_over(&self) -> bool {
        self.given.as_ref().is_some_and(Vec::is_empty)
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.up_to(u64::MAX)
    }

    /// A number less than `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.up_to(limit - 1) % limit
    }

    /// Bits, of which as many are random as `most` has.
    fn up_to(&mut self, most: u64) -> u64 {
        if let Some(given) = &mut self.given {
            let bytes = (u64::BITS - most.leading_zeros()).div_ceil(8);
            return (0..bytes).fold(0, |value, _| value << 8 | u64::from(given.pop().unwrap_or(0)));
        }
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// True once in `count` times.
    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}
