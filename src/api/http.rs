//! As much of HTTP/1.1 (RFC 9112) as it takes to answer one request a connection.

use crate::limits::bounds::MAX_HTTP_HEAD_BYTES;

/// What a request is answered with, but for the metrics themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    HeadTooLarge,
    VersionNotSupported,
}

impl Status {
    const fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::HeadTooLarge => "431 Request Header Fields Too Large",
            Self::VersionNotSupported => "505 HTTP Version Not Supported",
        }
    }
}

/// What the bytes received so far ask for; none while more must come.
pub(super) fn status_of(received: &[u8]) -> Option<Status> {
    let has_ended = |end: &[u8]| received.windows(end.len()).any(|window| window == end);
    // A client that ends its lines without a carriage return is understood as well (RFC 9112 §2.2).
    if has_ended(b"\r\n\r\n") || has_ended(b"\n\n") {
        return Some(of_line(received.split(|byte| *byte == b'\n').next().unwrap_or_default()));
    }
    (received.len() >= MAX_HTTP_HEAD_BYTES).then_some(Status::HeadTooLarge)
}

/// Method, target and version, each once and a space between them.
fn of_line(line: &[u8]) -> Status {
    let Ok(line) = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)) else {
        return Status::BadRequest;
    };
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Status::BadRequest;
    };
    let path = target.split('?').next().unwrap_or_default();
    match (method, path, version) {
        (_, _, version) if !version.starts_with("HTTP/") => Status::BadRequest,
        (_, _, version) if !version.starts_with("HTTP/1.") => Status::VersionNotSupported,
        ("GET", "/metrics", _) => Status::Ok,
        (_, "/metrics", _) => Status::MethodNotAllowed,
        _ => Status::NotFound,
    }
}

/// The whole answer; the connection ends with it.
pub(super) fn answer(status: Status, body: &str) -> Vec<u8> {
    let line = status.line();
    let allow = if status == Status::MethodNotAllowed { "Allow: GET\r\n" } else { "" };
    let length = body.len();
    // The format's own version, of Prometheus.
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    format!(
        "HTTP/1.1 {line}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{allow}Connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_understood_once_its_head_is_whole() {
        let whole = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
        for end in 0..whole.len() {
            assert_eq!(status_of(&whole[..end]), None, "{end}");
        }
        assert_eq!(status_of(whole), Some(Status::Ok));
        assert_eq!(status_of(b"GET /metrics?name=x HTTP/1.0\n\n"), Some(Status::Ok));
    }

    #[test]
    fn everything_else_is_refused() {
        for (line, status) in [
            ("", Status::BadRequest),
            ("GET /metrics", Status::BadRequest),
            ("GET  /metrics HTTP/1.1", Status::BadRequest),
            ("GET /metrics HTTP/1.1 ", Status::BadRequest),
            ("GET /metrics FTP/1.1", Status::BadRequest),
            ("GET /metrics HTTP/2.0", Status::VersionNotSupported),
            ("POST /metrics HTTP/1.1", Status::MethodNotAllowed),
            ("get /metrics HTTP/1.1", Status::MethodNotAllowed),
            ("GET / HTTP/1.1", Status::NotFound),
            ("GET /metrics/ HTTP/1.1", Status::NotFound),
            ("GET http://h/metrics HTTP/1.1", Status::NotFound),
        ] {
            assert_eq!(status_of(format!("{line}\r\n\r\n").as_bytes()), Some(status), "{line:?}");
        }
        assert_eq!(status_of(b"\xff /metrics HTTP/1.1\r\n\r\n"), Some(Status::BadRequest));
        assert_eq!(status_of(&[b'x'; MAX_HTTP_HEAD_BYTES]), Some(Status::HeadTooLarge));
    }

    #[test]
    fn an_answer_says_how_long_it_is() {
        let text = String::from_utf8(answer(Status::MethodNotAllowed, "no\n")).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"), "{head}");
        assert!(head.contains("Content-Length: 3\r\n") && head.contains("Allow: GET\r\n"), "{head}");
        assert_eq!(body, "no\n");
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = status_of(&bytes);
        }
    }
}
