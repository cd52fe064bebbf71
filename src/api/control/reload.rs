//! The configuration is read again: what has changed is applied as one step, or nothing is.
//!
//! All that can be refused comes first, in this order: what cannot change at run time; opening what is new; what front-ends
//! hold. Then those go that are not wanted any more, the new ones are served, and disks grow: that is where the media may still
//! say no, and nothing of it can be undone. What is done is known at once.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;

use serde_json::{Value, json};

use super::change::{Change, change, with_remedy};
use super::known::{Known, KnownDisks};
use super::problem::{Code, Problem};
use crate::config::json::{self, Object};
use crate::config::keys::Key;
use crate::config::{DiskConfig, Throttling, ThrottlingChanges};
use crate::log::kinds;
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

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    add: Vec<DiskConfig>,
    remove: Vec<String>,
    grow: Vec<(String, u64)>,
    /// Those whose limits change, and their options.
    limit: Vec<(String, Throttling, Object)>,
    /// Those of which other requests are slow from now on, and their options.
    slow: Vec<(String, Option<NonZeroU16>, Object)>,
    /// These stay, and are those of the configuration.
    stay: Vec<String>,
}

impl Plan {
    /// What has these disks become those that are wanted.
    ///
    /// # Errors
    /// That cannot be changed.
    pub(super) fn new(wanted: Wanted, before: &BTreeMap<String, Known>) -> Result<Self, Problem> {
        let is_wanted = |name: &String| wanted.iter().any(|config| config.name == *name);
        let gone = before.iter().filter(|(name, known)| known.is_configured && !is_wanted(name));
        let mut plan = Self { remove: gone.map(|(name, _)| name.clone()).collect(), ..Self::default() };
        for config in wanted {
            let name = config.name.clone();
            let Some(known) = before.get(&name) else {
                plan.add.push(config);
                continue;
            };
            let Change { to_bytes, throttling, slow_ms } = change(&name, &known.options, &config)?;
            plan.grow.extend(to_bytes.map(|to_bytes| (name.clone(), to_bytes)));
            plan.limit.extend(throttling.map(|it| (name.clone(), it, json::of(&config))));
            plan.slow.extend(slow_ms.map(|it| (name.clone(), it, json::of(&config))));
            plan.stay.push(name);
        }
        Ok(plan)
    }

    /// Whether it changes a disk.
    pub(super) fn changes(&self, disk: &str) -> bool {
        self.add.iter().any(|config| config.name == disk)
            || self.remove.iter().any(|name| name == disk)
            || self.grow.iter().any(|(name, _)| name == disk)
            || self.limit.iter().any(|(name, ..)| name == disk)
            || self.slow.iter().any(|(name, ..)| name == disk)
    }
}

/// What a reload has done.
#[derive(Debug, Default)]
pub(super) struct Done {
    added: Vec<String>,
    removed: Vec<String>,
    resized: Vec<String>,
    limited: Vec<String>,
}

impl Done {
    pub(super) fn json(&self) -> Value {
        json!({"added": self.added, "removed": self.removed, "resized": self.resized, "limited": self.limited})
    }

    /// In a sentence; nothing where nothing is done.
    fn text(&self) -> Option<String> {
        let parts = [
            ("removed", &self.removed),
            ("limited", &self.limited),
            ("added", &self.added),
            ("resized", &self.resized),
        ];
        let parts = parts.iter().filter(|(_, disks)| !disks.is_empty());
        let parts: Vec<_> = parts.map(|(what, disks)| format!("{what} {}", disks.join(", "))).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// A reload that was not done, or not all of it.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) problem: Problem,
    pub(super) done: Box<Done>,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = &self.problem.detail;
        match self.done.text() {
            None => write!(f, "nothing has changed: {detail}"),
            Some(done) => write!(f, "not all of it was applied: {detail} (done already: {done})"),
        }
    }
}

impl From<Problem> for Failed {
    fn from(problem: Problem) -> Self {
        Self { problem, done: Box::default() }
    }
}

