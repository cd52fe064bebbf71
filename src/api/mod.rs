//! What a running server reports to its operators: metrics, over HTTP on a Unix socket.
//!
//! | module | subject |
//! | --- | --- |
//! | `metrics` | the names, and the text that Prometheus reads |
//! | `http` | as much of HTTP/1.1 as it takes |
//! | `endpoint` | the socket, its thread, its limits |

mod endpoint;
mod http;
pub(crate) mod metrics;

pub use endpoint::{Endpoint, EndpointError, Serving};
pub use metrics::text;
