//! What stands where: columns, and numbers as people read them. `--once` and the live view share it.
//!
//! A terminal that is too narrow does without columns, in an order: those with the highest rank are left out first.

use super::rates::{DiskRow, RingRow, Standing};
use crate::cli::ctl_events::plain;
use crate::cli::printable::printable;
use crate::config::size::Size;

/// A column of a table.
#[derive(Debug)]
pub(super) struct Column<Row> {
    pub(super) head: &'static str,
    pub(super) width: usize,
    /// When it is left out.
    rank: u8,
    is_text: bool,
    cell: fn(&Row) -> String,
}

/// Between two columns.
pub(super) const GAP: usize = 1;

const fn text<Row>(rank: u8, head: &'static str, width: usize, cell: fn(&Row) -> String) -> Column<Row> {
    Column { head, width, rank, is_text: true, cell }
}

const fn number<Row>(rank: u8, head: &'static str, width: usize, cell: fn(&Row) -> String) -> Column<Row> {
    Column { head, width, rank, is_text: false, cell }
}

/// Of disks. All up to AMPL have room in 80 columns, with 12 for the name.
pub(super) const DISKS: [Column<DiskRow>; 15] = [
    text(0, "NAME", 12, |disk| printable(&disk.name)),
    number(2, "READ/S", 7, |disk| rate(disk.done.reads)),
    number(3, "WRITE/S", 7, |disk| rate(disk.done.writes)),
    number(4, "RD-MB/S", 7, |disk| megabytes(disk.done.read_bytes)),
    number(5, "WR-MB/S", 7, |disk| megabytes(disk.done.written_bytes)),
    number(7, "P50", 5, |disk| time(disk.p50)),
    number(6, "P99", 5, |disk| time(disk.p99)),
    number(8, "DEPTH", 5, |disk| disk.depth.map_or_else(unknown, |depth| depth.to_string())),
    number(9, "AMPL", 5, |disk| disk.amplification.map_or_else(unknown, ratio)),
    text(1, "STATE", 10, |disk| standing(disk.standing)),
    number(10, "FLUSH/S", 7, |disk| rate(disk.done.flushes)),
    number(11, "FAIL/S", 6, |disk| rate(disk.done.failures)),
    number(12, "FRONT-ENDS", 10, |disk| disk.front_ends.to_string()),
    number(13, "SIZE", 10, |disk| Size(disk.capacity_bytes).to_string()),
    text(14, "LIMITS", 24, limits),
];

/// Of the rings of a disk.
pub(super) const RINGS: [Column<RingRow>; 12] = [
    text(0, "RING", 8, |ring| format!("{}:{}", ring.front_end, ring.ring)),
    number(2, "READ/S", 7, |ring| rate(ring.done.reads)),
    number(3, "WRITE/S", 7, |ring| rate(ring.done.writes)),
    number(4, "RD-MB/S", 7, |ring| megabytes(ring.done.read_bytes)),
    number(5, "WR-MB/S", 7, |ring| megabytes(ring.done.written_bytes)),
    number(8, "FLUSH/S", 7, |ring| rate(ring.done.flushes)),
    number(9, "FAIL/S", 6, |ring| rate(ring.done.failures)),
    number(6, "DEPTH", 5, |ring| ring.depth.to_string()),
    text(1, "STATE", 10, |ring| standing(ring.standing)),
    number(7, "SIZE", 5, |ring| ring.size.to_string()),
    text(11, "FORMAT", 6, |ring| printable(&ring.format)),
    number(10, "SINCE", 6, |ring| long_time(ring.seconds)),
];

impl<Row> Column<Row> {
    /// What it shows of a row.
    pub(super) fn cell(&self, row: &Row) -> String {
        (self.cell)(row)
    }

    /// Its text in so many characters: numbers to the right. What is too long is cut, and says so.
    pub(super) fn fit(&self, text: &str, width: usize) -> String {
        let text = match text.chars().count() > width {
            true => text.chars().take(width.saturating_sub(1)).chain("~".chars()).collect(),
            false => text.to_owned(),
        };
        if self.is_text { format!("{text:<width$}") } else { format!("{text:>width$}") }
    }
}

