//! Does what is asked for.
//!
//! Who changes a disk has its turn (`turns`), and a reload that of all disks it changes: so what is known of them is what is so,
//! and whatever is slow with one disk holds up no other.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, TryLockError};

use serde_json::{Value, json};

use super::answer::{Answer, Outcome};
use super::change::{Change, change, names, of_group, with_remedy};
use super::disk;
use super::known::{Known, KnownDisks};
use super::openapi;
use super::problem::{Code, Problem};
use super::reload::{Disks, Done, Failed, Plan, Reload};
use super::routes::{Call, Operation};
use super::turns::{Doing, Turns};
use crate::api::metrics;
use crate::config::json::{self, Object};
use crate::config::keys::Key;
use crate::config::options::{Defaults, into_configs};
use crate::config::size;
use crate::config::{DiskConfig, SocketSource, Throttling};
use crate::log::kinds;
use crate::server::{Collector, Manager, RemoveError, Resized, Resizer};

/// What the operator is told at the start.
#[derive(Debug)]
pub(crate) struct Options {
    /// What holds for disks that do not say it themselves.
    pub(crate) defaults: Defaults,
    /// The options of the disks that are served from the start.
    pub(crate) configured: Vec<Object>,
    /// Where disks may be opened from now on; none for anywhere.
    pub(crate) allowed: Option<Vec<PathBuf>>,
    /// What reads the configuration again.
    pub(crate) reload: Reload,
    /// What gives the log another filter.
    pub(crate) log: fn(&str) -> Result<(), String>,
}

/// Does what is asked for, from any thread.
#[derive(Debug)]
pub(crate) struct Operator {
    manager: Manager,
    resizer: Resizer,
    collector: Collector,
    defaults: Defaults,
    allowed: Option<Vec<PathBuf>>,
    reload: Reload,
    log: fn(&str) -> Result<(), String>,
    known: KnownDisks,
    turns: Turns,
    /// Held while the configuration is read again.
    reloading: Mutex<()>,
    /// Held while limits are changed.
    limiting: Mutex<()>,
}

impl Operator {
    pub(crate) fn new(manager: Manager, resizer: Resizer, collector: Collector, options: Options) -> Self {
        let Options { defaults, configured, allowed, reload, log } = options;
        let known = KnownDisks::new(configured);
        let (turns, reloading, limiting) = (Turns::default(), Mutex::default(), Mutex::default());
        Self {
            manager,
            resizer,
            collector,
            defaults,
            allowed,
            reload,
            log,
            known,
            turns,
            reloading,
            limiting,
        }
    }

    /// Does it. It may take as long as media do.
    pub(super) fn run(&self, call: &Call, body: &[u8]) -> Outcome {
        let name = call.disk.as_str();
        match call.route.operation {
            Operation::Version => Ok(Answer::json(&json!({
                "program": "vhost-user-pmem",
                "version": env!("CARGO_PKG_VERSION"),
                "api": 1,
            }))),
            Operation::OpenApi => Ok(Answer::json(&openapi::document())),
            Operation::Metrics => Ok(Answer::metrics(metrics::text(&self.collector.collect()))),
            Operation::ListDisks => Ok(Answer::json(&Value::Array(self.shown(|_| true)))),
            Operation::ShowDisk => self.show(name),
            Operation::ShowRings => {
                let rings = self.collector.rings(name).ok_or_else(|| Problem::no_such_disk(name))?;
                Ok(Answer::json(&rings.iter().map(disk::ring).collect()))
            }
            Operation::ListRings => {
                Ok(Answer::json(&self.collector.all_rings().iter().map(disk::ring).collect()))
            }
            Operation::PutDisk => self.put(name, body),
            Operation::PatchDisk => self.patch(name, body),
            Operation::RemoveDisk => self.remove(call),
            Operation::Resize => self.resize(name, body),
            Operation::Flush => Ok(self.manager.flush(name).map(|()| Answer::done())?),
            Operation::Disconnect => {
                let front_ends = self.manager.disconnect(name)?;
                Ok(Answer::json(&json!({"front_ends": front_ends})))
            }
            Operation::Log => self.set_log(body),
            Operation::Reload => Ok(Answer::json(&self.reload()?)),
            Operation::Events => Err(Problem::new(Code::Failed, "events are no operation")),
        }
    }

