//! What the scenarios have shown, as a table for people.

use std::fmt::{self, Display, Formatter};
use std::time::{Duration, Instant};

/// One thing that a scenario did so many times.
#[derive(Debug)]
pub struct Row {
    pub what: String,
    pub rounds: u32,
    pub seconds: f32,
    /// From each interruption to the first request that was completed after it. Reported, never judged.
    pub pauses: Vec<Duration>,
}

impl Row {
    /// What could not be tried here, and why.
    pub fn skipped(why: &str) -> Self {
        Self { what: format!("skipped: {why}"), rounds: 0, seconds: 0.0, pauses: Vec::new() }
    }

    /// What was done once, since `start`.
    pub fn once(what: String, start: Instant) -> Self {
        Self { what, rounds: 1, seconds: start.elapsed().as_secs_f32(), pauses: Vec::new() }
    }
}

/// All rows; of a scenario that failed its name only.
#[derive(Debug, Default)]
pub struct Table(Vec<(String, Option<Row>)>);

impl Table {
    /// Adds what a scenario has shown; `None` when it failed.
    pub fn add(&mut self, scenario: &str, rows: Option<Vec<Row>>) {
        match rows {
            None => self.0.push((scenario.to_owned(), None)),
            Some(rows) => {
                self.0.extend(rows.into_iter().map(|row| (format!("{scenario}: {}", row.what), Some(row))));
            }
        }
    }
}

impl Display for Table {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        let title = "pause min/median/max";
        writeln!(out, "\n{:width$}  rounds  result  seconds  {title}", "scenario")?;
        for (name, row) in &self.0 {
            match row {
                Some(Row { rounds, seconds, pauses, .. }) => {
                    writeln!(out, "{name:width$}  {rounds:6}  ok      {seconds:7.0}  {}", spread(pauses))?;
                }
                None => writeln!(out, "{name:width$}       -  FAILED        -  -")?,
            }
        }
        Ok(())
    }
}

impl Display for Row {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        write!(out, "{} × {}", self.rounds, self.what)?;
        match self.pauses.as_slice() {
            [] => Ok(()),
            pauses => write!(out, ", pause {}", spread(pauses)),
        }
    }
}

fn spread(pauses: &[Duration]) -> String {
    let mut sorted: Vec<u128> = pauses.iter().map(Duration::as_millis).collect();
    sorted.sort_unstable();
    match sorted.as_slice() {
        [] => "-".to_owned(),
        [least, .., most] => format!("{least}/{}/{most} ms", sorted[sorted.len() / 2]),
        [only] => format!("{only} ms"),
    }
}