/// The columns that have room in so many characters, with the width of each: the first one takes what is left, as far as it has
/// a use for it. It is always there, if it has to be cut as well.
pub(super) fn layout<Row>(
    columns: &'static [Column<Row>],
    room: usize,
    longest: usize,
) -> Vec<(&'static Column<Row>, usize)> {
    let mut shown: Vec<_> = columns.iter().map(|column| (column, column.width)).collect();
    let taken = |shown: &[(&Column<Row>, usize)]| {
        shown.iter().map(|(_, width)| width + GAP).sum::<usize>().saturating_sub(GAP)
    };
    while taken(&shown) > room && shown.len() > 1 {
        let last = shown.iter().map(|(column, _)| column.rank).max();
        shown.retain(|(column, _)| Some(column.rank) != last);
    }
    let spare = room.saturating_sub(taken(&shown));
    if let Some((_, width)) = shown.first_mut() {
        *width = (*width + spare).min(longest.max(*width)).min(room);
    }
    shown
}

/// The whole table, with all columns, as wide as what is in it: for `--once`.
pub(super) fn table<Row>(columns: &[Column<Row>], rows: &[&Row]) -> String {
    let body: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|it| it.cell(row)).collect()).collect();
    let width = |place: usize, column: &Column<Row>| {
        let cells = body.iter().filter_map(|cells| cells.get(place)).map(|cell| cell.chars().count());
        cells.max().unwrap_or(0).max(column.head.len())
    };
    let widths: Vec<_> = columns.iter().enumerate().map(|(place, column)| width(place, column)).collect();
    let line = |cells: Vec<&str>| {
        let cells = cells.into_iter().zip(columns).zip(&widths);
        let cells: Vec<_> = cells.map(|((text, column), width)| column.fit(text, *width)).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    let head = line(columns.iter().map(|column| column.head).collect());
    body.iter().fold(head, |table, cells| table + &line(cells.iter().map(String::as_str).collect()))
}

/// By the keys of `--disk`; nothing where nothing limits it.
fn limits(disk: &DiskRow) -> String {
    let said = disk.limits.iter().map(|(key, value)| format!("{key}={}", plain(value)));
    printable(&said.collect::<Vec<_>>().join(","))
}

fn unknown() -> String {
    "-".to_owned()
}

/// A count by the second, in six characters: 0.5, 999, 12.3k, 1.23M.
pub(super) fn rate(value: Option<f64>) -> String {
    value.map_or_else(unknown, |value| match value {
        value if value < 0.05 => "0".to_owned(),
        value if value < 9.95 => format!("{value:.1}"),
        value if value < 9_999.5 => format!("{value:.0}"),
        value if value < 999_950.0 => format!("{:.1}k", value / 1e3),
        value if value < 9.995e8 => format!("{:.2}M", value / 1e6),
        value => format!("{:.1}G", value / 1e9),
    })
}

/// Bytes by the second in megabytes.
pub(super) fn megabytes(value: Option<f64>) -> String {
    rate(value.map(|bytes| bytes / 1e6))
}

/// In five characters: 820ns, 9.5us, 120us, 12ms, 1.2s.
pub(super) fn time(seconds: Option<f64>) -> String {
    seconds.map_or_else(unknown, |seconds| {
        let in_units = |factor: f64, unit: &str| match seconds * factor {
            value if value < 9.95 => format!("{value:.1}{unit}"),
            value => format!("{value:.0}{unit}"),
        };
        match seconds {
            seconds if seconds < 0.999_5e-6 => format!("{:.0}ns", seconds * 1e9),
            seconds if seconds < 0.999_5e-3 => in_units(1e6, "us"),
            seconds if seconds < 0.999_5 => in_units(1e3, "ms"),
            seconds if seconds < 99.5 => in_units(1.0, "s"),
            seconds => long_time(seconds),
        }
    })
}

/// Whole seconds, minutes, hours or days.
fn long_time(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 99.5 => format!("{seconds:.0}s"),
        seconds if seconds < 5_970.0 => format!("{:.0}m", seconds / 60.0),
        seconds if seconds < 356_400.0 => format!("{:.0}h", seconds / 3_600.0),
        seconds => format!("{:.0}d", (seconds / 86_400.0).min(9_999.0)),
    }
}

