//! The control socket: disks are shown, added, changed and removed while they are served, over HTTP/1.1 with JSON.
//!
//! ```text
//!  thread `control` (tokio, one thread)                     a thread for each operation
//!  socket: accepts, a few at a time ─▶ client: one request ─▶ operator: what becomes of the disks ─▶ server::Manager
//!                                       routes: which one?    answer / problem (RFC 9457)
//! ```
//!
//! Nothing of it is on the path of a guest's request: disks are opened, flushed and closed on a thread of the operation, as
//! media may make it wait; and the thread of the socket waits for nothing but sockets.
//!
//! | module | subject |
//! | --- | --- |
//! | `routes` | which requests there are: one table |
//! | `openapi` | the same table for programs (OpenAPI) |
//! | `operator` | does what is asked for; `reload` applies a configuration as one step; `change`: what can change |
//! | `turns`, `known` | who changes which disk; the options of those that are served |
//! | `disk` | a disk as it is shown |
//! | `understood` | what a request is understood as, for the fuzzer |
//! | `answer`, `problem` | what is answered |
//! | `client` | one connection: who it is, its one request, its answer |
//! | `stream` | its bytes; events as an answer |
//! | `socket` | the socket and its thread |

mod answer;
mod change;
mod client;
mod disk;
mod known;
mod openapi;
mod operator;
mod problem;
mod reload;
mod routes;
mod socket;
mod stream;
mod turns;
mod understood;

pub(crate) use operator::{Operator, Options};
pub(crate) use reload::{Reload, Wanted};
pub(crate) use socket::{ControlError, ControlSocket, Controlling, Reloads};
pub use understood::understood;
