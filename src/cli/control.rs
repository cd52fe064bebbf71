//! The control socket, as the command line asks for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use crate::api::control::{ControlError, ControlSocket, Controlling, Operator, Options, Reload};
use crate::cli::logging;
use crate::config::json::Object;
use crate::config::options::Defaults;
use crate::disk::Symlinks;
use crate::sandbox::Reach;
use crate::server::Server;

#[derive(Debug, Default, Args)]
pub(super) struct ControlArgs {
    /// Let disks be shown, added, changed and removed at this Unix socket while they are served (HTTP with JSON)
    ///
    /// Root and the user of the daemon may change something; whoever else may connect may read. `curl --unix-socket SOCKET
    /// http://localhost/openapi.json` says what there is.
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,

    /// A folder with files or sockets of disks that are added at the control socket, or by reading the configuration file
    /// again, which SIGHUP does then; may be repeated
    ///
    /// The sandbox lets nothing else be opened once the disks of the start are. Neither with --control nor with this, SIGHUP
    /// reads the sizes of disks only.
    #[arg(long, value_name = "DIR")]
    allow: Vec<PathBuf>,
}

impl ControlArgs {
    /// Whether disks may come to a server that has none: others may only have theirs changed.
    pub(super) const fn lets_disks_come(&self) -> bool {
        self.control.is_some()
    }
}

/// The same, with what the operator is to know.
#[derive(Debug, Default)]
pub(super) struct Control {
    pub(super) args: ControlArgs,
    pub(super) defaults: Defaults,
    /// The configuration file.
    pub(super) config: Option<PathBuf>,
    pub(super) reload: Option<Reload>,
}

/// Files of the system that say what a disk lies on, who holds a lock, and which users and groups there are.
const OF_SYSTEM: [&str; 5] = ["/proc", "/sys", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf"];

impl Control {
    /// The socket on the file system.
    pub(super) fn path(&self) -> Option<&Path> {
        self.args.control.as_deref()
    }

    /// Listens, if that is asked for.
    pub(super) fn bind(&self, symlinks: Symlinks) -> Result<Option<ControlSocket>, ControlError> {
        self.path().map(|path| ControlSocket::bind(path, symlinks)).transpose()
    }

    /// Why [`bind`](Self::bind) would fail. Nothing is changed.
    pub(super) fn check(&self, symlinks: Symlinks) -> Option<ControlError> {
        self.path().and_then(|path| ControlSocket::preview(path, symlinks).err())
    }

    /// Whether disks may come and go.
    fn is_wanted(&self) -> bool {
        self.path().is_some() || (self.config.is_some() && !self.args.allow.is_empty())
    }

    /// What is to stay in reach for disks that come later.
    pub(super) fn reach(&self) -> Reach {
        if !self.is_wanted() {
            return Reach::default();
        }
        let system = OF_SYSTEM.iter().map(PathBuf::from).filter(|path| path.exists());
        let folder = self.config.as_deref().map(|file| match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        });
        Reach {
            removable: Vec::new(),
            served: self.args.allow.clone(),
            readable: system.chain(folder).collect(),
        }
    }

    /// Has the socket answered, and the configuration read again on SIGHUP. `configured` are the disks of the start, and `is_confined` that only `--allow` can be opened.
    pub(super) fn serve(
        self,
        socket: Option<ControlSocket>,
        server: &Server,
        configured: Vec<Object>,
        is_confined: bool,
    ) -> Result<Option<Controlling>, ControlError> {
        if !self.is_wanted() {
            return Ok(None);
        }
        let (Some(resizer), Some(reload)) = (server.resizer(), self.reload) else { return Ok(None) };
        let allowed = is_confined.then_some(self.args.allow);
        let log = logging::change;
        let options = Options { defaults: self.defaults, configured, allowed, reload, log };
        let operator = Operator::new(server.manager(), resizer, server.collector(), options);
        Ok(Some(Controlling::start(socket, Arc::new(operator), logging::events())?))
    }
}
