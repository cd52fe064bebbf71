//! Links of the README and of the manual lead to chapters and files that exist.

use std::collections::HashSet;

use super::{readme, root};

/// What a heading is called in links, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The text without its blocks of code.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

fn anchors(text: &str) -> HashSet<String> {
    prose(text).lines().filter(|line| line.starts_with('#')).map(anchor).collect()
}

/// Where its links lead.
fn targets(text: &str) -> Vec<String> {
    let prose = prose(text);
    let ends = prose.split("](").skip(1).filter_map(|part| part.split_once(')'));
    ends.map(|(target, _)| target.to_owned()).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut count = 0;
    for (name, folder) in [
        ("README.md", ""),
        ("src/cli/man/manual.md", "src/cli/man"),
        ("tests/bench/README.md", "tests/bench"),
    ] {
        let text = std::fs::read_to_string(root().join(name)).unwrap();
        for target in targets(&text) {
            count += 1;
            let (file, chapter) = target.split_once('#').unwrap_or((&target, ""));
            let there = match file {
                _ if target.starts_with("https://") => continue,
                "" => text.clone(),
                file => {
                    let path = root().join(folder).join(file);
                    assert!(path.exists(), "{name} links to {file}");
                    std::fs::read_to_string(&path).unwrap_or_default()
                }
            };
            assert!(chapter.is_empty() || anchors(&there).contains(chapter), "{name} links to {target}");
        }
    }
    assert!(count > 20, "{count}");
}

/// Each chapter is in the table of contents, in its order.
#[test]
fn the_contents_are_complete() {
    let text = readme();
    let chapters =
        prose(&text).lines().filter(|line| line.starts_with("## ")).map(anchor).collect::<Vec<_>>();
    let (_, contents) = text.split_once("## Contents\n").expect("a table of contents");
    let contents = contents.split("\n## ").next().unwrap();
    let targets = targets(contents);
    let listed: Vec<_> = targets.iter().filter_map(|target| target.strip_prefix('#')).collect();
    let place = chapters.iter().position(|chapter| chapter == "contents").unwrap();
    assert_eq!(listed, chapters[place + 1..]);
}
