//! A client of the control socket: one request a connection.

use std::io::{self, BufRead, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use serde_json::Value;

use super::printable::{printable, printable_lines};

/// How the server calls itself.
const SERVER: &str = "vhost-user-pmem/";

/// What is taken of an answer: who answers may be anybody. A hundred thousand disks have room.
const MAX_ANSWER_BYTES: u64 = 256 << 20;

/// Bytes of the lines before a stream, or of one line.
const HEAD_BYTES: usize = 64 << 10;

/// Bytes of the line before a chunk.
const CHUNK_LINE_BYTES: u64 = 100;

/// Of what is no answer.
const SHOWN_LETTERS: usize = 100;

/// What was asked for and did not happen.
#[derive(Debug, thiserror::Error)]
pub(super) enum CtlError {
    #[error(
        "--control is missing; name the control socket of the server (serve --control), or set VHOST_USER_PMEM_CONTROL"
    )]
    NoControl,
    #[error(
        "{0} is no limit; write iops, iops-rd, iops-wr, bps, bps-rd, bps-wr, each also with -max and -max-length, throttle-group or slow-ms"
    )]
    NoLimit(&'static str),
    #[error("{0} is missing; add {0}={1}")]
    Missing(&'static str, &'static str),
    #[error("{}: cannot reach the server ({source}); check that it runs, and that this is what serve --control names", socket.display())]
    Unreachable { socket: PathBuf, source: io::Error },
    #[error("{}: this is no control socket of vhost-user-pmem ({found}); check --control", socket.display())]
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
        let stream = self.send(method, path, body, patience)?;
        // 0 is a process that has no number here (another PID namespace).
        let process = getsockopt(&stream, PeerCredentials).ok().map(|peer| peer.pid()).filter(|pid| *pid > 0);
        let mut received = Vec::new();
        let read = (&stream).take(MAX_ANSWER_BYTES).read_to_end(&mut received);
        if received.is_empty() {
            read.map_err(|source| self.unreachable(source))?;
        }
        Ok((self.judge(self.parse(&received)?)?, process))
    }

    /// Asks for a stream of JSON, an object a line, and hands each over as it comes.
    pub(super) fn follow<E: From<CtlError>>(
        &self,
        path: &str,
        mut each: impl FnMut(&Value) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut stream = BufReader::new(self.send("GET", path, None, None)?);
        let mut received = Vec::new();
        while !received.ends_with(b"\r\n\r\n") {
            let left = HEAD_BYTES.saturating_sub(received.len());
            let read =
                read_line(&mut stream, left, &mut received).map_err(|source| self.unreachable(source))?;
            if read == 0 {
                break;
            }
        }
        let head = self.parse(&received)?;
        if head.status != 200 {
            // What it says is short; where it is cut off, it is no problem document.
            let _ = stream.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut received);
            return Ok(self.judge(self.parse(&received)?).map(drop)?);
        }
        let mut lines = BufReader::new(Chunks { stream, left: 0, is_over: false });
        let mut line = Vec::new();
        loop {
            line.clear();
            let read =
                read_line(&mut lines, HEAD_BYTES, &mut line).map_err(|source| self.unreachable(source))?;
            if read == 0 {
                return Ok(());
            }
            // One that is longer is cut off.
            let event = serde_json::from_slice(&line).map_err(|error| self.stranger(error.to_string()))?;
            each(&event)?;
        }
    }

    /// What an answer comes to.
    fn judge(&self, Answer { status, version, body }: Answer) -> Result<Value, CtlError> {
        let json = match body.trim() {
            "" => Value::Null,
            body => serde_json::from_str(body).map_err(|error| self.stranger(error.to_string()))?,
        };
        if (200..300).contains(&status) {
            return Ok(json);
        }
        let text = |name: &str| json.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (code, detail) = (text("code"), printable_lines(&text("detail")));
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

    /// Sends a request; what is answered is to be read, and a part of it may take that long.
    fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        patience: Option<Duration>,
    ) -> Result<UnixStream, CtlError> {
        let mut stream = UnixStream::connect(self.0).map_err(|source| self.unreachable(source))?;
        stream.set_read_timeout(patience).map_err(|source| self.unreachable(source))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{kind}Content-Length: {length}\r\n\r\n");
        // What is refused early is answered all the same; where nothing is, reading says so.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
        Ok(stream)
    }

    fn unreachable(&self, source: io::Error) -> CtlError {
        CtlError::Unreachable { socket: self.0.to_owned(), source }
    }

    fn parse(&self, received: &[u8]) -> Result<Answer, CtlError> {
        let text = String::from_utf8_lossy(received);
        let begin =
            || text.lines().next().unwrap_or_default().chars().take(SHOWN_LETTERS).collect::<String>();
        let stranger = || self.stranger(format!("{:?}", begin()));
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(stranger)?;
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
        let fields = lines.filter_map(|line| line.split_once(": "));
        let mut server =
            fields.filter(|(name, _)| name.eq_ignore_ascii_case("server")).map(|(_, value)| value);
        let version = server.next().and_then(|it| it.strip_prefix(SERVER)).ok_or_else(stranger)?;
        Ok(Answer {
            status: status.ok_or_else(stranger)?,
            version: printable(version),
            body: body.to_owned(),
        })
    }

    pub(super) fn stranger(&self, found: String) -> CtlError {
        CtlError::Stranger { socket: self.0.to_owned(), found }
    }
}

/// Appends a line, with its end, or so many bytes of it. Returns how many there were.
fn read_line(stream: &mut impl BufRead, most_bytes: usize, line: &mut Vec<u8>) -> io::Result<usize> {
    stream.take(most_bytes as u64).read_until(b'\n', line)
}

/// A body in chunks (RFC 9112 §7.1), without them. One that ends before its last chunk is an error.
struct Chunks<R> {
    stream: BufReader<R>,
    /// Bytes of this chunk that are to come.
    left: u64,
    is_over: bool,
}

impl<R: Read> Chunks<R> {
    /// The next line, without its end.
    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.stream.by_ref().take(CHUNK_LINE_BYTES).read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}

impl<R: Read> Read for Chunks<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.is_over {
            let line = self.line()?;
            let length = u64::from_str_radix(&line, 16);
            self.left = length.map_err(|_| io::Error::other(format!("{line:?} is no length of a chunk")))?;
            self.is_over = self.left == 0;
        }
        if self.is_over {
            return Ok(0);
        }
        let count = self.stream.by_ref().take(self.left).read(out)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left = self.left.saturating_sub(count as u64);
        if self.left == 0 {
            self.line()?;
        }
        Ok(count)
    }
}
