//! The live view, drawn into a buffer of characters. It knows no terminal, so tests look at what it draws.

use std::time::Duration;

use ratatui_core::buffer::Buffer;
use ratatui_core::layout::Rect;
use ratatui_core::style::{Color, Modifier, Style};

use super::cells::{Column, DISKS, GAP, RINGS, layout, megabytes, rate, time};
use super::rates::{Cpu, DiskRow, Picture, RingRow, Standing};
use super::view::View;
use crate::cli::printable::printable;

/// What is drawn.
#[derive(Debug)]
pub(super) struct Scene<'a> {
    pub(super) view: &'a View,
    pub(super) picture: &'a Picture,
    pub(super) socket: &'a str,
    pub(super) interval: Duration,
    /// Since when the server does not answer, and why.
    pub(super) away: Option<(Duration, &'a str)>,
    pub(super) is_coloured: bool,
}

/// Where the keys are explained in one line, and where there is room for no more.
const KEYS: &str = "q quit  up/down choose  Enter rings  s sort  r reverse  / find  p pause  ? help";
const KEYS_OF_RINGS: &str = "q quit  Esc disks  s sort  r reverse  p pause  ? help";
const KEYS_OF_FILTER: &str = "type a part of a name  Enter keep it  Esc forget it";

const HELP: [&str; 19] = [
    "READ/S, WRITE/S  requests a second         RD-MB/S, WR-MB/S  megabytes a second",
    "P50, P99         half of all requests, and 99 of 100, ended within this time",
    "DEPTH            requests that guests wait for at this moment",
    "AMPL             bytes that the media took for each byte that guests wrote",
    "STATE            of the ring that is worst off:",
    "  idle           no ring runs              armed      it waits for a kick",
    "  polled         its worker looks at it    held       it waits for a flush",
    "  throttled      it has had its limit      broken     by its driver's mistake",
    "  hung 12s       media have not answered since then",
    "-                is not known (yet)",
    "",
    "s                sort by the next key      r          the other way round",
    "up, down, j, k   choose a disk             Enter      show its rings; Esc: back",
    "/                show disks whose name has this in it; Esc: all",
    "p, space         pause                     q, Ctrl-C  quit",
    "",
    "A narrow terminal does without LIMITS first, then SIZE, FRONT-ENDS, FAIL/S,",
    "FLUSH/S, AMPL, DEPTH, P50, P99, WR-MB/S, RD-MB/S, WRITE/S, READ/S and STATE.",
    "vhost-user-pmem top --help says what it is called with.",
];

/// Draws all of it.
pub(super) fn draw(buffer: &mut Buffer, scene: &Scene<'_>) {
    let area = buffer.area;
    let (height, width) = (usize::from(area.height), usize::from(area.width));
    let mut canvas = Canvas { buffer, area };
    let view = scene.view;
    // A head of a table, a row and the keys come before what stands above them.
    let above = height.saturating_sub(3).min(3);
    let lines = [(title(scene), bold()), (totals(scene), Style::new()), notice(scene)];
    // What has happened is more important than the totals, and these than the title.
    let first = lines.len().saturating_sub(above);
    for (row, (text, style)) in lines.iter().skip(first).enumerate() {
        canvas.line(row, text, *style);
    }
    let room = height.saturating_sub(above).saturating_sub(1);
    let rows = Rows { from: above, room, width };
    if view.shows_help {
        for (row, line) in HELP.iter().take(room).enumerate() {
            canvas.line(above + row, line, Style::new());
        }
    } else if view.rings_of.is_some() {
        let rings = view.rings(scene.picture);
        canvas.table(&RINGS, &rings, None, &rows, |ring: &RingRow| of_standing(ring.standing, scene));
    } else {
        let disks = view.disks(scene.picture);
        let chosen = view.place(&disks);
        canvas.table(&DISKS, &disks, Some(chosen), &rows, |disk: &DiskRow| of_standing(disk.standing, scene));
    }
    let keys = match (view.is_filtering, &view.rings_of) {
        (true, _) => KEYS_OF_FILTER,
        (false, Some(_)) => KEYS_OF_RINGS,
        (false, None) => KEYS,
    };
    if height > 1 {
        canvas.line(height - 1, keys, dim());
    }
}

fn title(scene: &Scene<'_>) -> String {
    let view = scene.view;
    let order = if view.is_reversed { ", reversed" } else { "" };
    let of = match &view.rings_of {
        Some(disk) => format!("rings of {}", printable(disk)),
        None => {
            let (shown, all) = (view.disks(scene.picture).len(), scene.picture.disks.len());
            if shown == all { format!("{all} disks") } else { format!("{shown} of {all} disks") }
        }
    };
    let seconds = scene.interval.as_secs_f64();
    format!("{}  {of} by {}{order}, every {seconds} s", printable(scene.socket), view.sort.name())
}

