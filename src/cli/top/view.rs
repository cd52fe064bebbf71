//! What is looked at, and how: what keys change. It knows no terminal.

use std::cmp::Ordering;

use clap::ValueEnum;

use super::rates::{DiskRow, Picture, RingRow};

/// What disks and rings are sorted by; the largest first, but names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Sort {
    /// The order in which they came
    Given,
    Name,
    /// Requests a second
    Iops,
    Read,
    Write,
    /// Bytes a second
    Bytes,
    P99,
    Depth,
    Amplification,
    State,
}

/// A key that was pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Char(char),
    Enter,
    Escape,
    Backspace,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
}

/// What the user wants to see.
#[derive(Debug)]
pub(super) struct View {
    pub(super) sort: Sort,
    pub(super) is_reversed: bool,
    /// A part of the names of disks.
    pub(super) filter: String,
    /// It is being written.
    pub(super) is_filtering: bool,
    pub(super) is_paused: bool,
    pub(super) shows_help: bool,
    /// The disk that is chosen, by its name: it keeps that when it moves.
    pub(super) chosen: Option<String>,
    /// The disk whose rings are shown.
    pub(super) rings_of: Option<String>,
}

/// Rows that Page Up and Page Down go.
const PAGE: usize = 10;

impl Sort {
    /// The next one, and after the last the first.
    fn next(self) -> Self {
        let all = Self::value_variants();
        let place = all.iter().position(|it| *it == self).map_or(0, |place| place + 1);
        all.get(place).or(all.first()).copied().unwrap_or(self)
    }

    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|it| it.get_name().to_owned()).unwrap_or_default()
    }
}

impl View {
    pub(super) const fn new(sort: Sort, filter: String, rings_of: Option<String>) -> Self {
        Self {
            sort,
            is_reversed: false,
            filter,
            is_filtering: false,
            is_paused: false,
            shows_help: false,
            chosen: None,
            rings_of,
        }
    }

    /// The disks to be shown, in their order.
    pub(super) fn disks<'a>(&self, picture: &'a Picture) -> Vec<&'a DiskRow> {
        let mut disks: Vec<_> =
            picture.disks.iter().filter(|disk| disk.name.contains(&self.filter)).collect();
        // Stable: what is equal stays as it came.
        disks.sort_by(|left, right| self.ordered(of_disks(self.sort, left, right)));
        disks
    }

    /// The rings to be shown, in their order.
    pub(super) fn rings<'a>(&self, picture: &'a Picture) -> Vec<&'a RingRow> {
        let is_wanted = |ring: &&RingRow| Some(&ring.disk) == self.rings_of.as_ref();
        let mut rings: Vec<_> = picture.rings.iter().filter(is_wanted).collect();
        rings.sort_by(|left, right| self.ordered(of_rings(self.sort, left, right)));
        rings
    }

    fn ordered(&self, order: Ordering) -> Ordering {
        if self.is_reversed { order.reverse() } else { order }
    }

    /// Where the chosen disk stands among those that are shown; the first, if it is not.
    pub(super) fn place(&self, disks: &[&DiskRow]) -> usize {
        disks.iter().position(|disk| Some(&disk.name) == self.chosen.as_ref()).unwrap_or(0)
    }

    /// Does what a key means. Says whether to go on.
    pub(super) fn press(&mut self, key: Key, picture: &Picture) -> bool {
        if self.is_filtering {
            self.write_filter(key);
            return true;
        }
        match key {
            Key::Char('q') => return false,
            Key::Char('s') => self.sort = self.sort.next(),
            Key::Char('r') => self.is_reversed = !self.is_reversed,
            Key::Char('/') => self.is_filtering = true,
            Key::Char('p' | ' ') => self.is_paused = !self.is_paused,
            Key::Char('?' | 'h') => self.shows_help = !self.shows_help,
            Key::Enter if self.rings_of.is_none() => {
                let disks = self.disks(picture);
                self.rings_of = disks.get(self.place(&disks)).map(|disk| disk.name.clone());
            }
            Key::Escape | Key::Backspace | Key::Enter => {
                if self.shows_help {
                    self.shows_help = false;
                } else if self.rings_of.take().is_none() {
                    self.filter.clear();
                }
            }
            key => self.choose(key, picture),
        }
        true
    }

    fn write_filter(&mut self, key: Key) {
        match key {
            Key::Char(letter) if !letter.is_control() => self.filter.push(letter),
            Key::Backspace => {
                self.filter.pop();
            }
            Key::Escape => {
                self.filter.clear();
                self.is_filtering = false;
            }
            Key::Enter => self.is_filtering = false,
            _ => {}
        }
    }

    fn choose(&mut self, key: Key, picture: &Picture) {
        let disks = self.disks(picture);
        let (place, last) = (self.place(&disks), disks.len().saturating_sub(1));
        let place = match key {
            Key::Up | Key::Char('k') => place.saturating_sub(1),
            Key::Down | Key::Char('j') => place.saturating_add(1),
            Key::PageUp => place.saturating_sub(PAGE),
            Key::PageDown => place.saturating_add(PAGE),
            Key::Home => 0,
            Key::End => last,
            _ => return,
        };
        self.chosen = disks.get(place.min(last)).map(|disk| disk.name.clone());
    }
}

