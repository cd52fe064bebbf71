#!/bin/bash
# prometheus-parse 0.2.5 (crates.io): labels and whole samples of Prometheus' text format are lost without an error.
#
# A label's value is any text; only backslash, quote and line feed are written with a backslash (Prometheus' exposition
# formats, "text format details"). The crate cuts a value at a comma, drops a label with an equals sign in its value, drops
# a sample with a closing brace in a value, or with braces and nothing between them, and leaves backslashes in: a disk
# whose metrics carry the path `/srv/a,b.img` becomes another one.
#
# Needs cargo.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
mkdir src
cat >Cargo.toml <<'TOML'
[package]
name = "look"
version = "0.0.0"
edition = "2021"
[dependencies]
prometheus-parse = "=0.2.5"
TOML
cat >src/main.rs <<'RUST'
fn main() {
    for line in [r#"m{path="/a.img"} 1"#, r#"m{path="/a,b.img"} 1"#, r#"m{path="/a=b.img",n="1"} 1"#, r#"m{path="/a}b"} 1"#, "m{} 1", r#"m{path="a\\b"} 1"#] {
        let scrape = prometheus_parse::Scrape::parse([Ok(line.to_string())].into_iter()).unwrap();
        let samples: Vec<_> = scrape.samples.iter().map(|it| format!("{:?}", it.labels)).collect();
        println!("{line}  ->  {}", samples.join(" "));
    }
}
RUST
seen=$(cargo -q run)
echo "$seen"
want='m{path="/a.img"} 1  ->  Labels({"path": "/a.img"})
m{path="/a,b.img"} 1  ->  Labels({"path": "/a"})
m{path="/a=b.img",n="1"} 1  ->  Labels({"n": "1"})
m{path="/a}b"} 1  ->  
m{} 1  ->  
m{path="a\\b"} 1  ->  Labels({"path": "a\\\\b"})'
[ "$seen" = "$want" ] || { echo "changed"; exit 1; }
echo "as seen on 30 November 2026"
