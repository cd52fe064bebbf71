//! Why there is no live view.

use std::io;

/// Why there is no live view.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum TopError {
    #[error("standard input or output is no terminal; use --once for one table, or --json")]
    NotATerminal,
    #[error(
        "the terminal is {0:?} (TERM), which cannot move its cursor; use --once for one table, or --json"
    )]
    Dumb(String),
    #[error("the terminal does not do what it is told ({0}); use --once for one table, or --json")]
    Terminal(io::Error),
}
