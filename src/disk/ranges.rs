//! Lists of ranges of bytes.

use std::ops::Range;

/// Adds a range to others that are in order and do not touch; so are they afterwards.
pub(super) fn insert(ranges: &mut Vec<Range<u64>>, new: Range<u64>) {
    let mut new = new;
    ranges.retain(|range| {
        let touches = range.start <= new.end && new.start <= range.end;
        if touches {
            new = new.start.min(range.start)..new.end.max(range.end);
        }
        !touches
    });
    let place = ranges.partition_point(|range| range.start < new.start);
    ranges.insert(place, new);
}

/// What of `ranges` is inside of `window`, counted from its start.
pub(super) fn clip(ranges: &[Range<u64>], window: &Range<u64>) -> Vec<Range<u64>> {
    let cut = ranges.iter().map(|it| it.start.max(window.start)..it.end.min(window.end));
    let inside = cut.filter(|range| range.start < range.end);
    inside.map(|range| range.start - window.start..range.end - window.start).collect()
}