impl From<Failed> for Problem {
    fn from(Failed { problem, done }: Failed) -> Self {
        match done.text() {
            None => problem,
            Some(done) => problem.with(&format!(" (done already: {done})")),
        }
    }
}

/// The disks of a server, and what is known of them.
pub(super) struct Disks<'a> {
    pub(super) manager: &'a Manager,
    pub(super) resizer: &'a Resizer,
    pub(super) known: &'a KnownDisks,
}

impl Disks<'_> {
    /// Does what is planned.
    ///
    /// # Errors
    /// What is `done` by then stays so.
    pub(super) fn apply(
        &self,
        plan: Plan,
        remedy: &dyn Fn(&DiskConfig) -> Option<String>,
        done: &mut Done,
    ) -> Result<(), Problem> {
        let Plan { add, remove, grow, limit, slow, stay } = plan;
        let limited: ThrottlingChanges =
            limit.iter().map(|(name, throttling, _)| (name.clone(), throttling.clone())).collect();
        let mut all = limited.clone();
        all.extend(add.iter().map(|config| (config.name.clone(), config.throttling())));
        self.manager.check_throttling(&all, &remove)?;
        for (name, to_bytes) in &grow {
            let checked = self.resizer.check_growth(name, *to_bytes);
            checked.map_err(|error| Problem::from(error).with(&self.remedy_of_size(name, *to_bytes)))?;
        }
        let add: Vec<_> = add.into_iter().map(|it| self.prepare(it, remedy)).collect::<Result<_, _>>()?;
        self.remove(remove, done)?;
        if !limited.is_empty() {
            self.manager.set_throttling(&limited)?;
        }
        for (name, _, options) in limit {
            self.known.set_limits(std::iter::once(&name), &options);
            done.limited.push(name);
        }
        for (name, slow_ms, options) in slow {
            self.manager.set_slow_ms(&name, slow_ms)?;
            self.known.set_option(&name, Key::SlowMs, &options);
            if !done.limited.contains(&name) {
                done.limited.push(name);
            }
        }
        for (prepared, options) in add {
            let name = prepared.serve()?.name;
            self.known.insert(&name, Known { options, is_configured: true });
            tracing::info!(name: kinds::DISK_ADDED, disk = name, "added");
            done.added.push(name);
        }
        for (name, to_bytes) in grow {
            self.resizer.grow(&name, to_bytes)?;
            self.known.set_size(&name, to_bytes);
            done.resized.push(name);
        }
        stay.iter().for_each(|name| self.known.set_configured(name));
        Ok(())
    }

    /// What else is to be said of a size that is refused: the disk may have been made larger at the control socket.
    fn remedy_of_size(&self, name: &str, to_bytes: u64) -> String {
        let options = self.known.options(name).unwrap_or_default();
        match options.get(Key::Size.name()).and_then(Value::as_u64) {
            Some(bytes) if bytes > to_bytes => {
                format!(
                    "; it has grown since it was configured: write size = {bytes} in the configuration file"
                )
            }
            _ => String::new(),
        }
    }

    /// All of them, or none.
    fn remove(&self, disks: Vec<String>, done: &mut Done) -> Result<(), Problem> {
        let names: Vec<&str> = disks.iter().map(String::as_str).collect();
        match self.manager.remove_all(&names, Departure::Unused) {
            Ok(()) => {}
            Err(error @ RemoveError::Lingers(_)) => tracing::warn!("{error}"),
            Err(error) => return Err(error.into()),
        }
        disks.iter().for_each(|name| self.known.remove(name));
        done.removed = disks;
        Ok(())
    }

    fn prepare(
        &self,
        config: DiskConfig,
        remedy: &dyn Fn(&DiskConfig) -> Option<String>,
    ) -> Result<(Prepared, Object), Problem> {
        let (remedy, options) = (remedy(&config), json::of(&config));
        let prepared = self.manager.prepare(config);
        Ok((prepared.map_err(|error| with_remedy(error.into(), remedy))?, options))
    }
}