fn of_disks(sort: Sort, left: &DiskRow, right: &DiskRow) -> Ordering {
    let (one, other) = (&left.done, &right.done);
    match sort {
        Sort::Given => Ordering::Equal,
        Sort::Name => left.name.cmp(&right.name),
        Sort::Iops => {
            larger(sum([one.reads, one.writes, one.flushes]), sum([other.reads, other.writes, other.flushes]))
        }
        Sort::Read => larger(one.reads, other.reads),
        Sort::Write => larger(one.writes, other.writes),
        Sort::Bytes => {
            larger(sum([one.read_bytes, one.written_bytes]), sum([other.read_bytes, other.written_bytes]))
        }
        Sort::P99 => larger(left.p99, right.p99),
        Sort::Depth => right.depth.cmp(&left.depth),
        Sort::Amplification => larger(left.amplification, right.amplification),
        Sort::State => larger(Some(left.standing), Some(right.standing)),
    }
}

fn of_rings(sort: Sort, left: &RingRow, right: &RingRow) -> Ordering {
    let (one, other) = (&left.done, &right.done);
    match sort {
        Sort::Iops => {
            larger(sum([one.reads, one.writes, one.flushes]), sum([other.reads, other.writes, other.flushes]))
        }
        Sort::Read => larger(one.reads, other.reads),
        Sort::Write => larger(one.writes, other.writes),
        Sort::Bytes => {
            larger(sum([one.read_bytes, one.written_bytes]), sum([other.read_bytes, other.written_bytes]))
        }
        Sort::Depth => right.depth.cmp(&left.depth),
        Sort::State => larger(Some(left.standing), Some(right.standing)),
        // They have no names, and what is not known of one is known of none.
        Sort::Given | Sort::Name | Sort::P99 | Sort::Amplification => Ordering::Equal,
    }
}

/// The larger one first; what is not known last.
fn larger<T: PartialOrd>(left: Option<T>, right: Option<T>) -> Ordering {
    right.partial_cmp(&left).unwrap_or(Ordering::Equal)
}

fn sum<const COUNT: usize>(values: [Option<f64>; COUNT]) -> Option<f64> {
    values.into_iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::rates::{Done, Standing};

    fn disk(name: &str, reads: f64) -> DiskRow {
        let done = Done { reads: Some(reads), writes: Some(0.0), flushes: Some(0.0), ..Done::default() };
        DiskRow { name: name.to_owned(), done, ..DiskRow::default() }
    }

    fn picture() -> Picture {
        let new = DiskRow { name: "new".to_owned(), standing: Standing::Hung(3.0), ..DiskRow::default() };
        let ring = |disk: &str, ring| RingRow { disk: disk.to_owned(), ring, ..RingRow::default() };
        Picture {
            disks: vec![disk("slow", 1.0), new, disk("fast", 9.0)],
            rings: vec![ring("fast", 0), ring("slow", 0), ring("fast", 1)],
            ..Picture::default()
        }
    }

    fn names(view: &View) -> Vec<String> {
        view.disks(&picture()).iter().map(|disk| disk.name.clone()).collect()
    }

    fn view() -> View {
        View::new(Sort::Iops, String::new(), None)
    }

    #[test]
    fn disks_are_sorted_by_each_key() {
        let mut view = view();
        assert_eq!(names(&view), ["fast", "slow", "new"], "what is not known is last");
        view.press(Key::Char('r'), &picture());
        assert_eq!(names(&view), ["new", "slow", "fast"]);
        view.press(Key::Char('r'), &picture());
        view.sort = Sort::Name;
        assert_eq!(names(&view), ["fast", "new", "slow"]);
        view.sort = Sort::State;
        assert_eq!(names(&view)[0], "new");
        view.sort = Sort::Given;
        assert_eq!(names(&view), ["slow", "new", "fast"]);
        let before = view.sort;
        for _ in Sort::value_variants() {
            view.press(Key::Char('s'), &picture());
            let _ = (names(&view), view.rings(&picture()));
        }
        assert_eq!(view.sort, before, "it goes round");
    }

    #[test]
    fn a_part_of_the_names_is_shown() {
        let mut view = view();
        for key in "/fax".chars().map(Key::Char) {
            view.press(key, &picture());
        }
        assert!(names(&view).is_empty());
        view.press(Key::Backspace, &picture());
        assert_eq!(names(&view), ["fast"]);
        assert!(view.press(Key::Char('q'), &picture()), "it is a letter there");
        view.press(Key::Backspace, &picture());
        view.press(Key::Enter, &picture());
        assert_eq!((view.is_filtering, names(&view)), (false, vec!["fast".to_owned()]));
        view.press(Key::Escape, &picture());
        assert_eq!(names(&view).len(), 3);
    }

    #[test]
    fn the_chosen_disk_is_kept_when_it_moves() {
        let mut view = view();
        let place = |view: &View| view.place(&view.disks(&picture()));
        view.press(Key::Down, &picture());
        assert_eq!((view.chosen.as_deref(), place(&view)), (Some("slow"), 1));
        view.press(Key::Char('r'), &picture());
        view.sort = Sort::Given;
        assert_eq!(place(&view), 0);
        view.press(Key::End, &picture());
        view.press(Key::PageDown, &picture());
        assert_eq!(place(&view), 2);
        view.press(Key::Home, &picture());
        view.press(Key::Up, &picture());
        assert_eq!(place(&view), 0);
        assert!(view.press(Key::Down, &Picture::default()), "there may be none");
        view.press(Key::Enter, &Picture::default());
        assert_eq!(view.rings_of, None);
    }

    #[test]
    fn rings_of_the_chosen_disk_are_shown() {
        let mut view = view();
        view.press(Key::Enter, &picture());
        assert_eq!(view.rings_of.as_deref(), Some("fast"));
        assert_eq!(view.rings(&picture()).len(), 2);
        view.press(Key::Escape, &picture());
        assert_eq!(view.rings_of, None);
        view.press(Key::Char('p'), &picture());
        assert!(view.is_paused);
        assert!(!view.press(Key::Char('q'), &picture()));
    }
}
