//! Real Linux guests (in QEMU, and User-Mode Linux), firmware and GRUB on disks of the real daemon.
//!
//! Not a part of a plain `cargo test`: it needs QEMU, a kernel and tools, which `ci/lab/prepare` brings. Then
//! `cargo test --release --test guest -- --ignored [PART-OF-A-NAME]` runs it, as `ci/test` does. Each check is one
//! line, and the host decides: it looks at the image file, and a guest that stops answering has failed.
//!
//! With `--soak=kills=20,power-cuts=50,...` only what a disk must outlive is run, so often (`ci/soak`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, clippy::cast_possible_truncation, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

mod bad_media;
mod bytes;
mod client;
mod cluster;
mod filesystems;
mod firmware;
mod guest;
mod identity;
mod image;
mod interrupt;
mod lifecycle;
mod limits;
mod linux;
mod log_writes;
mod machine;
mod machine_check;
mod overlay;
mod pmem;
mod report;
mod soak;
mod user_mode;

use std::process::ExitCode;

use common::folder;
use machine::Kernel;
use report::Report;
use soak::Counts;

/// Set to a reason, it makes a machine that cannot run guests pass all the same.
const SKIP: &str = "VHOST_USER_PMEM_SKIP_GUEST";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        Some(("client", rest)) => {
            client::run(rest);
            return ExitCode::SUCCESS;
        }
        Some(("clone", rest)) => {
            client::clone(rest);
            return ExitCode::SUCCESS;
        }
        Some(("log-writes", [socket, seed, writes, way, promises])) => {
            let (seed, writes) = (seed.parse().unwrap(), writes.parse().unwrap());
            let way = log_writes::Way::parse(way);
            log_writes::front_end::run(socket.as_ref(), seed, writes, way, promises.as_ref());
            return ExitCode::SUCCESS;
        }
        Some(("soak", rest)) => {
            soak::in_guest::run(rest);
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let wanted = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if wanted("--list") {
        return ExitCode::SUCCESS;
    }
    if !wanted("--ignored") && !wanted("--include-ignored") {
        println!("guest test skipped: it needs QEMU and more; ci/lab/prepare brings them, then run");
        println!("    cargo test --release --test guest -- --ignored");
        return ExitCode::SUCCESS;
    }
    if let Some(reason) = std::env::var_os(SKIP) {
        println!("guest test skipped: {SKIP}={}", reason.display());
        return ExitCode::SUCCESS;
    }
    let kernels = [Kernel::Cloud, Kernel::Generic, Kernel::UserMode].map(Kernel::image);
    if let Some(missing) = kernels.iter().find(|image| !image.exists()) {
        println!("FAILED: there is no guest kernel ({}).", missing.display());
        println!("Run ci/lab/prepare first, or set {SKIP} to the reason why this machine cannot.");
        return ExitCode::FAILURE;
    }
    interrupt::removes_all_folders();
    let full = arguments.iter().find_map(|argument| argument.strip_prefix("--soak="));
    let full = full.map(|counts| Counts::parse(counts).expect("--soak=NAME=NUMBER,..."));
    let filter = arguments.into_iter().find(|argument| !argument.starts_with('-'));
    let mut report = Report::new(filter);
    if let Some(counts) = full {
        println!("{}", soak::run(&mut report, &counts));
        return report.close();
    }
    linux::run(&mut report);
    user_mode::run(&mut report);
    firmware::run(&mut report);
    pmem::run(&mut report);
    soak::run(&mut report, &Counts::SHORT);
    machine_check::run(&mut report);
    log_writes::run(&mut report);
    limits::run(&mut report);
    overlay::run(&mut report);
    report.close()
}
