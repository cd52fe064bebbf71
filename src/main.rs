//! The `vhost-user-pmem` program; everything it does is in [`vhost_user_pmem::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    vhost_user_pmem::cli::run(std::env::args_os().collect())
}