fn ratio(value: f64) -> String {
    if value < 99.95 { format!("{value:.2}") } else { format!("{:.0}", value.min(99_999.0)) }
}

/// In ten characters.
pub(super) fn standing(standing: Standing) -> String {
    let word = match standing {
        Standing::Unknown => "-",
        Standing::Idle => "idle",
        Standing::Leaving => "leaving",
        Standing::Armed => "armed",
        Standing::Polled => "polled",
        Standing::Other => "other",
        Standing::Held => "held",
        Standing::Throttled => "throttled",
        Standing::Broken => "broken",
        Standing::Hung(seconds) => return format!("hung {}", long_time(seconds)),
    };
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_room() {
        for (value, text) in [
            (0.0, "0"),
            (0.04, "0"),
            (0.5, "0.5"),
            (9.94, "9.9"),
            (9.96, "10"),
            (9_999.4, "9999"),
            (12_345.0, "12.3k"),
            (999_949.0, "999.9k"),
            (2_284_000.0, "2.28M"),
            (999_400_000.0, "999.40M"),
            (2e9, "2.0G"),
        ] {
            assert_eq!(rate(Some(value)), text);
            assert!(text.len() <= 7);
        }
        for (seconds, text) in [
            (0.0, "0ns"),
            (820e-9, "820ns"),
            (0.999_6e-6, "1.0us"),
            (9.5e-6, "9.5us"),
            (120e-6, "120us"),
            (999.6e-6, "1.0ms"),
            (0.012, "12ms"),
            (1.2, "1.2s"),
            (45.0, "45s"),
            (600.0, "10m"),
            (1e5, "28h"),
            (1e9, "9999d"),
        ] {
            assert_eq!(time(Some(seconds)), text);
            assert!(text.len() <= 5);
        }
        assert_eq!(
            (rate(None), time(None), megabytes(Some(4_194_304.0))),
            ("-".into(), "-".into(), "4.2".into())
        );
        assert_eq!((ratio(1.0), ratio(1e9)), ("1.00".into(), "99999".into()));
        assert_eq!(standing(Standing::Hung(1e9)), "hung 9999d");
    }

    #[test]
    fn narrow_terminals_do_without_columns_in_an_order() {
        let heads = |room, longest| {
            let shown = layout(&DISKS, room, longest);
            let width = shown.iter().map(|(_, width)| width + GAP).sum::<usize>() - GAP;
            assert!(width <= room.max(1), "{width} in {room}");
            shown.iter().map(|(column, _)| column.head).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(heads(80, 5), "NAME READ/S WRITE/S RD-MB/S WR-MB/S P50 P99 DEPTH AMPL STATE");
        assert_eq!(heads(70, 5), "NAME READ/S WRITE/S RD-MB/S WR-MB/S P50 P99 STATE");
        assert_eq!(heads(62, 5), "NAME READ/S WRITE/S RD-MB/S WR-MB/S P99 STATE");
        assert_eq!(heads(40, 5), "NAME READ/S WRITE/S STATE");
        assert_eq!(heads(23, 5), "NAME STATE");
        assert_eq!(heads(22, 5), "NAME");
        assert_eq!(heads(1, 500), "NAME");
        assert!(heads(200, 500).ends_with("FLUSH/S FAIL/S FRONT-ENDS SIZE LIMITS"));
        assert_eq!(layout(&DISKS, 200, 30)[0].1, 30, "a name has the room that it needs");
        assert_eq!(layout(&DISKS, 81, 30)[0].1, 14);
        let rings = layout(&RINGS, 80, 5).iter().map(|(column, _)| column.head).collect::<Vec<_>>();
        assert!(rings.contains(&"FLUSH/S") && rings.contains(&"SIZE"), "{rings:?}");
    }

    #[test]
    fn what_is_cut_says_so() {
        assert_eq!(DISKS[0].fit("a-long-name", 6), "a-lon~");
        assert_eq!(DISKS[0].fit("name", 6), "name  ");
        assert_eq!(DISKS[1].fit("12", 6), "    12");
        assert_eq!(DISKS[1].fit("12", 0), "~");
    }
}
