//! Requests to the control socket: each is understood, or refused with a problem document; and what a disk's options are shown as is
//! taken for the same options again.

use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use serde_json::{Map, Value, json};
use vhost_user_pmem::api::understood;

use super::command_line::{Key, word_at};
use crate::common::guarded::found;

#[derive(Debug, Arbitrary)]
enum Said {
    Nothing,
    Switch(bool),
    Number(i64),
    Large(u64),
    Fraction(u16),
    Size(u32, u8),
    Word(u8),
    Text(String),
    List(Vec<u16>),
    Words(Vec<u8>),
    Nested(u8),
}

impl Said {
    fn json(&self) -> Value {
        match self {
            Self::Nothing => Value::Null,
            Self::Switch(is_on) => (*is_on).into(),
            Self::Number(number) => (*number).into(),
            Self::Large(number) => (*number).into(),
            Self::Fraction(number) => (f64::from(*number) / 8.0).into(),
            Self::Size(number, unit) => {
                let units = ["", "K", "M", "G", "T", "KiB", "%"];
                format!("{number}{}", units[usize::from(*unit) % units.len()]).into()
            }
            Self::Word(word) => word_at(*word).into(),
            Self::Text(text) => text.as_str().into(),
            Self::List(numbers) => numbers.iter().copied().collect(),
            Self::Words(words) => words.iter().map(|word| word_at(*word)).collect(),
            Self::Nested(depth) => (0..*depth).fold(json!({}), |inner, _| json!({"name": [inner]})),
        }
    }
}

#[derive(Debug, Arbitrary)]
struct Input {
    method: u8,
    path: u8,
    disk: String,
    query: Option<(u8, String)>,
    has_path: bool,
    has_socket: bool,
    said: Vec<(Key, Said)>,
    /// Put in somewhere, after everything else.
    noise: Option<(u16, String)>,
}

const METHODS: [&str; 7] = ["GET", "PUT", "PATCH", "DELETE", "POST", "HEAD", "put"];
const PATHS: [&str; 14] = [
    "/v1",
    "/v1/disks",
    "/v1/disks/",
    "/v1/disks//resize",
    "/v1/disks//flush",
    "/v1/disks//disconnect",
    "/v1/disks//rings",
    "/v1/rings",
    "/v1/events",
    "/v1/log",
    "/v1/reload",
    "/metrics",
    "/openapi.json",
    "",
];
const QUERIES: [&str; 6] = ["drain=", "force", "force=", "since=", "once", ""];

impl Input {
    fn target(&self) -> String {
        let path = PATHS[usize::from(self.path) % PATHS.len()];
        let mut target = match path.split_once("disks/") {
            Some((before, after)) => format!("{before}disks/{}{after}", self.disk),
            None => format!("{path}{}", self.disk),
        };
        if let Some((query, value)) = &self.query {
            target += &format!("?{}{value}", QUERIES[usize::from(*query) % QUERIES.len()]);
        }
        target
    }

    fn body(&self) -> String {
        let mut object = Map::new();
        let paths = [("path", self.has_path), ("socket", self.has_socket)];
        object
            .extend(paths.into_iter().filter(|(_, is)| *is).map(|(key, _)| (key.to_owned(), "/a/b".into())));
        object.extend(self.said.iter().take(20).map(|(key, said)| (key.name().to_owned(), said.json())));
        let mut text = Value::Object(object).to_string();
        if let Some((at, noise)) = &self.noise {
            let at = usize::from(*at) % (text.len() + 1);
            let at = (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
            text.insert_str(at, noise);
        }
        text
    }
}

/// The options of a disk that is served.
static BEFORE: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    let body = br#"{"path": "/a", "socket": "/b", "size": "1G"}"#;
    let said = understood("PUT", "/v1/disks/a", &Map::new(), body).expect("a disk like any");
    said["body"].as_object().cloned().expect("options")
});

/// Has the request understood, and what it is understood as again.
pub(super) fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary(&mut Unstructured::new(data)) else { return };
    let method = METHODS[usize::from(input.method) % METHODS.len()];
    let (target, body) = (input.target(), input.body());
    match understood(method, &target, &BEFORE, body.as_bytes()) {
        Ok(said) if method == "PUT" => {
            let again = understood(method, &target, &BEFORE, said["body"].to_string().as_bytes());
            if again.as_ref() != Ok(&said) {
                found(&format!("{body} is {said}, and that is {again:?}"));
            }
        }
        Ok(_) => {}
        Err((status, problem)) => {
            let document: Result<Value, _> = serde_json::from_str(&problem);
            let says = |field: &str| {
                document.as_ref().is_ok_and(|it| it[field].as_str().is_some_and(|it| !it.is_empty()))
            };
            if !(400..500).contains(&status) || !says("title") || !says("detail") {
                found(&format!("{method} {target} {body}: {status} {problem}"));
            }
        }
    }
}
