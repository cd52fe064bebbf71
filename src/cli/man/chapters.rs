//! Chapters of the manual page that are written in Markdown, for those who read the source as well: headings, paragraphs,
//! and tables of two columns whose rows become entries.

use clap_mangen::roff::{Roff, bold, roman};

const MANUAL: &str = include_str!("manual.md");
/// A chapter that only stands where there is a load generator.
const LOAD_GENERATOR: &str = if cfg!(feature = "bench") { include_str!("load_generator.md") } else { "" };

/// A piece of a chapter.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Heading(String),
    Paragraph(String),
    /// A row: what it is about, and what is said of it.
    Entry(String, String),
}

/// Adds the chapters to the page; what stands before the first is about the file.
pub(super) fn write(roff: &mut Roff) {
    let is_preface = |piece: &Piece| !matches!(piece, Piece::Heading(_));
    let chapters = pieces(MANUAL).into_iter().skip_while(is_preface).chain(pieces(LOAD_GENERATOR));
    for piece in chapters {
        match piece {
            Piece::Heading(text) => {
                roff.control("SH", [text.to_uppercase().as_str()]);
            }
            Piece::Paragraph(text) => {
                roff.control("PP", []);
                roff.text([roman(text)]);
            }
            Piece::Entry(head, text) => {
                roff.control("TP", []);
                roff.text([bold(head)]);
                roff.text([roman(text)]);
            }
        }
    }
}

fn pieces(markdown: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for block in markdown.split("\n\n").map(str::trim).filter(|block| !block.is_empty()) {
        if let Some(title) = block.strip_prefix("## ") {
            pieces.push(Piece::Heading(title.to_owned()));
        } else if block.starts_with('|') {
            // The first two lines are the columns' names and a rule.
            pieces.extend(block.lines().skip(2).filter_map(entry));
        } else if !block.starts_with('#') {
            pieces.push(Piece::Paragraph(plain(&block.replace('\n', " "))));
        }
    }
    pieces
}

fn entry(row: &str) -> Option<Piece> {
    let (head, text) = row.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
    Some(Piece::Entry(plain(head), plain(text)))
}

/// Without the marks of code and stress: a `*` that stands in a name stays.
fn plain(text: &str) -> String {
    text.replace('`', "").replace("*all*", "all")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_becomes_chapters() {
        let text = "# Preface\n\nAbout it.\n\n## One\n\nA `word`,\nand more.\n\n| a | b |\n| --- | --- |\n| `x` | y z. |\n";
        let expected = [
            Piece::Paragraph("About it.".to_owned()),
            Piece::Heading("One".to_owned()),
            Piece::Paragraph("A word, and more.".to_owned()),
            Piece::Entry("x".to_owned(), "y z.".to_owned()),
        ];
        assert_eq!(pieces(text), expected);
    }

    /// No other Markdown than is understood here, and nothing that is lost.
    #[test]
    fn the_manual_is_understood() {
        let rows = MANUAL.lines().filter(|line| line.starts_with('|')).count();
        let tables = MANUAL.lines().filter(|line| *line == "| --- | --- |").count();
        let pieces = pieces(MANUAL);
        let entries = pieces.iter().filter(|piece| matches!(piece, Piece::Entry(..))).count();
        assert_eq!(entries, rows - 2 * tables);
        for line in MANUAL.lines().skip(4) {
            let known = ["```", "- ", "1. ", "### ", "> ", "    "].iter().all(|mark| !line.starts_with(mark));
            assert!(known && !line.contains("]("), "{line}");
            assert!(!line.starts_with('|') || line.matches(" | ").count() == 1, "{line}");
        }
    }
}
