//! What is answered instead: problem documents (RFC 9457).

use serde::Serialize;

use crate::config::ConfigError;
use crate::config::json::JsonError;
use crate::config::options::OptionError;
use crate::disk::{GrowError, OpenError};
use crate::server::{FlushError, RemoveError, ResizeError, ServerError};

/// What is wrong, in a word that programs can compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    BadRequest,
    BadQuery,
    NotJson,
    BadOptions,
    UnknownKey,
    NotAllowed,
    NoSuchPath,
    NoSuchDisk,
    BadMethod,
    Slow,
    Exists,
    Fixed,
    Connected,
    Leaving,
    Busy,
    SocketInUse,
    Locked,
    TooLarge,
    MediaType,
    Missing,
    NotRegular,
    BadSize,
    TooSmall,
    NotDurable,
    Permission,
    Failed,
    NoSpace,
    Exhausted,
    Crowded,
    Stopping,
}

impl Code {
    /// The word, and the status of HTTP with its name.
    const fn parts(self) -> (&'static str, u16, &'static str) {
        const UNPROCESSABLE: &str = "Unprocessable Content";
        match self {
            Self::BadRequest => ("bad-request", 400, "Bad Request"),
            Self::BadQuery => ("bad-query", 400, "Bad Request"),
            Self::NotJson => ("not-json", 400, "Bad Request"),
            Self::NotAllowed => ("not-allowed", 403, "Forbidden"),
            Self::Permission => ("permission", 403, "Forbidden"),
            Self::NoSuchPath => ("no-such-path", 404, "Not Found"),
            Self::NoSuchDisk => ("no-such-disk", 404, "Not Found"),
            Self::BadMethod => ("bad-method", 405, "Method Not Allowed"),
            Self::Slow => ("slow", 408, "Request Timeout"),
            Self::Exists => ("exists", 409, "Conflict"),
            Self::Fixed => ("not-changeable", 409, "Conflict"),
            Self::Connected => ("connected", 409, "Conflict"),
            Self::Leaving => ("leaving", 409, "Conflict"),
            Self::Busy => ("busy", 409, "Conflict"),
            Self::SocketInUse => ("socket-in-use", 409, "Conflict"),
            Self::Locked => ("locked", 409, "Conflict"),
            Self::TooLarge => ("too-large", 413, "Content Too Large"),
            Self::MediaType => ("media-type", 415, "Unsupported Media Type"),
            Self::BadOptions => ("bad-options", 422, UNPROCESSABLE),
            Self::UnknownKey => ("unknown-key", 422, UNPROCESSABLE),
            Self::Missing => ("missing", 422, UNPROCESSABLE),
            Self::NotRegular => ("not-regular", 422, UNPROCESSABLE),
            Self::BadSize => ("bad-size", 422, UNPROCESSABLE),
            Self::TooSmall => ("too-small", 422, UNPROCESSABLE),
            Self::NotDurable => ("not-durable", 422, UNPROCESSABLE),
            Self::Failed => ("failed", 500, "Internal Server Error"),
            Self::Exhausted => ("exhausted", 503, "Service Unavailable"),
            Self::Crowded => ("crowded", 503, "Service Unavailable"),
            Self::Stopping => ("stopping", 503, "Service Unavailable"),
            Self::NoSpace => ("no-space", 507, "Insufficient Storage"),
        }
    }
}

/// A problem document. Its members `type` and `title` are those of the status alone, so `code` says which problem it is.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    r#type: &'static str,
    title: &'static str,
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) detail: String,
    /// The methods that there are.
    #[serde(skip)]
    pub(super) allow: Option<String>,
}

impl Problem {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        let (code, status, title) = code.parts();
        Self { r#type: "about:blank", title, status, code, detail: detail.into(), allow: None }
    }

    pub(super) fn json(&self) -> String {
        // A structure of texts and a number can be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Of a method that is not allowed: these are.
    pub(super) fn allowing(self, methods: String) -> Self {
        Self { allow: Some(methods), ..self }
    }

    /// With a remedy behind it.
    pub(super) fn with(mut self, remedy: &str) -> Self {
        self.detail += remedy;
        self
    }

    pub(super) fn no_such_disk(name: &str) -> Self {
        RemoveError::NoSuchDisk(name.to_owned()).into()
    }
}

impl From<JsonError> for Problem {
    fn from(error: JsonError) -> Self {
        let code = match &error {
            JsonError::Syntax(_) => Code::NotJson,
            JsonError::Option(OptionError::UnknownKey { .. }) => Code::UnknownKey,
            _ => Code::BadOptions,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        let code = match &error {
            ConfigError::SameName { .. } | ConfigError::SameSocket { .. } => Code::Exists,
            _ => Code::BadOptions,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ServerError> for Problem {
    fn from(error: ServerError) -> Self {
        let code = match error {
            ServerError::Config(error) => return error.into(),
            ServerError::Open(ref error) => of_open(error),
            ServerError::SocketInUse { .. } => Code::SocketInUse,
            ServerError::Socket { ref source, .. } => match source.kind() {
                std::io::ErrorKind::PermissionDenied => Code::Permission,
                _ => Code::Failed,
            },
            ServerError::NoCpu { .. } => Code::BadOptions,
            ServerError::Threads(_) => Code::Exhausted,
            ServerError::Stopped => return Self::new(Code::Stopping, "the server is stopping"),
            ServerError::Fd { .. }
            | ServerError::Copy(_)
            | ServerError::Faults(_)
            | ServerError::GivenUp(_) => Code::Failed,
        };
        Self::new(code, error.to_string())
    }
}

const fn of_open(error: &OpenError) -> Code {
    match error {
        OpenError::Missing { .. } => Code::Missing,
        OpenError::NotRegular { .. } | OpenError::Unusable { .. } => Code::NotRegular,
        OpenError::BadSize { .. } => Code::BadSize,
        OpenError::TooSmall { .. } => Code::TooSmall,
        OpenError::NoSpace { .. } => Code::NoSpace,
        OpenError::Locked { .. } | OpenError::InUse { .. } => Code::Locked,
        OpenError::NotDurable { .. } => Code::NotDurable,
        OpenError::Permission { .. } => Code::Permission,
        OpenError::Io { .. } => Code::Failed,
    }
}

impl From<RemoveError> for Problem {
    fn from(error: RemoveError) -> Self {
        let code = match &error {
            RemoveError::NoSuchDisk(_) => Code::NoSuchDisk,
            RemoveError::Leaving(_) => Code::Leaving,
            RemoveError::Connected { .. } => Code::Connected,
            RemoveError::Stopped(_) => Code::Stopping,
            RemoveError::Lingers(_) => Code::Failed,
        };
        Self::new(code, error.to_string())
    }
}

impl From<ResizeError> for Problem {
    fn from(error: ResizeError) -> Self {
        let code = match &error {
            ResizeError::NoSuchDisk(_) => Code::NoSuchDisk,
            ResizeError::Grow { source, .. } => match source {
                GrowError::Smaller { .. } | GrowError::NotBlocks { .. } => Code::BadSize,
                GrowError::NoSpace { .. } => Code::NoSpace,
                GrowError::NoMemory { .. } => Code::Exhausted,
                GrowError::ReadOnly => Code::Fixed,
                _ => Code::Failed,
            },
        };
        Self::new(code, error.to_string())
    }
}

impl From<FlushError> for Problem {
    fn from(error: FlushError) -> Self {
        let code = match &error {
            FlushError::NoSuchDisk(_) => Code::NoSuchDisk,
            FlushError::Failed { .. } => Code::Failed,
        };
        Self::new(code, error.to_string())
    }
}
