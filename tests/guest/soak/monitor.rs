//! QEMU's machine protocol (QMP): one JSON object a line.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::machine::PATIENCE;

/// The monitor of a machine.
#[derive(Debug)]
pub struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// The arguments that give a machine a monitor at `socket`.
    pub fn arguments(socket: &Path) -> [String; 2] {
        ["-qmp".to_owned(), format!("unix:{},server=on,wait=off", socket.display())]
    }

    /// Connects to a machine that runs.
    pub fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut monitor = Self(BufReader::new(stream));
        assert!(monitor.receive().get("QMP").is_some(), "no greeting");
        monitor.run("qmp_capabilities", &json!({}));
        monitor
    }

    /// Runs a command that must succeed; what it returns.
    pub fn run(&mut self, command: &str, arguments: &Value) -> Value {
        let answer = self.ask(command, arguments);
        answer.unwrap_or_else(|error| panic!("QEMU, asked to {command} {arguments}: {error}"))
    }

    /// Runs a command; what it returns, or why QEMU refuses it.
    pub fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        writeln!(self.0.get_mut(), "{}", json!({ "execute": command, "arguments": arguments })).unwrap();
        loop {
            let mut answer = self.receive();
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer["error"]["desc"].as_str() {
                return Err(error.to_owned());
            }
            // Events come in between.
            assert!(answer.get("event").is_some(), "QEMU, asked to {command} {arguments}: {answer}");
        }
    }

    /// Asks for the `status` that `command` returns until it is `wanted`; `meanwhile` is called in between.
    pub fn await_status(&mut self, command: &str, wanted: &str, mut meanwhile: impl FnMut()) {
        self.await_answer(command, |answer| {
            meanwhile();
            assert_ne!(answer["status"], "failed", "{command}: {answer}");
            answer["status"] == wanted
        });
    }

    /// Asks `command` until its answer is `enough`.
    pub fn await_answer(&mut self, command: &str, mut enough: impl FnMut(&Value) -> bool) {
        let start = Instant::now();
        loop {
            let answer = self.run(command, &json!({}));
            if enough(&answer) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{command}, after {PATIENCE:?}: {answer}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("QEMU's monitor said {line:?}: {error}"))
    }
}
