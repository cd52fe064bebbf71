//! Bad requests: each has its status and its text, and the load of a disk does not notice.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::Shutdown;
use std::time::Duration;

use serde_json::{Value, json};

use super::common::daemon::Place;
use super::common::frontend::Session;
use super::common::frontend::load::Load;
use super::common::wait_for;
use super::http::{answer, ask, connect, send, send_all};
use super::{DISK_BYTES, Host};

/// Options of a new disk that are wrong in one key, the problem's code, and a part of its text.
fn options(host: &Host) -> Vec<(Value, &'static str, &'static str)> {
    let with = |key: &str, value: Value| {
        let mut options = host.options("new");
        options[key] = value;
        options
    };
    let without = |key: &str| {
        let mut options = host.options("new");
        options.as_object_mut().unwrap().remove(key);
        options
    };
    std::fs::create_dir_all(host.image("folder")).unwrap();
    std::fs::write(host.image("short"), [0; 4096]).unwrap();
    std::fs::write(host.socket("file"), []).unwrap();
    let bad = "bad-options";
    vec![
        (json!({}), bad, "path is missing; add \"path\": \"FILE\""),
        (without("path"), bad, "path is missing"),
        (without("socket"), bad, "socket is missing; add \"socket\": \"SOCKET\""),
        (with("paht", json!("/x")), "unknown-key", "did you mean \"path\"?"),
        (with("block_size", json!(512)), "unknown-key", "did you mean \"block-size\"?"),
        (with("name", json!("other")), bad, "another name than that of the address"),
        (with("name", json!(7)), bad, "another name than that of the address"),
        (with("path", json!(7)), bad, "path: this number is no value of it"),
        (with("path", json!("x")), bad, "path: \"x\" is relative"),
        (with("path", json!("")), bad, "path has no value"),
        (with("path", json!(null)), bad, "path: null is no value of it"),
        (with("path", json!("/a\u{0}b")), "failed", "cannot"),
        (with("path", json!(host.image("folder"))), "not-regular", "cannot serve it"),
        (with("path", json!(host.image("no/such/folder/x"))), "missing", "no/such/folder"),
        (with("path", json!(host.daemon.image(0))), "locked", "already uses it"),
        (with("socket", json!(["/s"])), bad, "socket: this array is no value of it"),
        (with("socket", json!("s")), bad, "socket: \"s\" is relative"),
        (with("socket", json!(format!("/tmp/{}", "s".repeat(120)))), "failed", "its path has"),
        (with("socket", json!(host.daemon.socket(0))), "exists", "is already that of disk \"stays\""),
        (with("socket", json!(host.control())), "socket-in-use", "another process listens on this socket"),
        (with("socket", json!(host.socket("file"))), "failed", "the path exists and is no socket"),
        (with("socket", json!(host.socket("no/such/folder/s"))), "failed", "its folder does not exist"),
        (with("size", json!(-1)), bad, "size: this number is no value of it"),
        (with("size", json!(1.5)), bad, "size: this number is no value of it"),
        (with("size", json!(1e30)), bad, "size: this number is no value of it"),
        (with("size", json!("20GB")), bad, "powers of 1024"),
        (with("size", json!("20 G")), bad, "is not a size"),
        (with("size", json!("big")), bad, "is not a size"),
        (with("size", json!("")), bad, "size has no value"),
        (with("size", json!("99999999P")), bad, "is more than 2^64 bytes"),
        (with("size", json!(true)), bad, "size: true or false is no value of it"),
        (with("size", json!({"bytes": 1})), bad, "size: an object is no value of it"),
        (with("size", json!(0)), "bad-size", "cannot serve it"),
        (with("size", json!(513)), "bad-size", "cannot serve it"),
        (with("size", json!(u64::MAX)), "bad-size", "cannot serve it"),
        (
            json!({"path": host.image("short"), "socket": host.socket("new"), "size": "1M"}),
            "too-small",
            "has only 4096 bytes",
        ),
        (json!({"path": host.image("nothing"), "socket": host.socket("new")}), "missing", "nothing"),
        (with("serial", json!("123456789012345678901")), bad, "at most 20 bytes"),
        (with("serial", json!("ü")), bad, "printable ASCII"),
        (with("readonly", json!(1)), bad, "readonly: this number is no value of it; write true or false"),
        (with("readonly", json!("maybe")), bad, "write on or off"),
        (with("block-size", json!(1024)), bad, "write 512 or 4096"),
        (with("block-size", json!("4K")), bad, "write 512 or 4096"),
        (with("queues", json!(0)), bad, "a whole number from 1 to 256"),
        (with("queues", json!(257)), bad, "a whole number from 1 to 256"),
        (with("queues", json!([1])), bad, "queues: this array is no value of it"),
        (with("seg-max", json!(1023)), bad, "a whole number from 1 to 1022"),
        (with("sparse", json!({})), bad, "sparse: an object is no value of it"),
        (with("lock", json!("never")), bad, "lock=never"),
        (with("lock", json!(true)), bad, "lock: true or false is no value of it; write one of \"on\""),
        (with("require-durable", json!("paper")), bad, "page, cacheline, byte or off"),
        (with("require-durable", json!("page")), "not-durable", "cannot promise durability \"page\""),
        (with("discard", json!("all")), bad, "discard=all"),
        (with("deep-flush", json!("often")), bad, "deep-flush=often"),
        (with("cpus", json!("5-2")), bad, "write CPU numbers"),
        (with("cpus", json!([-1])), bad, "cpus: this array is no value of it"),
        (with("cpus", json!("1000")), bad, "may use none of these CPUs"),
        (with("numa", json!("node1")), bad, "write auto or off"),
        (with("postcopy", json!(true)), bad, "postcopy=on"),
        (with("socket-mode", json!(432)), bad, "write permissions in octal"),
        (with("socket-mode", json!("0999")), bad, "in octal"),
        (with("socket-owner", json!("no-such-user-here")), bad, "no such user"),
        (with("socket-group", json!(4_294_967_295_u64)), bad, "no such group"),
        (with("allow-uid", json!(["root", 1.5])), bad, "allow-uid: this array is no value of it"),
        (with("iops", json!(-1)), bad, "iops: this number is no value of it"),
        (with("iops", json!("1k")), bad, "iops=1k: write a whole number, or none"),
        (with("iops", json!(10_u64.pow(16))), bad, "more than can be counted"),
        (with("iops-max", json!(5)), bad, "iops-max needs iops; add it, or leave iops-max out"),
        (with("bps", json!("100MB/s")), bad, "is not a size"),
        (with("bps-rd", json!(true)), bad, "bps-rd: true or false is no value of it"),
        (with("bps-wr-max-length", json!(1)), bad, "bps-wr-max-length needs bps-wr-max"),
        (with("throttle-group", json!("")), bad, "throttle-group has no value"),
        (with("throttle-group", json!("a\u{7}")), bad, "it has control characters"),
        (with("slow-ms", json!(60_001)), bad, "write a whole number from 0 to 60000"),
        (with("slow-ms", json!(0.5)), bad, "slow-ms: this number is no value of it"),
    ]
}

