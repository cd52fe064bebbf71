//! The program as its users meet it: command line, messages, exit codes, signals, sockets.

#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

mod access;
mod activation;
mod config_file;
mod errors;
mod help;
mod info;
mod inherited;
mod life;
mod locks;
mod logging;
mod space;
mod started_by;
mod user_mode;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use rustix::process::{Pid, Signal};
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;

use common::process::ends_with_us;

/// The program with these arguments and nothing of this process's environment that changes what it does.
fn program<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-pmem"));
    command
        .args(args)
        .env_remove("VHOST_USER_PMEM_LOG")
        .env_remove("COLUMNS")
        .env("VHOST_USER_PMEM_SANDBOX_KILLS", "1")
        .stdin(Stdio::null());
    ends_with_us(&mut command);
    command
}

/// Runs it to its end.
fn run<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    program(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The program while it runs; killed and reaped when dropped.
struct Running(Child);

impl Running {
    fn spawn(mut command: Command) -> Self {
        Self(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        common::wait_for("the program ends", || self.0.try_wait().unwrap())
    }

    fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    fn output(&mut self) -> String {
        std::io::read_to_string(self.0.stdout.take().unwrap()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Insists on this exit code, nothing on standard output, and one `error:` line with all `parts`.
#[track_caller]
fn assert_error(output: &Output, code: i32, parts: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(stdout(output), "", "standard output of a failure");
    let errors: Vec<_> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{text}");
    for part in parts {
        assert!(errors[0].contains(part), "{part:?} is not in:\n{text}");
    }
}

/// An image of this many bytes, all zero.
fn image(path: &Path, bytes: u64) {
    std::fs::File::create(path).unwrap().set_len(bytes).unwrap();
}

/// Asks for the feature bits as a front-end does first of all, and insists on an answer.
#[track_caller]
fn assert_served(stream: UnixStream) -> Frontend {
    let frontend = Frontend::from_stream(stream, 1);
    frontend.set_owner().unwrap();
    let features = frontend.get_features().unwrap();
    assert_ne!(features & (1 << 32), 0, "VERSION_1 is not among {features:#x}");
    frontend
}

/// The other side has closed the connection.
fn is_closed(mut stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    matches!(stream.read(&mut [0]), Ok(0)) || stream.write(&[0]).is_err()
}
