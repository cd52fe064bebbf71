//! Which requests there are. The OpenAPI document is made of this table.

use std::time::Duration;

use super::problem::{Code, Problem};
use crate::limits::bounds::MAX_DRAIN_TIMEOUT;
use crate::log::Since;
use crate::server::Departure;

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Version,
    ListDisks,
    ShowDisk,
    ShowRings,
    ListRings,
    PutDisk,
    PatchDisk,
    RemoveDisk,
    Resize,
    Flush,
    Disconnect,
    Reload,
    Log,
    Events,
    Metrics,
    OpenApi,
}

/// What a request may have for a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Nothing,
    /// The options of a disk.
    Options,
    /// Those that change.
    Patch,
    /// A size, or nothing.
    Size,
    /// What to log.
    Level,
}

/// A request.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    pub(super) operation: Operation,
    pub(super) summary: &'static str,
    pub(super) body: Body,
    /// What may stand behind `?`.
    pub(super) query: &'static [(&'static str, &'static str)],
    /// Statuses of success, and what they mean.
    pub(super) answers: &'static [(u16, &'static str)],
}

const fn get(path: &'static str, operation: Operation, summary: &'static str) -> Route {
    Route {
        method: "GET",
        path,
        operation,
        summary,
        body: Body::Nothing,
        query: &[],
        answers: &[(200, "as asked for")],
    }
}

const fn post(
    path: &'static str,
    operation: Operation,
    summary: &'static str,
    body: Body,
    answers: &'static [(u16, &'static str)],
) -> Route {
    Route { method: "POST", path, operation, summary, body, query: &[], answers }
}

const DISK: &str = "/v1/disks/{name}";

pub(super) const ROUTES: [Route; 16] = [
    get("/v1", Operation::Version, "The version of the program and of this interface"),
    get("/v1/disks", Operation::ListDisks, "All disks, in the order in which they came"),
    get(
        "/v1/disks/{name}/rings",
        Operation::ShowRings,
        "The rings of a disk that run, or were broken by their driver: where each stands, and what it has done",
    ),
    get("/v1/rings", Operation::ListRings, "The same of all disks"),
    get(DISK, Operation::ShowDisk, "A disk: its options, and its state at this moment"),
    Route {
        method: "PUT",
        path: DISK,
        operation: Operation::PutDisk,
        summary: "Opens a disk and serves it. One that is served with the same options already is left as it is",
        body: Body::Options,
        query: &[],
        answers: &[(200, "it is served already, with the same options"), (201, "it is served now")],
    },
    Route {
        method: "PATCH",
        path: DISK,
        operation: Operation::PatchDisk,
        summary: "Changes options of a disk while it is served: those that are marked with x-changeable",
        body: Body::Patch,
        query: &[],
        answers: &[(200, "it is so now")],
    },
    Route {
        method: "DELETE",
        path: DISK,
        operation: Operation::RemoveDisk,
        summary: "Removes a disk that no front-end is connected to. Its file stays",
        body: Body::Nothing,
        query: &[
            (
                "drain",
                "Let no other front-end in, and hang up on those that have not left after this time: 10s, 500ms, 2m",
            ),
            ("force", "Hang up on front-ends at once; what they were answered is done"),
        ],
        answers: &[
            (202, "it is not served any more; its file will be closed when slow media has answered"),
            (204, "it is removed: socket, file and locks are closed"),
        ],
    },
    post(
        "/v1/disks/{name}/resize",
        Operation::Resize,
        "Makes a disk larger, with its file; without a size: serves what its file or device has by now",
        Body::Size,
        &[(200, "from so many bytes to so many")],
    ),
    post(
        "/v1/disks/{name}/flush",
        Operation::Flush,
        "Makes durable what was written",
        Body::Nothing,
        &[(204, "it is")],
    ),
    post(
        "/v1/disks/{name}/disconnect",
        Operation::Disconnect,
        "Hangs up on all front-ends of a disk, which may come back",
        Body::Nothing,
        &[(200, "on so many")],
    ),
    post(
        "/v1/reload",
        Operation::Reload,
        "Reads the configuration file again, and removes, limits, adds and resizes disks as one step; a problem says what is done already, if anything is",
        Body::Nothing,
        &[(200, "which disks were added, removed, resized and limited")],
    ),
    Route {
        method: "PUT",
        path: "/v1/log",
        operation: Operation::Log,
        summary: "Logs what this level or filter says from now on, until the process ends",
        body: Body::Level,
        query: &[],
        answers: &[(204, "it is so now")],
    },
    Route {
        query: &[
            (
                "since",
                "Begin behind the event of this number, 0 for all that are kept; without it, with what comes from now on",
            ),
            ("once", "End when all that there are by now are told"),
        ],
        answers: &[(200, "an event a line, as they come, until the server ends")],
        ..get(
            "/v1/events",
            Operation::Events,
            "What happens to disks and front-ends: a stream of JSON, an event a line",
        )
    },
    get("/metrics", Operation::Metrics, "Metrics in the format of Prometheus"),
    get("/openapi.json", Operation::OpenApi, "This document"),
];