/// Requests with a body that is not even options.
const BODIES: [(&str, &str, &str, &str); 21] = [
    ("PUT", "/v1/disks/new", "", "not-json"),
    ("PUT", "/v1/disks/new", "{", "not-json"),
    ("PUT", "/v1/disks/new", "[]", "not-json"),
    ("PUT", "/v1/disks/new", "null", "not-json"),
    ("PUT", "/v1/disks/new", "{\"path\": \"/x\",}", "not-json"),
    ("PUT", "/v1/disks/new", "{\"path\": \"/x\", \"path\": \"/y\"}", "not-json"),
    ("PUT", "/v1/disks/new", "path=/x,socket=/y", "not-json"),
    ("PUT", "/v1/disks/stays", "{\"path\": \"/x\", \"socket\": \"/y\"}", "exists"),
    ("PATCH", "/v1/disks/stays", "{\"queues\": 3}", "not-changeable"),
    ("PATCH", "/v1/disks/stays", "{\"name\": \"goes\"}", "not-changeable"),
    ("PATCH", "/v1/disks/none", "{\"size\": 3}", "no-such-disk"),
    ("PATCH", "/v1/disks/stays", "{\"iops\": 5, \"iops-wr\": 5}", "bad-options"),
    ("PATCH", "/v1/disks/stays", "{\"iops\": 5, \"iops-max\": 4}", "bad-options"),
    ("PATCH", "/v1/disks/stays", "{\"slow-ms\": \"soon\"}", "bad-options"),
    ("POST", "/v1/disks/stays/resize", "{\"bytes\": 3}", "unknown-key"),
    ("POST", "/v1/disks/stays/resize", "{\"size\": \"3X\"}", "bad-options"),
    ("POST", "/v1/disks/stays/flush", "{}", "bad-request"),
    ("PUT", "/v1/log", "{}", "bad-options"),
    ("PUT", "/v1/log", "{\"level\": 7}", "bad-options"),
    ("PUT", "/v1/log", "{\"level\": \"loud\"}", "bad-options"),
    ("PUT", "/v1/log", "{\"level\": \"info\", \"x\": 1}", "bad-options"),
];

