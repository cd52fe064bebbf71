//! QEMU's back-end program conventions: one disk, no subcommand
//! (vhost-user specification, "Backend program conventions").

use std::io::Write;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use crate::cli::confine::Confinement;
use crate::cli::daemon::{self, Outlets};
use crate::cli::exit::{self, Exit, Failure};
use crate::cli::inherited;
use crate::config::options;
use crate::config::{DiskConfig, ServerConfig, SocketSource};
use crate::disk::Symlinks;
use crate::worker::Polling;

/// `VHostUserBackendCapabilities` of the schema vhost-user.json.
const CAPABILITIES: &str = r#"{
  "type": "block",
  "features": [
    "read-only",
    "blk-file"
  ]
}
"#;

#[derive(Debug, Args)]
#[command(next_help_heading = "Back-end program")]
#[group(skip)]
pub(super) struct BackendArgs {
    /// Listen for the front-end on this Unix socket
    #[arg(long, value_name = "PATH", group = "endpoint", requires = "blk_file")]
    socket_path: Option<PathBuf>,

    /// Serve the inherited Unix socket FDNUM (3 or higher), which listens or is already connected; needs Linux 5.6
    #[arg(
        long,
        value_name = "FDNUM",
        allow_negative_numbers = true,
        group = "endpoint",
        requires = "blk_file"
    )]
    fd: Option<RawFd>,

    /// File whose bytes are the disk
    #[arg(long, value_name = "PATH", requires = "endpoint")]
    blk_file: Option<PathBuf>,

    /// Open the file read-only and refuse writes
    #[arg(long, requires = "blk_file")]
    read_only: bool,

    /// Print what this program can do, as JSON; every other argument is ignored
    #[arg(long)]
    print_capabilities: bool,
}

impl BackendArgs {
    pub(super) const fn is_used(&self) -> bool {
        self.socket_path.is_some() || self.fd.is_some() || self.blk_file.is_some() || self.read_only
    }
}

pub(super) fn print_capabilities() -> Exit {
    let mut out = std::io::stdout();
    exit::written(out.write_all(CAPABILITIES.as_bytes()).and_then(|()| out.flush()))
}

pub(super) fn run(args: BackendArgs, confinement: Confinement) -> Result<(), Failure> {
    serve(args, confinement).map_err(|failure| Failure::Backend(Box::new(failure)))
}

fn serve(args: BackendArgs, confinement: Confinement) -> Result<(), Failure> {
    // clap has made sure of --blk-file and of one of the other two.
    let path = args.blk_file.unwrap_or_default();
    let socket = match (args.fd, args.socket_path) {
        (Some(fd), _) => SocketSource::Fd(inherited::take(fd)?),
        (None, path) => SocketSource::Path(path.unwrap_or_default()),
    };
    let mut disk = DiskConfig::new(options::default_name(Path::new(&path)), path, socket);
    disk.read_only = args.read_only;
    let config = ServerConfig {
        disks: vec![disk],
        workers: None,
        polling: Polling::default(),
        exit_on_disconnect: false,
        stop_timeout: None,
        should_stop: Arc::default(),
    };
    // Standard output belongs to whoever started the program: the log says enough.
    daemon::run(config, Outlets::default(), Symlinks::Follow, confinement, |_| ())
}
