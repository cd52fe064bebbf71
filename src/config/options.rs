//! From the options of a disk, as they are written, to its configuration.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::num::{NonZeroU16, NonZeroU64};
use std::path::{Path, PathBuf};

use crate::config::identity::{self, IdentityError};
use crate::config::keys::{self, Key, Kind, Part};
use crate::config::size::{self, SizeError};
use crate::config::{
    BLOCK_SIZES, CpuChoice, DiskConfig, MAX_QUEUES, MAX_SEG_MAX, MAX_SLOW_MS, Serial, SerialTooLong,
    SocketSource, Template,
};
use crate::disk::{
    DeepFlush, DiscardPolicy, Durability, LockMode, OverlayOptions, Symlinks, UnknownLockMode, UnknownWord,
};
use crate::throttle::{Burst, LimitError, Limits, Measure, Rate};
use crate::vhost_user::{AllowedUsers, SocketAccess};
use crate::worker::NotCpus;

/// What is wrong with the options of a disk, wherever they are written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OptionError {
    #[error("unknown key {key:?}{}; the keys are {}", keys::suggestion(key, Key::all().map(Key::name)), Key::list())]
    UnknownKey { key: String },
    #[error("{} is given twice; leave one of them out", .0.name())]
    Twice(Key),
    #[error("{} is missing; add {}={}", .0.name(), .0.name(), .0.form())]
    Missing(Key),
    #[error("{} has no value; write {}={}", .0.name(), .0.name(), .0.form())]
    NoValue(Key),
    #[error("cpus and numa=auto both say where its workers run; leave one of them out")]
    TwoPlaces,
    #[error("{} and {} contradict each other; leave one of them out", .0.name(), .1.name())]
    Contradiction(Key, Key),
    #[error("{} needs {}; add it, or leave {} out", key.name(), needed.name(), key.name())]
    Needs { key: Key, needed: Key },
    #[error(transparent)]
    Limits(#[from] LimitError),
    #[error("{}={value}: {cause}", key.name())]
    Value { key: Key, value: String, cause: ValueError },
}

impl OptionError {
    /// The option that it is about, where it is one that was written.
    pub(crate) fn key(&self) -> Option<Key> {
        match self {
            Self::Twice(key) | Self::NoValue(key) | Self::Value { key, .. } => Some(*key),
            Self::TwoPlaces => Some(Key::Numa),
            Self::Contradiction(key, _) => Some(*key),
            Self::Needs { key, .. } => Some(*key),
            Self::Limits(error) => Key::of_limit(error.measure(), Part::Average),
            Self::UnknownKey { .. } | Self::Missing(_) => None,
        }
    }
}

