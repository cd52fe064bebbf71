//! Runs inputs through a target without a fuzzer: `replay TARGET FILE-OR-FOLDER...`. Coverage is measured with it.

use std::path::PathBuf;

use vhost_user_pmem_fuzz::targets;

fn main() {
    let mut args = std::env::args_os().skip(1);
    let name = args.next().and_then(|name| name.into_string().ok()).expect("replay TARGET FILE-OR-FOLDER...");
    let run = targets::named(&name);
    let mut count = 0;
    for path in args.map(PathBuf::from) {
        let files: Vec<PathBuf> = match std::fs::read_dir(&path) {
            Ok(folder) => folder.map(|entry| entry.unwrap().path()).collect(),
            Err(_) => vec![path],
        };
        for file in files {
            run(&std::fs::read(file).unwrap());
            count += 1;
        }
    }
    println!("{name}: {count} inputs");
}
