//! The numbers as a table for people, in Markdown.

use std::fmt::Write as _;

use crate::common::quartiles;
use crate::matrix::{MATRIX, Show};

/// A line: for each back-end, and the bare loop behind them, the numbers of each round.
pub struct Line {
    name: String,
    show: Show,
    pub columns: Vec<Vec<Vec<f64>>>,
}

/// A line for each number of each load, in the matrix's order.
pub fn lines(columns: usize) -> Vec<Vec<Line>> {
    let line = |name: &str, show: Show| Line {
        name: format!("{name}{}", show.unit()),
        show,
        columns: vec![Vec::new(); columns],
    };
    MATRIX.iter().map(|row| row.shows.iter().map(|show| line(row.name, *show)).collect()).collect()
}

/// A table's first two lines.
pub fn head(first: &str, names: &[&str]) -> String {
    format!("| {first} | {} |\n| --- |{}\n", names.join(" | "), " ---: |".repeat(names.len()))
}

impl Line {
    /// Medians, and between which values the middle half is.
    pub fn numbers(&self) -> String {
        let mut text = format!("| {} |", self.name);
        for rounds in &self.columns {
            match middle(rounds.iter().flatten()) {
                Some([low, median, high]) => write!(text, " {median:.2} ({low:.2} – {high:.2}) |").unwrap(),
                None => text += " – |",
            }
        }
        text + "\n"
    }

    /// How many times better the first column is, by the medians of rounds that followed one another.
    pub fn ratios(&self) -> String {
        let mut text = format!("| {} |", self.name);
        let medians = |rounds: &[Vec<f64>]| -> Vec<Option<f64>> {
            rounds.iter().map(|round| middle(round.iter()).map(|[_, median, _]| median)).collect()
        };
        let ours = medians(&self.columns[0]);
        for rounds in &self.columns[1..] {
            let pairs = ours.iter().zip(medians(rounds)).filter_map(|(a, b)| Some(((*a)?, b?)));
            let better = pairs.map(|(a, b)| if self.show.more_is_better() { a / b } else { b / a });
            match middle(better.collect::<Vec<_>>().iter()) {
                Some([low, median, high]) => write!(text, " {median:.2} ({low:.2} – {high:.2}) |").unwrap(),
                None => text += " – |",
            }
        }
        text + "\n"
    }
}

fn middle<'a>(numbers: impl Iterator<Item = &'a f64>) -> Option<[f64; 3]> {
    let mut numbers = numbers.copied().filter(|number| number.is_finite()).peekable();
    numbers.peek().is_some().then(|| quartiles(numbers))
}
