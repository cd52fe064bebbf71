//! What a running server reports to its operators and takes from them, over HTTP on a Unix socket or a TCP port.
//!
//! | module | subject |
//! | --- | --- |
//! | `metrics` | the names, and the text that Prometheus reads |
//! | `http` | as much of HTTP/1.1 as it takes |
//! | `endpoint` | the socket, and its thread |
//! | `readers` | who reads there, and how many for how long |
//! | `control` | the control socket: disks are added, changed and removed |

pub(crate) mod control;
mod endpoint;
mod http;
pub(crate) mod metrics;
mod readers;

#[doc(hidden)]
pub use control::understood;
pub use endpoint::{Endpoint, EndpointError, Serving};
pub use metrics::text;
