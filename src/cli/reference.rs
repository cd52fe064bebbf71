//! `vhost-user-pmem reference`: the tables of the README, made of what the program is defined by.
//!
//! `cargo test --test readme` compares each of them with the README, and `UPDATE_README=1` in its environment writes them
//! there. The manual page is made of the same definitions.

use std::io::Write;

use crate::api::metrics::FAMILIES;
use crate::cli::exit::{Exit, Failure};
use crate::config::keys::Key;
use crate::limits::table;

/// A table of the README.
struct Table {
    name: &'static str,
    columns: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Table {
    /// In Markdown, behind the comment by which it is found.
    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let header: Vec<_> = self.columns.iter().map(|&column| column.to_owned()).collect();
        let rule: Vec<_> = self.columns.iter().map(|_| "---".to_owned()).collect();
        let rows: String = self
            .rows
            .iter()
            .map(|row| line(&row.iter().map(|cell| escaped(cell)).collect::<Vec<_>>()))
            .collect();
        let name = self.name;
        format!("<!-- table: {name} -->\n{}{}{rows}", line(&header), line(&rule))
    }
}

/// A vertical bar ends a cell.
fn escaped(cell: &str) -> String {
    cell.replace('|', "\\|").replace('\n', " ")
}

/// Writes all tables to standard output.
pub(super) fn print() -> Result<(), Failure> {
    let tables = [keys(), exit_codes(), metrics(), limits()];
    let mut out = std::io::stdout().lock();
    let text: String = tables.iter().map(|table| table.markdown() + "\n").collect();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Failure::Output)
}

fn keys() -> Table {
    let row = |key: Key| {
        let changes = if key.is_changeable() { "yes" } else { "" };
        vec![
            format!("`{}={}`", key.name(), key.form()),
            key.meaning(),
            key.default().to_owned(),
            changes.to_owned(),
        ]
    };
    let columns = &["key", "meaning", "default", "changeable at run time"];
    Table { name: "keys", columns, rows: Key::listed().map(row).collect() }
}

fn exit_codes() -> Table {
    let row = |exit: Exit| vec![exit.code().to_string(), exit.meaning().to_owned()];
    Table { name: "exit-codes", columns: &["code", "cause"], rows: Exit::ALL.into_iter().map(row).collect() }
}

fn metrics() -> Table {
    let rows = FAMILIES.iter().map(|family| vec![format!("`{}`", family.name), family.help.to_owned()]);
    Table { name: "metrics", columns: &["metric", "meaning"], rows: rows.collect() }
}

fn limits() -> Table {
    let row = |bound: table::Bound| {
        let metric = bound.metric.map(|name| format!("`{name}`")).unwrap_or_default();
        vec![bound.what.to_owned(), bound.limit, bound.beyond.to_owned(), metric]
    };
    Table {
        name: "limits",
        columns: &["what", "limit", "beyond it", "counted by"],
        rows: table::of_peers().into_iter().map(row).collect(),
    }
}