impl Route {
    /// Whether it changes anything: not everybody may.
    pub(super) fn changes(&self) -> bool {
        self.method != "GET"
    }
}

/// A request that is understood.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) route: &'static Route,
    /// The disk that it is about.
    pub(super) disk: String,
    pub(super) query: Query,
}

/// What stands behind `?`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) departure: Departure,
    pub(super) since: Since,
    pub(super) is_once: bool,
}

/// Understands a request.
pub(super) fn find(method: &str, path: &str, query: Option<&str>) -> Result<Call, Problem> {
    let mut allow: Vec<&str> = Vec::new();
    for route in &ROUTES {
        let Some(disk) = matched(route.path, path)? else { continue };
        if route.method == method {
            let query = read(route, query)?;
            return Ok(Call { route, disk, query });
        }
        allow.push(route.method);
    }
    if allow.is_empty() {
        let text = format!("there is nothing at {path:?}; GET /openapi.json lists what there is");
        return Err(Problem::new(Code::NoSuchPath, text));
    }
    let allow = allow.join(", ");
    let text = format!("{path} does not take {method:?}; it takes {allow}");
    Err(Problem::new(Code::BadMethod, text).allowing(allow))
}

/// The name in a path that is of this form, if it is; an empty one if the form has none.
fn matched(form: &str, path: &str) -> Result<Option<String>, Problem> {
    let (mut form, mut path) = (form.split('/'), path.split('/'));
    let mut name = String::new();
    loop {
        match (form.next(), path.next()) {
            (None, None) => return Ok(Some(name)),
            (Some("{name}"), Some(part)) if !part.is_empty() => name = decoded(part)?,
            (Some(form), Some(part)) if form == part => {}
            _ => return Ok(None),
        }
    }
}

