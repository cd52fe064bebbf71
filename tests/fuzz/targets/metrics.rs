//! The socket of the metrics: whatever a reader asks, and in whatever pieces, it gets one answer; a good question gets a good one.

use std::cell::OnceCell;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use arbitrary::{Arbitrary, Unstructured};
use vhost_user_pmem::api::{Endpoint, Serving};
use vhost_user_pmem::cli::configuration_of;
use vhost_user_pmem::disk::Symlinks;
use vhost_user_pmem::server::Server;

use crate::common::guarded::found;
use crate::common::{PATIENCE, wait_for};

#[derive(Debug, Arbitrary)]
enum Word {
    Get,
    Head,
    Metrics,
    Query,
    Other,
    Version(u8),
    Space,
    Return,
    Newline,
    Field,
    Long,
    Bytes(Vec<u8>),
}

impl Word {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Get => b"GET".to_vec(),
            Self::Head => b"HEAD".to_vec(),
            Self::Metrics => b"/metrics".to_vec(),
            Self::Query => b"?a=b".to_vec(),
            Self::Other => b"/".to_vec(),
            Self::Version(minor) => format!("HTTP/1.{}", minor % 10).into_bytes(),
            Self::Space => b" ".to_vec(),
            Self::Return => b"\r".to_vec(),
            Self::Newline => b"\n".to_vec(),
            Self::Field => b"Host: here\r\n".to_vec(),
            Self::Long => vec![b'x'; 3000],
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

#[derive(Debug, Arbitrary)]
struct Input {
    /// A good request line, before anything else.
    is_good: bool,
    words: Vec<Word>,
    /// Ends as a request does.
    ends: bool,
    /// After so many bytes each there is a pause.
    piece_bytes: u8,
}

impl Input {
    fn bytes(&self) -> Vec<u8> {
        let start: &[u8] = if self.is_good { b"GET /metrics HTTP/1.1\r\n" } else { b"" };
        let end: &[u8] = if self.ends { b"\r\n\r\n" } else { b"" };
        let words: Vec<u8> = self.words.iter().take(20).flat_map(Word::bytes).collect();
        [start, &words, end].concat()
    }
}

/// A server with one disk. It lasts from one input to the next.
struct World {
    folder: PathBuf,
    _serving: Serving,
    _server: Server,
}

impl World {
    fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("pmem-metrics-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let disk = format!("path={0}/img,socket={0}/socket,size=1M", folder.display());
        let args = ["vhost-user-pmem", "serve", "--disk", &disk].map(Into::into).to_vec();
        let server = Server::start(configuration_of(args).unwrap()).unwrap();
        let endpoint = Endpoint::bind(&folder.join("metrics"), Symlinks::Follow).unwrap();
        Self { folder, _serving: endpoint.serve(server.collector()).unwrap(), _server: server }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A question.
pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    thread_local! { static WORLD: OnceCell<World> = const { OnceCell::new() }; }
    let path = WORLD.with(|world| world.get_or_init(World::start).folder.join("metrics"));
    // On a machine that is busy enough a reader is given up, and gets nothing.
    let is_to_be_answered = input.is_good && input.ends && input.bytes().len() < 8000;
    let answer = wait_for("a good question is answered", || {
        let answer = ask(UnixStream::connect(&path).unwrap(), &input);
        (!answer.is_empty() || !is_to_be_answered).then_some(answer)
    });
    let is_good = answer.starts_with(b"HTTP/1.1 200 OK\r\n") && answer.ends_with(b"\n");
    if !answer.is_empty() && !answer.starts_with(b"HTTP/1.1 ") {
        found(&format!("an answer that is none: {}", String::from_utf8_lossy(&answer)));
    }
    if is_to_be_answered && !is_good {
        found(&format!("{input:?} is answered {}", String::from_utf8_lossy(&answer)));
    }
}

/// Sends, says that this was all, and reads to the end.
fn ask(mut stream: UnixStream, input: &Input) -> Vec<u8> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let piece_bytes = usize::from(input.piece_bytes).max(1);
    let mut answer = Vec::new();
    let bytes = input.bytes();
    for (number, piece) in bytes.chunks(piece_bytes).enumerate() {
        if stream.write_all(piece).is_err() {
            break;
        }
        if number < 8 {
            std::thread::yield_now();
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            found("a reader of metrics waits for ever")
        }
        _ => answer,
    }
}
