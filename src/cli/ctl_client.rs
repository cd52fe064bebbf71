//! A client of the control socket: one request a connection.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use serde_json::Value;

/// How the server calls itself.
const SERVER: &str = "vhost-user-pmem/";

/// What is taken of an answer: who answers may be anybody. A hundred thousand disks have room.
const MAX_ANSWER_BYTES: u64 = 256 << 20;

/// What was asked for and did not happen.
#[derive(Debug, thiserror::Error)]
pub(super) enum CtlError {
    #[error(
        "--socket is missing; name the control socket of the server (serve --control), or set VHOST_USER_PMEM_CONTROL"
    )]
    NoSocket,
    #[error(
        "--control is missing; name the control socket of the server (serve --control), or set VHOST_USER_PMEM_CONTROL"
    )]
    NoControl,
    #[error("{}: cannot reach the server ({source}); check that it runs, and that this is what serve --control names", socket.display())]
    Unreachable { socket: PathBuf, source: io::Error },
    #[error("{}: this is no control socket of vhost-user-pmem ({found}); check --socket", socket.display())]
    Stranger { socket: PathBuf, found: String },
    /// The server has said why.
    #[error("{detail}")]
    Problem { code: String, detail: String },
    #[error("the server is version {theirs}, and this program is {}: {detail}; use the program of that version", env!("CARGO_PKG_VERSION"))]
    OtherVersion { theirs: String, detail: String },
}

/// What was answered.
#[derive(Debug)]
struct Answer {
    status: u16,
    /// The version of the server.
    version: String,
    body: String,
    /// The process that listens, if it can be seen from here.
    process: Option<i32>,
}

/// The server behind a socket.
#[derive(Debug)]
pub(super) struct Client<'a>(pub(super) &'a Path);

impl Client<'_> {
    /// Asks for something, and waits for as long as it takes. Answers with the body; null where there is none.
    pub(super) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, CtlError> {
        self.ask_within(method, path, body, None).map(|(answer, _)| answer)
    }

    /// The same, and which process it is; a part of the answer may take that long.
    pub(super) fn ask_within(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        patience: Option<Duration>,
    ) -> Result<(Value, Option<i32>), CtlError> {
        let Answer { status, version, body, process } = self.exchange(method, path, body, patience)?;
        let json = match body.trim() {
            "" => Value::Null,
            body => serde_json::from_str(body).map_err(|error| self.stranger(error.to_string()))?,
        };
        if (200..300).contains(&status) {
            return Ok((json, process));
        }
        let text = |name: &str| json.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (code, detail) = (text("code"), text("detail"));
        let is_other = version != env!("CARGO_PKG_VERSION");
        if is_other && ["", "no-such-path", "bad-method", "bad-query", "unknown-key"].contains(&code.as_str())
        {
            let detail = if detail.is_empty() { format!("it answers {status}") } else { detail };
            return Err(CtlError::OtherVersion { theirs: version, detail });
        }
        match detail.is_empty() {
            true => Err(self.stranger(format!("it answers {status}"))),
            false => Err(CtlError::Problem { code, detail }),
        }
    }

    fn exchange(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        patience: Option<Duration>,
    ) -> Result<Answer, CtlError> {
        let unreachable = |source| CtlError::Unreachable { socket: self.0.to_owned(), source };
        let mut stream = UnixStream::connect(self.0).map_err(unreachable)?;
        stream.set_read_timeout(patience).map_err(unreachable)?;
        let process = socket_peercred(&stream).ok().map(|peer| peer.pid.as_raw_nonzero().get());
        let body = body.map(Value::to_string).unwrap_or_default();
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{kind}Content-Length: {length}\r\n\r\n");
        let mut received = Vec::new();
        let asked = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
        // What is refused early is answered all the same.
        let read = (&stream).take(MAX_ANSWER_BYTES).read_to_end(&mut received);
        if received.is_empty() {
            asked.and(read).map_err(unreachable)?;
        }
        self.parse(&received, process)
    }

    fn parse(&self, received: &[u8], process: Option<i32>) -> Result<Answer, CtlError> {
        let text = String::from_utf8_lossy(received);
        let stranger = || self.stranger(format!("{:?}", text.lines().next().unwrap_or_default()));
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(stranger)?;
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
        let fields = lines.filter_map(|line| line.split_once(": "));
        let mut server =
            fields.filter(|(name, _)| name.eq_ignore_ascii_case("server")).map(|(_, value)| value);
        let version = server.next().and_then(|it| it.strip_prefix(SERVER)).ok_or_else(stranger)?;
        Ok(Answer {
            status: status.ok_or_else(stranger)?,
            version: version.to_owned(),
            body: body.to_owned(),
            process,
        })
    }

    pub(super) fn stranger(&self, found: String) -> CtlError {
        CtlError::Stranger { socket: self.0.to_owned(), found }
    }
}