/// What is wrong with a value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ValueError {
    #[error("it is not UTF-8 text")]
    NotText,
    #[error("write on or off")]
    NotASwitch,
    #[error("write 512 or 4096")]
    NotABlockSize,
    #[error("write a whole number from 1 to {MAX_QUEUES}")]
    NotAQueueCount,
    #[error("write a whole number from 1 to {MAX_SEG_MAX}")]
    NotASegMax,
    #[error("write a whole number from 0 to {MAX_SLOW_MS}")]
    NotASlowTime,
    #[error("write memory, off, or the path of a file, with a / in it")]
    NotAnOverlay,
    #[error("write off, on or same-serial")]
    NotATemplate,
    #[error("a template's disks are in memory; add overlay=memory")]
    NotInMemory,
    #[error(transparent)]
    Size(#[from] SizeError),
    #[error("{0}; shorten it")]
    Serial(#[from] SerialTooLong),
    #[error("a serial number is made of printable ASCII characters only")]
    SerialNotAscii,
    #[error(transparent)]
    Lock(#[from] UnknownLockMode),
    #[error("write page, cacheline, byte or off")]
    NotAClass,
    #[error(transparent)]
    Word(#[from] UnknownWord),
    #[error(transparent)]
    Cpus(#[from] NotCpus),
    #[error("write auto or off")]
    NotNuma,
    #[error("write permissions as chmod(1) takes them in octal, up to 0777")]
    NotAMode,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("write a whole number, or none")]
    NotALimit,
    #[error("it has control characters; use letters, digits, - and _")]
    NotAGroup,
}

/// The options of a disk, which make sense by themselves.
#[derive(Debug)]
pub(crate) struct DiskOptions {
    name: Option<String>,
    path: PathBuf,
    socket: PathBuf,
    size_bytes: Option<u64>,
    serial: Option<Serial>,
    read_only: bool,
    block_bytes: Option<u32>,
    queues: Option<NonZeroU16>,
    seg_max: Option<u16>,
    slow_ms: Option<NonZeroU16>,
    sparse: bool,
    overlay: Option<OverlayOptions>,
    template: Template,
    lock: Option<LockMode>,
    /// `Some(None)` is "off": nothing, whatever is required of the other disks.
    require_durable: Option<Option<Durability>>,
    discard: Option<DiscardPolicy>,
    deep_flush: Option<DeepFlush>,
    cpus: Option<CpuChoice>,
    postcopy: bool,
    access: SocketAccess,
    allowed_users: AllowedUsers,
    limits: Limits,
    throttle_group: Option<String>,
}

/// What holds for disks that do not say it themselves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Defaults {
    pub(crate) require_durable: Option<Durability>,
    pub(crate) deep_flush: DeepFlush,
    pub(crate) cpus: CpuChoice,
    pub(crate) symlinks: Symlinks,
}

impl DiskOptions {
    pub(crate) fn read(mut values: Values) -> Result<Self, OptionError> {
        let read_only = values.take(Key::ReadOnly, switch)?.unwrap_or(false);
        let overlay = values.overlay()?;
        if read_only && overlay.is_some() {
            return Err(OptionError::Contradiction(Key::Overlay, Key::ReadOnly));
        }
        let template = values.template(overlay.as_ref())?;
        let postcopy = values.take(Key::Postcopy, switch)?.unwrap_or(false);
        // It would hand out the memory of all guests of the template.
        if postcopy && template != Template::Off {
            return Err(OptionError::Contradiction(Key::Template, Key::Postcopy));
        }
        Ok(Self {
            path: values.required(Key::Path)?,
            socket: values.required(Key::Socket)?,
            name: values.take(Key::Name, |value| Ok(value.to_owned()))?,
            size_bytes: values.take(Key::Size, |value| Ok(size::parse(value)?))?,
            serial: values.take(Key::Serial, serial)?,
            read_only,
            block_bytes: values.take(Key::BlockSize, block_size)?,
            queues: values.take(Key::Queues, queues)?,
            seg_max: values.take(Key::SegMax, seg_max)?,
            sparse: values.take(Key::Sparse, switch)?.unwrap_or(false),
            overlay,
            template,
            lock: values.take(Key::Lock, |value| Ok(value.parse()?))?,
            require_durable: values.take(Key::RequireDurable, class_or_off)?,
            discard: values.take(Key::Discard, |value| Ok(value.parse()?))?,
            deep_flush: values.take(Key::DeepFlush, |value| Ok(value.parse()?))?,
            cpus: values.cpus()?,
            postcopy,
            access: values.access()?,
            allowed_users: values.take(Key::AllowUid, allowed_users)?.unwrap_or_default(),
            limits: values.limits()?,
            throttle_group: values.take(Key::ThrottleGroup, group)?,
            slow_ms: values.take(Key::SlowMs, slow_ms)?.flatten(),
        })
    }

    fn into_config(self, name: String, defaults: &Defaults) -> DiskConfig {
        let mut config = DiskConfig::new(name, self.path, SocketSource::Path(self.socket));
        config.size_bytes = self.size_bytes;
        config.serial = self.serial.unwrap_or(config.serial);
        config.read_only = self.read_only;
        config.block_bytes = self.block_bytes;
        config.queues = self.queues.unwrap_or(config.queues);
        config.seg_max = self.seg_max.unwrap_or(config.seg_max);
        config.slow_ms = self.slow_ms;
        config.sparse = self.sparse;
        config.overlay = self.overlay;
        config.template = self.template;
        config.lock = self.lock.unwrap_or(config.lock);
        config.require_durable = self.require_durable.unwrap_or(defaults.require_durable);
        config.discard = self.discard.unwrap_or(config.discard);
        config.deep_flush = self.deep_flush.unwrap_or(defaults.deep_flush);
        config.cpus = self.cpus.unwrap_or_else(|| defaults.cpus.clone());
        config.postcopy = self.postcopy;
        config.access = SocketAccess { symlinks: defaults.symlinks, ..self.access };
        config.allowed_users = self.allowed_users;
        config.limits = self.limits;
        config.throttle_group = self.throttle_group;
        config.symlinks = defaults.symlinks;
        config
    }
}

/// Gives every disk without a name one of its own: that of its file, with a number where it is taken.
pub(crate) fn into_configs(options: Vec<DiskOptions>, defaults: Defaults) -> Vec<DiskConfig> {
    let mut taken: HashSet<String> = options.iter().filter_map(|option| option.name.clone()).collect();
    let mut numbers = HashMap::new();
    options
        .into_iter()
        .map(|mut option| {
            let name = option.name.take().unwrap_or_else(|| free_name(&option.path, &taken, &mut numbers));
            taken.insert(name.clone());
            option.into_config(name, &defaults)
        })
        .collect()
}

/// `numbers` are those that were tried last, by the files' names: there may be thousands of the same.
fn free_name(path: &Path, taken: &HashSet<String>, numbers: &mut HashMap<String, u32>) -> String {
    let stem = default_name(path);
    let number = numbers.entry(stem.clone()).or_insert(0);
    loop {
        *number = number.saturating_add(1);
        let name = if *number == 1 { stem.clone() } else { format!("{stem}-{number}") };
        if !taken.contains(&name) {
            return name;
        }
    }
}

/// What a disk is called when nobody says: the file's name without its extension.
pub(crate) fn default_name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name: String = stem.chars().map(|c| if c.is_control() { '_' } else { c }).collect();
    if name.is_empty() { "disk".to_owned() } else { name }
}

/// What is written, key by key.
#[derive(Debug, Default)]
pub(crate) struct Values(Vec<(Key, OsString)>);

impl Values {
    /// # Errors
    /// [`OptionError::Twice`], [`OptionError::NoValue`].
    pub(crate) fn add(&mut self, key: Key, value: OsString) -> Result<(), OptionError> {
        if self.0.iter().any(|(before, _)| *before == key) {
            return Err(OptionError::Twice(key));
        }
        if value.is_empty() {
            return Err(OptionError::NoValue(key));
        }
        self.0.push((key, value));
        Ok(())
    }

    pub(crate) fn into_items(self) -> Vec<(Key, OsString)> {
        self.0
    }

    fn get(&mut self, key: Key) -> Option<OsString> {
        let place = self.0.iter().position(|(present, _)| *present == key)?;
        Some(self.0.swap_remove(place).1)
    }

    fn required(&mut self, key: Key) -> Result<PathBuf, OptionError> {
        self.get(key).map(PathBuf::from).ok_or(OptionError::Missing(key))
    }

    fn take<T>(
        &mut self,
        key: Key,
        read: impl FnOnce(&str) -> Result<T, ValueError>,
    ) -> Result<Option<T>, OptionError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.to_str().ok_or(ValueError::NotText).and_then(read).map(Some).map_err(|cause| {
            let value = value.to_string_lossy().into_owned();
            OptionError::Value { key, value, cause }
        })
    }
}

