//! The configuration is read again: what has changed is applied as one step, or nothing is.
//!
//! All that can be refused comes first, in this order: what cannot change at run time; what front-ends hold; opening what is
//! new. Then disks grow, then those go that are not wanted any more, and the new ones are served.

use std::collections::BTreeMap;
use std::fmt;

use super::change::{growth, with_remedy};
use super::problem::{Code, Problem};
use crate::config::DiskConfig;
use crate::config::json::{self, Object};
use crate::server::{Departure, Manager, Prepared, RemoveError, Resizer};

/// What is to be served.
pub(crate) type Wanted = Vec<DiskConfig>;

/// Reads what is to be served, or says why it cannot be.
type Source = dyn Fn() -> Result<Wanted, String> + Send + Sync;

/// What reads the configuration again.
pub(crate) struct Reload(pub(crate) Box<Source>);

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reload")
    }
}

impl Reload {
    pub(super) fn wanted(&self) -> Result<Wanted, Problem> {
        (self.0)().map_err(|text| Problem::new(Code::BadOptions, text))
    }
}

/// What a reload has done.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) added: Vec<String>,
    pub(super) removed: Vec<String>,
    pub(super) resized: Vec<String>,
    /// All disks that the configuration names, with their options.
    pub(super) configured: Vec<(String, Object)>,
}

/// The disks of a server.
pub(super) struct Disks<'a> {
    pub(super) manager: &'a Manager,
    pub(super) resizer: &'a Resizer,
}

impl Disks<'_> {
    /// Has them become what is wanted. `before` has their options, and whether the configuration has named them.
    pub(super) fn become_as(
        &self,
        wanted: Wanted,
        before: &BTreeMap<String, (Object, bool)>,
        remedy: &dyn Fn(&DiskConfig) -> Option<String>,
    ) -> Result<Done, Problem> {
        let (mut done, mut grow, mut add) = (Done::default(), Vec::new(), Vec::new());
        for config in wanted {
            let (name, options) = (config.name.clone(), json::of(&config));
            match before.get(&name) {
                None => add.push(config),
                Some((known, _)) => {
                    if let Some(to_bytes) = growth(&name, known, &options)? {
                        grow.push((name.clone(), to_bytes));
                    }
                }
            }
            done.configured.push((name, options));
        }
        let is_wanted = |name: &String| done.configured.iter().any(|(wanted, _)| wanted == name);
        let gone = before.iter().filter(|(name, (_, is_configured))| *is_configured && !is_wanted(name));
        done.removed = gone.map(|(name, _)| name.clone()).collect();
        let add: Vec<Prepared> =
            add.into_iter().map(|it| self.prepare(it, remedy)).collect::<Result<_, _>>()?;
        for (name, to_bytes) in grow {
            self.resizer
                .grow(&name, to_bytes)
                .map_err(|error| partly(error.into(), &done.resized, "have grown"))?;
            done.resized.push(name);
        }
        let leaving: Vec<&str> = done.removed.iter().map(String::as_str).collect();
        match self.manager.remove_all(&leaving, Departure::Unused) {
            Ok(()) => {}
            Err(error @ RemoveError::Lingers(_)) => tracing::warn!("{error}"),
            Err(error) => return Err(partly(error.into(), &done.resized, "have grown")),
        }
        for prepared in add {
            let served = prepared.serve();
            let served = served.map_err(|error| partly(error.into(), &done.added, "are served"))?;
            tracing::info!(disk = served.name, "added");
            done.added.push(served.name);
        }
        Ok(done)
    }

    fn prepare(
        &self,
        config: DiskConfig,
        remedy: &dyn Fn(&DiskConfig) -> Option<String>,
    ) -> Result<Prepared, Problem> {
        let remedy = remedy(&config);
        self.manager.prepare(config).map_err(|error| with_remedy(error.into(), remedy))
    }
}

/// Says what stays done.
fn partly(problem: Problem, disks: &[String], done: &str) -> Problem {
    match disks {
        [] => problem,
        disks => problem.with(&format!(" (disks that {done} already: {})", disks.join(", "))),
    }
}