/// What all disks do together, those that are not shown as well.
fn totals(scene: &Scene<'_>) -> String {
    let disks = &scene.picture.disks;
    let sum =
        |get: fn(&DiskRow) -> Option<f64>| scene.picture.seconds.map(|_| disks.iter().filter_map(get).sum());
    let requests = sum(|disk| Some(disk.done.reads? + disk.done.writes? + disk.done.flushes?));
    let cpu = scene.picture.cpu.as_ref().map_or_else(|| "CPU -".to_owned(), processors);
    format!(
        "{cpu}   all disks: {} requests/s, {} MB/s read, {} written",
        rate(requests),
        megabytes(sum(|disk| disk.done.read_bytes)),
        megabytes(sum(|disk| disk.done.written_bytes)),
    )
}

fn processors(cpu: &Cpu) -> String {
    // More have no room in a line.
    let each = cpu.workers.iter().take(4).map(|percent| format!(" {percent:.0}%"));
    let more = if cpu.workers.len() > 4 { " ..." } else { "" };
    format!("CPU {:.0}%, workers{}{more}", cpu.all_threads, each.collect::<String>())
}

/// What is out of the ordinary; nothing is.
fn notice(scene: &Scene<'_>) -> (String, Style) {
    let view = scene.view;
    let text = match scene.away {
        Some((since, why)) => {
            // A reason names its remedy last, which the line may have no room for.
            format!("NO ANSWER for {}, waiting: {}", time(Some(since.as_secs_f64())), printable(why))
        }
        None if view.is_paused => "PAUSED (p goes on)".to_owned(),
        None if view.is_filtering || !view.filter.is_empty() => {
            let end = if view.is_filtering { "_" } else { "" };
            return (format!("filter: {}{end}", printable(&view.filter)), Style::new());
        }
        None => return (String::new(), Style::new()),
    };
    (text, coloured(Color::Red, scene.is_coloured).add_modifier(Modifier::BOLD | Modifier::REVERSED))
}

/// What is wrong is seen without colours as well: its state says it in words.
fn of_standing(standing: Standing, scene: &Scene<'_>) -> Style {
    let colour = match standing {
        Standing::Hung(_) | Standing::Broken => Color::Red,
        Standing::Throttled | Standing::Held => Color::Yellow,
        _ => Color::Reset,
    };
    let style = coloured(colour, scene.is_coloured);
    if scene.away.is_some() { style.add_modifier(Modifier::DIM) } else { style }
}

const fn coloured(colour: Color, is_coloured: bool) -> Style {
    if is_coloured { Style::new().fg(colour) } else { Style::new() }
}

const fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

const fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

/// Where a table stands.
struct Rows {
    from: usize,
    /// Lines, with that of the head.
    room: usize,
    width: usize,
}

struct Canvas<'a> {
    buffer: &'a mut Buffer,
    area: Rect,
}

impl Canvas<'_> {
    /// Writes from the left on; what has no room is left out.
    fn line(&mut self, row: usize, text: &str, style: Style) {
        self.text(row, 0, text, usize::from(self.area.width), style);
    }

    fn text(&mut self, row: usize, column: usize, text: &str, width: usize, style: Style) {
        let (Ok(row), Ok(column)) = (u16::try_from(row), u16::try_from(column)) else { return };
        if row < self.area.height && column < self.area.width {
            self.buffer.set_stringn(self.area.x + column, self.area.y + row, text, width, style);
        }
    }

    fn table<Row>(
        &mut self,
        columns: &'static [Column<Row>],
        rows: &[&Row],
        chosen: Option<usize>,
        place: &Rows,
        style: impl Fn(&Row) -> Style,
    ) {
        let cells = |row: &Row| columns.first().map(|column| column.cell(row)).unwrap_or_default();
        let longest = rows.iter().map(|row| cells(row).chars().count()).max().unwrap_or(0);
        let shown = layout(columns, place.width, longest);
        let head: Vec<_> = shown.iter().map(|(column, _)| column.head.to_owned()).collect();
        if place.room > 0 {
            self.cells(place.from, &shown, &head, Style::new().add_modifier(Modifier::REVERSED));
        }
        let room = place.room.saturating_sub(1);
        // The chosen one is on the page.
        let first = chosen.map_or(0, |chosen| (chosen + 1).saturating_sub(room));
        for (line, (number, row)) in rows.iter().enumerate().skip(first).take(room).enumerate() {
            let mut style = style(row);
            if Some(number) == chosen {
                style = style.add_modifier(Modifier::BOLD | Modifier::UNDERLINED);
            }
            let cells: Vec<_> = shown.iter().map(|(column, _)| column.cell(row)).collect();
            self.cells(place.from + 1 + line, &shown, &cells, style);
        }
    }

    /// A line of a table, as wide as the terminal.
    fn cells<Row>(&mut self, row: usize, shown: &[(&Column<Row>, usize)], cells: &[String], style: Style) {
        self.line(row, &" ".repeat(usize::from(self.area.width)), style);
        let mut at = 0;
        for ((column, width), text) in shown.iter().zip(cells) {
            self.text(row, at, &column.fit(text, *width), *width, style);
            at += width + GAP;
        }
    }
}

#[cfg(test)]
mod tests;