/// Requests without a body.
const REQUESTS: [(&str, &str, u16, &str); 23] = [
    ("GET", "/", 404, "no-such-path"),
    ("GET", "/v1/disks/", 404, "no-such-path"),
    ("GET", "/v2/disks", 404, "no-such-path"),
    ("GET", "/v1/disks/none", 404, "no-such-disk"),
    ("GET", "/v1/disks/%ff", 400, "bad-request"),
    ("GET", "/v1/disks/%4", 400, "bad-request"),
    ("GET", "/v1/disks?x=1", 400, "bad-query"),
    ("GET", "/v1/disks/stays/flush", 405, "bad-method"),
    ("GET", "/v1/disks/none/rings", 404, "no-such-disk"),
    ("POST", "/v1/disks", 405, "bad-method"),
    ("DELETE", "/v1/disks", 405, "bad-method"),
    ("POST", "/v1/disks/stays", 405, "bad-method"),
    ("BREW", "/v1/disks", 405, "bad-method"),
    ("HEAD", "/v1/disks", 405, ""),
    ("OPTIONS", "*", 404, "no-such-path"),
    ("DELETE", "/v1/disks/none", 404, "no-such-disk"),
    ("DELETE", "/v1/disks/stays?drain=soon", 400, "bad-query"),
    ("DELETE", "/v1/disks/stays?drain=2h", 400, "bad-query"),
    ("DELETE", "/v1/disks/stays?force&drain=1s", 400, "bad-query"),
    ("DELETE", "/v1/disks/stays", 409, "connected"),
    ("POST", "/v1/disks/none/resize", 404, "no-such-disk"),
    ("POST", "/v1/disks/none/flush", 404, "no-such-disk"),
    ("POST", "/v1/disks/none/disconnect", 404, "no-such-disk"),
];

