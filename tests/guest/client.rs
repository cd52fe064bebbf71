//! A client for guests that run the daemon themselves: this test's own program, as `guest client SOCKET OPERATION...`.
//!
//! Operations are `write:OFFSET:BYTES:SEED`, `verify:OFFSET:BYTES:SEED`, `flush`, `writeback`,
//! and `metric:NAME`, which is the first sample of that metric beside the socket, and `bad-bytes`, which is that metric
//! of the disk named `disk`. Each prints one line: itself, and `ok`, `differs`, `errno N` or a value.

use std::fs::File;
use std::path::Path;

use super::common::driver::{Driver, Options, Outcome, Request};
use super::common::{metrics, pattern};

/// Carries out `SOCKET OPERATION...`.
pub fn run(arguments: &[String]) {
    let (socket, operations) = arguments.split_first().expect("SOCKET OPERATION...");
    let mut driver = Driver::connect(Path::new(socket), Options::default());
    for operation in operations {
        println!("{operation} {}", carry_out(&mut driver, Path::new(socket), operation));
    }
}

/// Makes the second path a file that shares its blocks with the first.
pub fn clone(paths: &[String]) {
    let [from, to] = paths else { panic!("FROM TO") };
    rustix::fs::ioctl_ficlone(File::create(to).unwrap(), File::open(from).unwrap()).unwrap();
}

fn carry_out(driver: &mut Driver, socket: &Path, operation: &str) -> String {
    let words: Vec<&str> = operation.split(':').collect();
    let number = |index: usize| words[index].parse::<u64>().expect("a number");
    let bytes = || usize::try_from(number(2)).unwrap();
    match words[0] {
        "write" => said(driver.queue().write(number(1), &pattern(number(3), bytes()))),
        "verify" => match driver.queue().read(number(1), bytes()) {
            Ok(found) if found == pattern(number(3), bytes()) => "ok".to_owned(),
            Ok(_) => "differs".to_owned(),
            Err(errno) => said(Err(errno)),
        },
        "flush" => said(driver.queue().run(&Request::Flush)),
        "bad-bytes" => {
            let samples = metrics::read(&socket.with_file_name("metrics.sock"));
            samples[r#"bad_bytes{disk="disk"}"#].to_string()
        }
        "metric" => {
            let samples = metrics::read(&socket.with_file_name("metrics.sock"));
            let sample = samples.iter().find(|(name, _)| name.starts_with(&format!("{}{{", words[1])));
            sample.map_or("none".to_owned(), |(name, value)| format!("{name} {value}"))
        }
        "writeback" => driver.config().writeback.to_string(),
        other => panic!("{other} is no operation"),
    }
}

fn said(outcome: Outcome) -> String {
    match outcome {
        Ok(()) => "ok".to_owned(),
        Err(errno) => format!("errno {errno}"),
    }
}
