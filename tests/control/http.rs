//! A client of the control socket.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::common::PATIENCE;

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Lines before the body.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    fn of(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
        let status = head.split(' ').nth(1).map(str::parse);
        Self {
            status: status.unwrap_or_else(|| panic!("{text:?}")).unwrap(),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The word of a problem document, which has all that one has.
    pub(crate) fn problem(&self) -> (String, String) {
        assert!(self.head.contains("content-type: application/problem+json"), "{self:?}");
        let problem = self.json();
        assert_eq!((&problem["type"], &problem["status"]), (&"about:blank".into(), &self.status.into()));
        assert!(problem["title"].is_string());
        let text = |name: &str| problem[name].as_str().unwrap().to_owned();
        (text("code"), text("detail"))
    }
}

/// Asks for something; the body is JSON.
pub(crate) fn ask(socket: &Path, method: &str, path: &str, body: Option<&str>) -> Answer {
    let body = body.unwrap_or_default();
    let length = body.len();
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    send(
        socket,
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{kind}Content-Length: {length}\r\n\r\n{body}")
            .as_bytes(),
    )
    .unwrap_or_else(|| panic!("{method} {path}: the connection was closed"))
}

/// Sends these bytes; none where the connection is closed without an answer.
pub(crate) fn send(socket: &Path, bytes: &[u8]) -> Option<Answer> {
    answer(connect(socket, bytes))
}

/// Sends these bytes, and no more will come.
pub(crate) fn send_all(socket: &Path, bytes: &[u8]) -> Option<Answer> {
    let stream = connect(socket, bytes);
    let _ = stream.shutdown(Shutdown::Write);
    answer(stream)
}

/// A connection on which these bytes have been sent.
pub(crate) fn connect(socket: &Path, bytes: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // What is refused before its end is not read to the end.
    let _ = stream.write_all(bytes);
    stream
}

/// What is answered there, to the end of the connection.
pub(crate) fn answer(mut stream: UnixStream) -> Option<Answer> {
    let mut text = Vec::new();
    // It may be cut off where something was sent that nobody has read.
    let _ = stream.read_to_end(&mut text);
    (!text.is_empty()).then(|| Answer::of(&String::from_utf8(text).unwrap()))
}
