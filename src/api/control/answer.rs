//! What is answered.

use serde_json::Value;

use super::problem::Problem;

/// An answer that is not a problem.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) kind: &'static str,
    pub(super) body: String,
    /// Where what was made is found.
    pub(super) location: Option<String>,
}

const JSON: &str = "application/json";

/// Of a stream of events: JSON, a line each.
pub(super) const LINES: &str = "application/x-ndjson";

/// Of a problem document.
pub(super) const PROBLEM: &str = "application/problem+json";

impl Answer {
    pub(super) fn json(body: &Value) -> Self {
        Self { status: 200, kind: JSON, body: format!("{body}\n"), location: None }
    }

    /// Nothing is to be said.
    pub(super) const fn done() -> Self {
        Self { status: 204, kind: JSON, body: String::new(), location: None }
    }

    /// In the format of Prometheus.
    pub(super) const fn metrics(body: String) -> Self {
        Self { status: 200, kind: "text/plain; version=0.0.4; charset=utf-8", body, location: None }
    }

    pub(super) fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }
}

/// What an operation comes to.
pub(super) type Outcome = Result<Answer, Problem>;
