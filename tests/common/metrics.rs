//! A reader of metrics.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::PATIENCE;

/// The samples of a text of metrics, by name and labels without the prefix of the program.
pub type Samples = BTreeMap<String, f64>;

const GET: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// What is answered to these bytes, to the end of the connection.
pub fn ask(socket: &Path, request: &[u8]) -> String {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    answer(stream, request)
}

/// The same, of a TCP port.
pub fn ask_port(address: SocketAddr, request: &[u8]) -> String {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    answer(stream, request)
}

fn answer(mut stream: impl Read + Write, request: &[u8]) -> String {
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The text of the metrics.
pub fn read_text(socket: &Path) -> String {
    body(&ask(socket, GET))
}

fn body(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {answer:?}"));
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}: {}", body.len());
    body.to_owned()
}

/// The metrics.
pub fn read(socket: &Path) -> Samples {
    samples(&read_text(socket))
}

/// The metrics on a TCP port.
pub fn read_port(address: SocketAddr) -> Samples {
    samples(&body(&ask_port(address, GET)))
}

fn samples(text: &str) -> Samples {
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let name = name.strip_prefix("vhost_user_pmem_").unwrap_or_else(|| panic!("a strange name: {line}"));
        (name.to_owned(), value.parse().unwrap())
    };
    text.lines().filter(|line| !line.starts_with('#')).map(sample).collect()
}