impl Values {
    /// Two keys for one thing: which CPUs, by number or by what they are near to.
    fn cpus(&mut self) -> Result<Option<CpuChoice>, OptionError> {
        let numa = self.take(Key::Numa, |value| match value {
            "auto" => Ok(CpuChoice::NearBacking),
            "off" => Ok(CpuChoice::Any),
            _ => Err(ValueError::NotNuma),
        })?;
        let cpus = self.take(Key::Cpus, |value| Ok(CpuChoice::Set(value.parse()?)))?;
        if numa == Some(CpuChoice::NearBacking) && cpus.is_some() {
            return Err(OptionError::TwoPlaces);
        }
        Ok(cpus.or(numa))
    }

    /// Where what is written is, if the path is only the base.
    fn overlay(&mut self) -> Result<Option<OverlayOptions>, OptionError> {
        let laid = match self.get(Key::Overlay) {
            None => None,
            Some(value) if value == "off" => None,
            Some(value) if value == "memory" => Some(None),
            Some(value) if Key::Overlay.is_path(&value) => Some(Some(value.into())),
            Some(value) => {
                let (key, value, cause) =
                    (Key::Overlay, value.to_string_lossy().into(), ValueError::NotAnOverlay);
                return Err(OptionError::Value { key, value, cause });
            }
        };
        let max_bytes = self.take(Key::OverlayMax, |value| Ok(size::parse(value)?))?;
        match laid {
            Some(file) => Ok(Some(OverlayOptions { file, max_bytes })),
            None if max_bytes.is_some() => {
                Err(OptionError::Needs { key: Key::OverlayMax, needed: Key::Overlay })
            }
            None => Ok(None),
        }
    }

    /// Whether each front-end has a disk of its own.
    fn template(&mut self, overlay: Option<&OverlayOptions>) -> Result<Template, OptionError> {
        let is_in_memory = overlay.is_some_and(|overlay| overlay.file.is_none());
        let template = self.take(Key::Template, |word| match Template::named(word) {
            None => Err(ValueError::NotATemplate),
            Some(Template::On | Template::SameSerial) if !is_in_memory => Err(ValueError::NotInMemory),
            Some(template) => Ok(template),
        })?;
        Ok(template.unwrap_or_default())
    }