    fn shown(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<Value> {
        let summaries = self.manager.disks().into_iter().filter(|disk| is_wanted(&disk.name));
        let (summaries, stats) = (summaries.collect::<Vec<_>>(), self.collector.collect());
        let stats: BTreeMap<&str, _> = stats.iter().map(|stats| (stats.name.as_str(), stats)).collect();
        let known = self.known.all();
        let options = |name: &str| known.get(name).map(|known| &known.options);
        summaries
            .iter()
            .map(|disk| disk::shown(disk, options(&disk.name), stats.get(disk.name.as_str()).copied()))
            .collect()
    }

    fn show(&self, name: &str) -> Outcome {
        let shown = self.shown(|other| other == name).pop();
        Ok(Answer::json(&shown.ok_or_else(|| Problem::no_such_disk(name))?))
    }

    /// A disk that has just come, which no worker knows: none is woken up for it.
    fn show_new(&self, name: &str) -> Outcome {
        let summary = self.manager.disk(name);
        let shown = summary.map(|summary| {
            let stats = self.collector.collect_quietly(name);
            disk::shown(&summary, self.known.options(name).as_ref(), stats.as_ref())
        });
        Ok(Answer::json(&shown.ok_or_else(|| Problem::no_such_disk(name))?))
    }

    fn put(&self, name: &str, body: &[u8]) -> Outcome {
        let config = self.config(&put_object(name, body)?)?;
        let options = json::of(&config);
        let _turn = self.turns.take(name, Doing::Add)?;
        let Some(known) = self.known.options(name) else { return self.add(config, options) };
        let differences = json::differences(&known, &options);
        if differences.is_empty() {
            return self.show(name);
        }
        let text = format!(
            "disk {name:?}: it is served, and differs in {}; remove it first, or PATCH what can be changed",
            names(&differences)
        );
        Err(Problem::new(Code::Exists, text))
    }

    fn add(&self, config: DiskConfig, options: Object) -> Outcome {
        let name = config.name.clone();
        let remedy = self.remedy(&config);
        let added = self.manager.add(config);
        added.map_err(|error| with_remedy(error.into(), remedy))?;
        self.known.insert(&name, Known { options, is_configured: false });
        tracing::info!(name: kinds::DISK_ADDED, disk = name, "added");
        let location = format!("/v1/disks/{}", encoded(&name));
        Ok(Answer { location: Some(location), ..self.show_new(&name)?.with_status(201) })
    }

    fn patch(&self, name: &str, body: &[u8]) -> Outcome {
        let patch = json::parse(body)?;
        let is_limit = |key: &String| Key::tunable().any(|limit| limit.name() == key);
        let doing = if patch.keys().all(is_limit) { Doing::Limit } else { Doing::Grow };
        let _turn = self.turns.take(name, doing)?;
        let known = self.known.options(name).ok_or_else(|| Problem::no_such_disk(name))?;
        json::check_paths(&patch)?;
        let mut object = known.clone();
        json::merge(&mut object, &patch)?;
        let config = self.config(&object)?;
        let Change { to_bytes, throttling, slow_ms } = change(name, &known, &config)?;
        if let Some(to_bytes) = to_bytes {
            self.resizer.check_growth(name, to_bytes)?;
        }
        if let Some(throttling) = throttling {
            self.limit(name, throttling, &json::of(&config))?;
        }
        if let Some(slow_ms) = slow_ms {
            self.manager.set_slow_ms(name, slow_ms)?;
            self.known.set_option(name, Key::SlowMs, &json::of(&config));
        }
        if let Some(to_bytes) = to_bytes {
            self.grow(name, to_bytes)?;
        }
        self.show(name)
    }

    /// Limits a disk, and the others of its group.
    fn limit(&self, name: &str, throttling: Throttling, options: &Object) -> Result<(), Problem> {
        // What is known of the disks is what is so.
        let _alone = self.limiting.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = of_group(name, throttling, &self.known.all());
        self.manager.set_throttling(&changes)?;
        self.known.set_limits(changes.keys(), options);
        Ok(())
    }

    fn resize(&self, name: &str, body: &[u8]) -> Outcome {
        let _turn = self.turns.take(name, Doing::Grow)?;
        let Resized { from_bytes, to_bytes } = match size_of(body)? {
            Some(to_bytes) => self.grow(name, to_bytes)?,
            None => self.resizer.resize(name)?,
        };
        Ok(Answer::json(&json!({"from_bytes": from_bytes, "to_bytes": to_bytes})))
    }

    fn set_log(&self, body: &[u8]) -> Outcome {
        let level = level_of(body)?;
        let set = (self.log)(&level);
        set.map_err(|text| Problem::new(Code::BadOptions, format!("level={level}: {text}")))?;
        tracing::info!(name: kinds::LOG_CHANGED, level, "the log has another filter");
        Ok(Answer::done())
    }

    fn grow(&self, name: &str, to_bytes: u64) -> Result<Resized, Problem> {
        let resized = self.resizer.grow(name, to_bytes)?;
        self.known.set_size(name, to_bytes);
        Ok(resized)
    }

    fn remove(&self, call: &Call) -> Outcome {
        let name = call.disk.as_str();
        let _turn = self.turns.take(name, Doing::Remove)?;
        match self.manager.remove(name, call.query.departure) {
            Ok(()) => {
                self.known.remove(name);
                Ok(Answer::done())
            }
            Err(error @ RemoveError::Lingers(_)) => {
                self.known.remove(name);
                Ok(Answer::json(&json!({"detail": error.to_string()})).with_status(202))
            }
            Err(error @ RemoveError::Connected { .. }) => {
                Err(Problem::from(error).with(": ?drain=10s gives them that time, ?force does it at once"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the configuration again, and applies what has changed as one step. The log says what has come of it.
    ///
    /// # Errors
    /// [`Failed`] says whether something has changed.
    pub(super) fn reload(&self) -> Result<Value, Failed> {
        let reloaded = self.reload_alone();
        match &reloaded {
            Ok(done) => tracing::info!(name: kinds::RELOADED, %done, "the configuration was read again"),
            Err(failed) => {
                tracing::error!(name: kinds::RELOAD_FAILED, "the configuration was read again, and {failed}");
            }
        }
        reloaded
    }

    fn reload_alone(&self) -> Result<Value, Failed> {
        let _alone = match self.reloading.try_lock() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(alone)) => alone.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let text = "the configuration is being read again already; ask again when that is done";
                return Err(Problem::new(Code::Busy, text).into());
            }
        };
        let wanted = self.reload.wanted()?;
        let configured = self.known.all().into_iter().filter(|(_, known)| known.is_configured);
        let names = configured.map(|(name, _)| name).chain(wanted.iter().map(|config| config.name.clone()));
        let mut turn = self.turns.take_all(names.collect(), Doing::Reload)?;
        let plan = Plan::new(wanted, &self.known.all())?;
        turn.keep(|name| plan.changes(name));
        let disks = Disks { manager: &self.manager, resizer: &self.resizer, known: &self.known };
        let mut done = Box::<Done>::default();
        let _limiting = self.limiting.lock().unwrap_or_else(PoisonError::into_inner);
        match disks.apply(plan, &|config| self.remedy(config), &mut done) {
            Ok(()) => Ok(done.json()),
            Err(problem) => Err(Failed { problem, done }),
        }
    }

    fn config(&self, object: &Object) -> Result<DiskConfig, Problem> {
        config_of(object, self.defaults.clone())
    }

    /// What else is to be said when a disk may not be opened: the sandbox lets this process open some folders only.
    fn remedy(&self, config: &DiskConfig) -> Option<String> {
        let allowed = self.allowed.as_ref()?;
        let socket = match &config.socket {
            SocketSource::Path(path) => Some(path),
            SocketSource::Fd(_) => None,
        };
        let is_outside = |path: &PathBuf| !allowed.iter().any(|folder| path.starts_with(folder));
        let overlay = config.overlay.as_ref().and_then(|overlay| overlay.file.as_ref());
        let outside =
            [Some(&config.path), socket, overlay].into_iter().flatten().find(|path| is_outside(path))?;
        Some(format!(
            "; {} is in no folder of --allow: name its folder there at the start, as the sandbox lets nothing else be opened \
             afterwards",
            outside.display()
        ))
    }
}

/// The options in the body of a request to serve a disk of this name.
pub(super) fn put_object(name: &str, body: &[u8]) -> Result<Object, Problem> {
    let mut object = json::parse(body)?;
    json::check_paths(&object)?;
    match object.insert(Key::Name.name().to_owned(), name.into()) {
        Some(given) if given != name => {
            let text =
                format!("name: {given} is another name than that of the address, {name:?}; leave it out");
            Err(Problem::new(Code::BadOptions, text))
        }
        _ => Ok(object),
    }
}

/// The disk that options describe.
pub(super) fn config_of(object: &Object, defaults: Defaults) -> Result<DiskConfig, Problem> {
    let configs = into_configs(vec![json::read(object)?], defaults);
    // One for each that is given.
    let config = configs.into_iter().next();
    let config = config.ok_or_else(|| Problem::new(Code::Failed, "there is no disk in this"))?;
    config.check()?;
    Ok(config)
}

/// The level in the body of a request.
pub(super) fn level_of(body: &[u8]) -> Result<String, Problem> {
    let mut object = json::parse(body)?;
    match object.remove("level") {
        Some(Value::String(level)) if object.is_empty() => Ok(level),
        _ => Err(Problem::new(Code::BadOptions, "write {\"level\": \"debug\"}, with what --log takes")),
    }
}

/// The size in the body of a request, if there is one.
pub(super) fn size_of(body: &[u8]) -> Result<Option<u64>, Problem> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let mut object = json::parse(body)?;
    let wrong = |text: String| Err(Problem::new(Code::BadOptions, text));
    let size = object.remove(Key::Size.name());
    if let Some(other) = object.keys().next() {
        return Err(Problem::new(Code::UnknownKey, format!("unknown key {other:?}; there is only size")));
    }
    match size {
        None => Ok(None),
        Some(Value::String(text)) => match size::parse(&text) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => wrong(format!("size={text}: {error}")),
        },
        Some(Value::Number(number)) if number.is_u64() => Ok(number.as_u64()),
        Some(other) => wrong(format!("size: {other} is no value of it; write {}", Key::Size.wanted())),
    }
}

/// A name as a part of an address.
fn encoded(name: &str) -> String {
    let part = |byte: u8| match byte {
        byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    name.bytes().map(part).collect()
}