/// With each `%` and two hexadecimal digits made the byte that they stand for (RFC 3986).
fn decoded(text: &str) -> Result<String, Problem> {
    let wrong = || Problem::new(Code::BadRequest, format!("{text:?} is not UTF-8 with %XX for other bytes"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16)).ok_or_else(wrong);
        bytes.push(match byte {
            b'%' => u8::try_from(digit()? << 4 | digit()?).map_err(|_| wrong())?,
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

fn read(route: &Route, query: Option<&str>) -> Result<Query, Problem> {
    let wrong = |text: String| Problem::new(Code::BadQuery, text);
    let mut read = Query { departure: Departure::Unused, since: Since::Now, is_once: false };
    let mut is_alone = |departure| {
        let before = std::mem::replace(&mut read.departure, departure);
        let text = "drain and force are each said once, and not both";
        if before == Departure::Unused { Ok(()) } else { Err(wrong(text.to_owned())) }
    };
    for item in query.unwrap_or_default().split('&').filter(|item| !item.is_empty()) {
        let (name, value) = item.split_once('=').unwrap_or((item, ""));
        if !route.query.iter().any(|(known, _)| *known == name) {
            let known: Vec<_> = route.query.iter().map(|(known, _)| *known).collect();
            let known = if known.is_empty() { "nothing".to_owned() } else { known.join(" or ") };
            return Err(wrong(format!("{name:?} is not known here; behind ? may stand {known}")));
        }
        match (name, value) {
            ("force", "" | "true") => is_alone(Departure::Within(Duration::ZERO))?,
            ("once", "" | "true") => read.is_once = true,
            ("force" | "once", value) => return Err(wrong(format!("{name}={value}: write {name} alone"))),
            ("since", value) => {
                let text = || wrong(format!("since={value}: write the number of an event, its seq"));
                read.since = Since::Number(value.parse().map_err(|_| text())?);
            }
            (_, value) => {
                let time = time(value).filter(|time| *time <= MAX_DRAIN_TIMEOUT);
                let text = || {
                    format!(
                        "drain={value}: write a time up to {MAX_DRAIN_TIMEOUT:?}, such as 10s, 500ms or 2m"
                    )
                };
                is_alone(Departure::Within(time.ok_or_else(|| wrong(text()))?))?;
            }
        }
    }
    Ok(read)
}

/// A whole number of seconds, or of what stands behind it.
fn time(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood() {
        let call = find("DELETE", "/v1/disks/a%2Fb%20c", Some("drain=2m")).unwrap();
        assert_eq!((call.route.operation, call.disk.as_str()), (Operation::RemoveDisk, "a/b c"));
        assert_eq!(call.query.departure, Departure::Within(Duration::from_secs(120)));
        for (query, since, is_once) in [
            ("", Since::Now, false),
            ("since=0&once", Since::Number(0), true),
            ("once=true&since=18446744073709551615", Since::Number(u64::MAX), true),
        ] {
            let read = find("GET", "/v1/events", Some(query)).unwrap().query;
            assert_eq!((read.since, read.is_once), (since, is_once), "{query}");
        }
        for (query, departure) in [
            ("", Departure::Unused),
            ("force", Departure::Within(Duration::ZERO)),
            ("force=true", Departure::Within(Duration::ZERO)),
            ("drain=500ms", Departure::Within(Duration::from_millis(500))),
            ("drain=7", Departure::Within(Duration::from_secs(7))),
        ] {
            assert_eq!(
                find("DELETE", "/v1/disks/a", Some(query)).unwrap().query.departure,
                departure,
                "{query}"
            );
        }
        for route in &ROUTES {
            let path = route.path.replace("{name}", "x");
            let call = find(route.method, &path, None).unwrap();
            assert_eq!(
                (call.route.operation, call.route.changes()),
                (route.operation, route.method != "GET")
            );
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let refused = |method: &str, path: &str, query| find(method, path, query).unwrap_err();
        for path in [
            "",
            "/",
            "/v1/",
            "/v1/disk",
            "/v1/disks/",
            "/v1/disks/a/",
            "/v1/disks/a/b",
            "/v2/disks",
            "/V1/disks",
        ] {
            assert_eq!(refused("GET", path, None).code, "no-such-path", "{path}");
        }
        for name in ["%", "%2", "%zz", "%ff", "a%+1"] {
            assert_eq!(refused("GET", &format!("/v1/disks/{name}"), None).code, "bad-request", "{name}");
        }
        let problem = refused("POST", "/v1/disks/a", None);
        assert_eq!((problem.code, problem.allow.as_deref()), ("bad-method", Some("GET, PUT, PATCH, DELETE")));
        for query in [
            "drain",
            "drain=",
            "drain=-1s",
            "drain=1h",
            "drain=61m",
            "drain=1.5s",
            "force=no",
            "force&force",
            "force&drain=1s",
            "x=1",
        ] {
            assert_eq!(refused("DELETE", "/v1/disks/a", Some(query)).code, "bad-query", "{query}");
        }
        assert_eq!(refused("GET", "/v1/disks", Some("force")).code, "bad-query");
        for query in
            ["since", "since=", "since=-1", "since=x", "since=18446744073709551616", "once=no", "force"]
        {
            assert_eq!(refused("GET", "/v1/events", Some(query)).code, "bad-query", "{query}");
        }
    }
}