    fn limits(&mut self) -> Result<Limits, OptionError> {
        let mut limits = Limits::default();
        for measure in Measure::ALL {
            let [average, burst, seconds] =
                [Part::Average, Part::Max, Part::MaxLength].map(|part| self.limit(measure, part));
            let (average, burst, seconds) = (average?, burst?, seconds?);
            let needs = |part, needed| {
                let (key, needed) = (Key::of_limit(measure, part), Key::of_limit(measure, needed));
                key.zip(needed).map_or(Ok(()), |(key, needed)| Err(OptionError::Needs { key, needed }))
            };
            if seconds.is_some() && burst.is_none() {
                needs(Part::MaxLength, Part::Max)?;
            }
            if burst.is_some() && average.is_none() {
                needs(Part::Max, Part::Average)?;
            }
            let burst = burst.map(|rate| Burst { rate, seconds: seconds.unwrap_or(NonZeroU64::MIN) });
            limits = limits.with(measure, average.map(|average| Rate { average, burst }));
        }
        limits.check()?;
        Ok(limits)
    }

    fn limit(&mut self, measure: Measure, part: Part) -> Result<Option<NonZeroU64>, OptionError> {
        let Some(key) = Key::of_limit(measure, part) else { return Ok(None) };
        let is_bytes =
            matches!(key.kind(), Kind::Limit(measure, Part::Average | Part::Max) if measure.is_bytes());
        let number = |value: &str| match value {
            "none" => Ok(0),
            value if is_bytes => Ok(size::parse(value)?),
            value => value.parse().map_err(|_| ValueError::NotALimit),
        };
        Ok(self.take(key, number)?.and_then(NonZeroU64::new))
    }

    /// What the socket's inode says of who may connect.
    fn access(&mut self) -> Result<SocketAccess, OptionError> {
        let default = SocketAccess::default();
        Ok(SocketAccess {
            mode: self.take(Key::SocketMode, mode)?.unwrap_or(default.mode),
            owner: self.take(Key::SocketOwner, |value| Ok(identity::user(value)?))?,
            group: self.take(Key::SocketGroup, |value| Ok(identity::group(value)?))?,
            ..default
        })
    }
}

fn switch(text: &str) -> Result<bool, ValueError> {
    match text {
        "on" | "yes" | "true" => Ok(true),
        "off" | "no" | "false" => Ok(false),
        _ => Err(ValueError::NotASwitch),
    }
}

fn class_or_off(text: &str) -> Result<Option<Durability>, ValueError> {
    match text {
        "off" => Ok(None),
        _ => text.parse().map(Some).map_err(|_| ValueError::NotAClass),
    }
}

fn block_size(text: &str) -> Result<u32, ValueError> {
    text.parse().ok().filter(|bytes| BLOCK_SIZES.contains(bytes)).ok_or(ValueError::NotABlockSize)
}

fn queues(text: &str) -> Result<NonZeroU16, ValueError> {
    let number = text.parse().ok().filter(|number: &NonZeroU16| number.get() <= MAX_QUEUES);
    number.ok_or(ValueError::NotAQueueCount)
}

fn seg_max(text: &str) -> Result<u16, ValueError> {
    text.parse().ok().filter(|number| (1..=MAX_SEG_MAX).contains(number)).ok_or(ValueError::NotASegMax)
}

fn slow_ms(text: &str) -> Result<Option<NonZeroU16>, ValueError> {
    let number: Option<u16> = text.parse().ok().filter(|number| *number <= MAX_SLOW_MS);
    number.map(NonZeroU16::new).ok_or(ValueError::NotASlowTime)
}

fn mode(text: &str) -> Result<u32, ValueError> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777).ok_or(ValueError::NotAMode)
}

fn allowed_users(text: &str) -> Result<AllowedUsers, ValueError> {
    let users: Result<_, _> = text.split(',').map(identity::user).collect();
    Ok(AllowedUsers::only(users?))
}

fn group(text: &str) -> Result<String, ValueError> {
    if text.chars().any(char::is_control) {
        return Err(ValueError::NotAGroup);
    }
    Ok(text.to_owned())
}

fn serial(text: &str) -> Result<Serial, ValueError> {
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err(ValueError::SerialNotAscii);
    }
    Ok(Serial::new(text)?)
}

#[cfg(test)]
mod tests;
