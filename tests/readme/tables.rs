//! Tables behind `<!-- table: NAME -->` are those that the program prints.

use std::collections::BTreeMap;
use std::process::Command;

use super::{readme, root};

const UPDATE: &str = "UPDATE_README";

/// The tables of a text by their names, each with its lines.
fn tables(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut tables = BTreeMap::new();
    for part in text.split("<!-- table: ").skip(1) {
        let (name, rest) = part.split_once(" -->\n").expect("a name");
        let lines = rest.lines().take_while(|line| line.starts_with('|')).map(ToOwned::to_owned).collect();
        assert!(tables.insert(name.to_owned(), lines).is_none(), "table {name} stands twice");
    }
    tables
}

/// What the one has and the other has not, both ways, and then where they are in another order.
fn differences(readme: &[String], program: &[String]) -> Vec<String> {
    let missing = program.iter().filter(|row| !readme.contains(row)).map(|row| format!("missing: {row}"));
    let extra = readme.iter().filter(|row| !program.contains(row)).map(|row| format!("too much: {row}"));
    let mut differences: Vec<_> = missing.chain(extra).collect();
    if differences.is_empty() && readme != program {
        differences.push("the rows are in another order, or one stands twice".to_owned());
    }
    differences
}

fn of_the_program() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO_BIN_EXE_vhost-user-pmem")).arg("reference").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    tables(&String::from_utf8(output.stdout).unwrap())
}

#[test]
fn its_tables_are_those_of_the_program() {
    let (text, program) = (readme(), of_the_program());
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(root().join("README.md"), with(&text, &program)).unwrap();
        return;
    }
    let here = tables(&text);
    let names = |tables: &BTreeMap<String, Vec<String>>| tables.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&here), names(&program), "README.md has other tables than the program");
    for (name, rows) in &program {
        let found = differences(&here[name], rows);
        assert!(
            found.is_empty(),
            "README.md, table {name}:\n{}\n`{UPDATE}=1 cargo test --test readme` writes the program's tables there",
            found.join("\n")
        );
    }
}

/// The text with the program's tables in place of its own.
fn with(text: &str, program: &BTreeMap<String, Vec<String>>) -> String {
    program.iter().fold(text.to_owned(), |text, (name, rows)| {
        let begin = format!("<!-- table: {name} -->\n");
        let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("no place for table {name}"));
        let after: String = rest.split_inclusive('\n').skip_while(|line| line.starts_with('|')).collect();
        format!("{before}{begin}{}\n{after}", rows.join("\n"))
    })
}

/// A table that says something else is found: a row too few, a row too many, another default, another order.
#[test]
fn a_difference_is_found() {
    for (name, rows) in of_the_program() {
        assert!(differences(&rows, &rows).is_empty());
        assert!(rows.len() >= 4, "{name} has no rows: {rows:?}");
        let last = rows.len() - 1;
        let mut other = rows.clone();
        other.remove(last);
        assert_eq!(differences(&other, &rows), [format!("missing: {}", rows[last])]);
        other = rows.clone();
        other.push("| `--planted` | | |".to_owned());
        assert_eq!(differences(&other, &rows), ["too much: | `--planted` | | |"]);
        other = rows.clone();
        other[last].insert(3, '!');
        assert_eq!(differences(&other, &rows).len(), 2);
        other = rows.clone();
        other.swap(last - 1, last);
        assert_eq!(differences(&other, &rows).len(), 1);
    }
}
