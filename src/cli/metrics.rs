//! Where the command line has metrics served.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::api::{Endpoint, EndpointError};
use crate::disk::Symlinks;

#[derive(Debug, Default, Args)]
pub(super) struct MetricsArgs {
    /// Serve metrics for Prometheus on this Unix socket (GET /metrics)
    ///
    /// A stale socket is replaced; one on which another process listens is not. `curl --unix-socket SOCKET
    /// http://localhost/metrics` reads them.
    #[arg(long, value_name = "SOCKET")]
    metrics: Option<PathBuf>,

    /// Serve metrics on this TCP port as well, for example 127.0.0.1:9753; port 0 is a free one, which the log names
    ///
    /// Every user of this machine can read them there: names, paths' media, sizes and counts, nothing of what is on the
    /// disks. Other addresses than the loopback's are refused: put a server in front that asks who reads.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = loopback)]
    metrics_listen: Option<SocketAddr>,
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "write 127.0.0.1:PORT or [::1]:PORT".to_owned())?;
    match address.ip().is_loopback() {
        true => Ok(address),
        false => {
            Err("metrics are for this machine only: write 127.0.0.1:PORT or [::1]:PORT, and put a server in \
                      front that asks who reads"
                .to_owned())
        }
    }
}

impl MetricsArgs {
    /// The socket on the file system.
    pub(super) fn path(&self) -> Option<&Path> {
        self.metrics.as_deref()
    }

    /// Listens.
    pub(super) fn bind(&self, symlinks: Symlinks) -> Result<Vec<Endpoint>, EndpointError> {
        let path = self.metrics.as_deref().map(|path| Endpoint::bind(path, symlinks));
        let port = self.metrics_listen.map(Endpoint::bind_port);
        path.into_iter().chain(port).collect()
    }

    /// Why [`bind`](Self::bind) would fail. Nothing is changed: a port that was listened on is free again.
    pub(super) fn check(&self, symlinks: Symlinks) -> impl Iterator<Item = EndpointError> {
        let path = self.metrics.as_deref().map(|path| Endpoint::preview(path, symlinks));
        let port = self.metrics_listen.map(|address| Endpoint::bind_port(address).map(drop));
        path.into_iter().chain(port).filter_map(Result::err)
    }
}
