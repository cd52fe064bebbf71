//! A server's life in the foreground: catch signals, start, announce, wait.

use crate::api::control::Controlling;
use crate::api::{Endpoint, EndpointError, Serving};
use crate::cli::activation;
use crate::cli::confine::{Confined, Confinement};
use crate::cli::control::Control;
use crate::cli::exit::Failure;
use crate::cli::limits;
use crate::cli::metrics::MetricsArgs;
use crate::cli::notify::ServiceManager;
use crate::cli::signals::CaughtSignals;
use crate::config::{ServerConfig, json};
use crate::disk::{self, Symlinks};
use crate::server::{DiskSummary, Server, ServerError};

/// What the process listens on besides the sockets of disks.
#[derive(Debug, Default)]
pub(super) struct Outlets {
    pub(super) metrics: MetricsArgs,
    pub(super) control: Control,
}

/// Serves until a signal or the server itself ends it, and metrics and a control socket where that is asked for. `announce` is
/// called once everything listens; what it returns is kept until the end.
pub(super) fn run<T>(
    mut config: ServerConfig,
    Outlets { metrics, control }: Outlets,
    symlinks: Symlinks,
    confinement: Confinement,
    announce: impl FnOnce(&[DiskSummary]) -> T,
) -> Result<(), Failure> {
    config.check()?;
    disk::prepare_overlays();
    limits::raise_open_files(config.disks.len())?;
    let signals = CaughtSignals::catch().map_err(Failure::Signals)?;
    let endpoints = metrics.bind(symlinks)?;
    let control_socket = control.bind(symlinks)?;
    let configured = config.disks.iter().map(json::of).collect();
    activation::take_passed(&mut config.disks)?;
    let manager = ServiceManager::find();
    let stored = activation::bind_stored(&mut config.disks, manager.as_ref());
    config.should_stop = signals.should_stop();
    let sockets = config.disks.iter().filter_map(|disk| disk.socket.path());
    let sockets = sockets.chain(metrics.path()).chain(control.path());
    let sockets: Vec<_> = sockets.map(ToOwned::to_owned).collect();
    let postcopy = config.disks.iter().any(|disk| disk.postcopy);
    let mut confined = None;
    let enter = |_: &[DiskSummary]| {
        confined = Some(confinement.enter(&sockets, control.reach(), postcopy)?);
        Ok(())
    };
    let server = match Server::start_confined(config, enter) {
        Err(Failure::Server(ServerError::Stopped)) => {
            tracing::info!("stopped by a signal while it started");
            return Ok(());
        }
        started => started?,
    };
    let metrics = serve_metrics(endpoints, &server)?;
    let is_confined = confined.as_ref().is_some_and(Confined::keeps_files_out_of_reach);
    let control = control.serve(control_socket, &server, configured, is_confined)?;
    let reloads = control.as_ref().map(Controlling::reloads);
    let forwarder = signals.forward_to(server.stopper(), server.rescan_trigger(), reloads);
    activation::notify_ready(manager.as_ref(), stored);
    let disks = server.disks();
    let _pending = announce(&disks);
    log(&disks);
    if forwarder.is_err() {
        server.stopper().stop();
    }
    if let Some(is_all) = confined.map(Confined::narrow).transpose()?.flatten() {
        server.stopper().stop();
        server.wait()?;
        return if is_all { Ok(()) } else { Err(Failure::NotConfined) };
    }
    let ended = server.wait();
    // What is under way there is told that the server has stopped.
    drop(control);
    ended?;
    // It can be read until the disks are at rest, and their last numbers are the right ones.
    drop(metrics);
    forwarder.map(drop).map_err(Failure::Signals)
}

fn serve_metrics(endpoints: Vec<Endpoint>, server: &Server) -> Result<Vec<Serving>, EndpointError> {
    let serve = |endpoint: Endpoint| {
        if let Some(address) = endpoint.port() {
            tracing::info!("metrics are at http://{address}/metrics");
        }
        endpoint.serve(server.collector())
    };
    endpoints.into_iter().map(serve).collect()
}

fn log(disks: &[DiskSummary]) {
    if disks.is_empty() {
        tracing::info!("ready for disks");
    }
    for disk in disks {
        let (path, bytes, durability) = (disk.path.display(), disk.capacity_bytes, disk.durability);
        tracing::info!(disk = disk.name, %path, bytes, %durability, "ready for front-ends");
    }
}