/// What is hardly HTTP, the status, and the code where it is ours.
fn bytes() -> Vec<(Vec<u8>, Option<u16>)> {
    let head = |text: &str| format!("{text}\r\nHost: x\r\n\r\n").into_bytes();
    let put = |fields: &str, body: &str| {
        format!("PUT /v1/disks/new HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n{body}").into_bytes()
    };
    vec![
        (head("GET /v1/disks HTTP/1.0"), Some(200)),
        (head("GET /v1/disks HTTP/2.0"), Some(400)),
        (head("GET /v1/disks FTP/1.1"), Some(400)),
        (head("GET /v1/disks"), Some(400)),
        (head("get it"), Some(400)),
        (b"\xff\xfe\x00\r\n\r\n".to_vec(), Some(400)),
        (b"\r\n\r\n".to_vec(), None),
        (b"GET /v1/disks HTTP/1.1\r\nNo colon\r\n\r\n".to_vec(), Some(400)),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(40_000)).into_bytes(), Some(431)),
        (format!("GET /v1 HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(40_000)).into_bytes(), Some(431)),
        (format!("GET /v1 HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(1000)).into_bytes(), Some(431)),
        (put("Content-Length: 70000", &" ".repeat(70_000)), Some(413)),
        (put("Content-Length: 99999999999999999999", ""), Some(400)),
        (put("Content-Length: -1", ""), Some(400)),
        (put("Transfer-Encoding: chunked", "x\r\n"), Some(400)),
        (put("Transfer-Encoding: chunked", "2\r\n{}\r\n0\r\n\r\n"), Some(422)),
        (put("Content-Type: text/plain\r\nContent-Length: 2", "{}"), Some(415)),
        (put("Content-Type: application/json; charset=utf-8\r\nContent-Length: 2", "{}"), Some(422)),
        (put("Content-Length: 9", "{}"), Some(400)),
    ]
}

#[test]
fn each_bad_request_has_its_answer_and_no_guest_notices() {
    let host = Host::new(Place::Tmpfs);
    let session = Session::connect(&host.daemon.socket(0));
    let load = Load::start(session.ring(0, 64), 0);
    let mut codes = BTreeMap::new();
    let mut count = 0;
    let mut note = |code: &str| {
        count += 1;
        *codes.entry(code.to_owned()).or_insert(0) += 1;
    };
    for (options, code, text) in options(&host) {
        let answer = host.ask("PUT", "/v1/disks/new", Some(&options));
        let (found, detail) = answer.problem();
        assert!(found == code && detail.contains(text), "{options}: {answer:?}");
        note(code);
    }
    for (method, path, body, code) in BODIES {
        let answer = ask(&host.control(), method, path, Some(body));
        assert_eq!(answer.problem().0, code, "{method} {path} {body}: {answer:?}");
        note(code);
    }
    for (method, path, status, code) in REQUESTS {
        let answer = ask(&host.control(), method, path, None);
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        if !code.is_empty() {
            assert_eq!(answer.problem().0, code, "{method} {path}");
        }
        assert_eq!(answer.head.contains("allow: "), status == 405, "{answer:?}");
        note(code);
    }
    let mut wrong = Vec::new();
    for (bytes, status) in bytes() {
        let answer = send_all(&host.control(), &bytes);
        let start = String::from_utf8_lossy(&bytes[..bytes.len().min(70)]).into_owned();
        if answer.as_ref().map(|it| it.status) != status {
            wrong.push(format!("{start:?}: {status:?} {answer:?}"));
        }
        note("bytes");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{count} requests: {codes:?}");
    assert!(count > 130);
    assert_eq!(host.names(), ["stays"]);
    let mut left: Vec<_> =
        std::fs::read_dir(&host.images).unwrap().map(|it| it.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["disk0.img", "folder", "short"], "nothing is left of what was refused");
    assert_eq!(host.get("/v1/disks/stays")["state"]["capacity_bytes"], DISK_BYTES);
    load.stop();
}

/// A connection is for one request: what comes behind it is not read.
#[test]
fn requests_behind_the_first_are_not_answered() {
    let host = Host::new(Place::Tmpfs);
    let one = "GET /v1 HTTP/1.1\r\nHost: x\r\n\r\n";
    let answer = send(&host.control(), one.repeat(3).as_bytes()).unwrap();
    assert!(answer.status == 200 && answer.body.matches("HTTP/1.1").count() == 0, "{answer:?}");
    assert!(answer.head.contains("connection: close"), "{answer:?}");
    let expects =
        "PUT /v1/disks/new HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}";
    let answer = send(&host.control(), expects.as_bytes()).unwrap();
    assert!([100, 422].contains(&answer.status), "{answer:?}");
}

/// Slow and half requests end, and so many of them keep nobody out.
#[test]
fn two_hundred_clients_that_say_half_keep_nobody_out() {
    let host = Host::new(Place::Tmpfs);
    let session = Session::connect(&host.daemon.socket(0));
    let load = Load::start(session.ring(0, 64), 0);
    let halves = ["", "GET /v1/di", "PUT /v1/disks/new HTTP/1.1\r\nContent-Length: 20\r\n\r\n{\"path\""];
    let clients: Vec<_> =
        (0..200).map(|number| connect(&host.control(), halves[number % 3].as_bytes())).collect();
    assert_eq!(host.names(), ["stays"]);
    assert_eq!(host.add("new").status, 201);
    load.wait_for_progress();
    for (number, client) in clients.into_iter().enumerate() {
        // It was closed for another, or it was too slow; who has sent all of the head may have been told.
        let told = answer(client);
        assert!(told.is_none_or(|it| it.status == 408), "{number}");
    }
    // Each byte alone, and then nothing more.
    let mut slow = connect(&host.control(), b"GET /v1");
    for byte in *b"/disks HTTP/1.1" {
        std::thread::sleep(Duration::from_millis(5));
        slow.write_all(&[byte]).unwrap();
    }
    slow.write_all(b"\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(answer(slow).unwrap().status, 200);
    let gone = connect(&host.control(), b"DELETE /v1/disks/new HTTP/1.1\r\nHost: x\r\n\r\n");
    gone.shutdown(Shutdown::Both).unwrap();
    drop(gone);
    // Whoever asks and does not wait is served all the same, or it was too early for that.
    wait_for("the daemon answers", || (host.names().len() <= 2).then_some(()));
    load.stop();
}

/// An answer that nobody takes is given up.
#[test]
fn whoever_takes_no_answer_is_closed() {
    let host = Host::new(Place::Tmpfs);
    let silent: Vec<_> =
        (0..40).map(|_| connect(&host.control(), b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
    for _ in 0..3 {
        assert_eq!(host.names(), ["stays"]);
    }
    drop(silent);
}
