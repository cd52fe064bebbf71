//! The options of a disk as JSON: what the control socket takes, and what it shows.
//!
//! A key is that of `--disk`. Of what is taken, text is what `--disk` would take; switches may be `true` and `false`, numbers
//! numbers, and lists arrays. What is shown has one form for each value, so that two disks can be compared by it.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use super::keys::{Key, Kind, Part};
use super::options::{DiskOptions, OptionError, Values};
use super::{CpuChoice, DiskConfig};
use crate::disk::Durability;
use crate::throttle::Limits;

/// Options by their keys.
pub(crate) type Object = Map<String, Value>;

/// What is wrong with options that are written in JSON.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JsonError {
    #[error("this is not a JSON object: {0}")]
    Syntax(#[from] serde_json::Error),
    #[error("{}: {found} is no value of it; write {}", key.name(), key.wanted())]
    Type { key: Key, found: &'static str },
    #[error("{}: {path:?} is relative, and the server is somewhere else; write a path that begins with /", key.name())]
    Relative { key: Key, path: String },
    #[error("{}", in_json(.0))]
    Option(#[from] OptionError),
}

/// What is to be added reads as it is to be written.
fn in_json(error: &OptionError) -> String {
    let example = |key: Key| format!("{:?}: {:?}", key.name(), key.form());
    match error {
        OptionError::Missing(key) => format!("{} is missing; add {}", key.name(), example(*key)),
        OptionError::NoValue(key) => format!("{} has no value; write {}", key.name(), example(*key)),
        other => other.to_string(),
    }
}

/// Reads an object in which no key stands twice.
///
/// # Errors
/// [`JsonError::Syntax`].
pub(crate) fn parse(text: &[u8]) -> Result<Object, JsonError> {
    Ok(serde_json::from_slice::<Unique>(text)?.0)
}

/// An object in which no key stands twice: RFC 8259 leaves open which of them counts.
struct Unique(Object);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Keys)
    }
}

struct Keys;

impl<'de> Visitor<'de> for Keys {
    type Value = Unique;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
        let mut object = Object::new();
        while let Some((key, value)) = map.next_entry::<String, Value>()? {
            if object.contains_key(&key) {
                return Err(serde::de::Error::custom(format_args!("{key:?} is given twice")));
            }
            object.insert(key, value);
        }
        Ok(Unique(object))
    }
}

/// Reads the options of a disk.
///
/// # Errors
/// [`JsonError`]; the first in the order of the object.
pub(crate) fn read(object: &Object) -> Result<DiskOptions, JsonError> {
    let mut values = Values::default();
    for (name, value) in object {
        let key = known(name)?;
        let text = text_of(key, value).ok_or_else(|| JsonError::Type { key, found: kind_of(value) })?;
        values.add(key, text.into())?;
    }
    Ok(DiskOptions::read(values)?)
}

fn known(name: &str) -> Result<Key, OptionError> {
    Key::named(name).ok_or_else(|| OptionError::UnknownKey { key: name.to_owned() })
}

/// Whoever asks may be in another folder than the server.
///
/// # Errors
/// [`JsonError::Relative`].
pub(crate) fn check_paths(object: &Object) -> Result<(), JsonError> {
    for key in Key::all() {
        if let Some(Value::String(path)) = object.get(key.name())
            && key.is_path(path.as_ref())
            && !Path::new(path).is_absolute()
        {
            return Err(JsonError::Relative { key, path: path.clone() });
        }
    }
    Ok(())
}

/// A JSON merge patch (RFC 7396): what is null is taken out.
///
/// # Errors
/// A key that there is not, or a value of another kind.
pub(crate) fn merge(object: &mut Object, patch: &Object) -> Result<(), JsonError> {
    for (name, value) in patch {
        let key = known(name)?;
        match value {
            Value::Null => object.remove(name),
            value if text_of(key, value).is_none() => {
                return Err(JsonError::Type { key, found: kind_of(value) });
            }
            value => object.insert(name.clone(), value.clone()),
        };
        // Without an average there is no burst.
        if let Kind::Limit(measure, Part::Average) = key.kind()
            && (*value == 0 || *value == "0" || *value == "none" || value.is_null())
        {
            let bursts = [Part::Max, Part::MaxLength].into_iter();
            let bursts = bursts.filter_map(|part| Key::of_limit(measure, part)).map(Key::name);
            bursts.filter(|name| !patch.contains_key(*name)).for_each(|name| _ = object.remove(name));
        }
    }
    Ok(())
}

/// A value as `--disk` would have it; none if it is of another kind.
fn text_of(key: Key, value: &Value) -> Option<String> {
    match (key.kind(), value) {
        (Kind::Switch, Value::Bool(is_on)) => Some(if *is_on { "on" } else { "off" }.to_owned()),
        (Kind::List, Value::Array(items)) => {
            Some(items.iter().map(plain).collect::<Option<Vec<_>>>()?.join(","))
        }
        (
            Kind::Bytes
            | Kind::Limit(..)
            | Kind::Number { .. }
            | Kind::OneOf(_)
            | Kind::Identity
            | Kind::List,
            Value::Number(_),
        ) => plain(value),
        (_, Value::String(text)) => Some(text.clone()),
        _ => None,
    }
}

/// Text, or the digits of a whole number that is not negative.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => number.as_u64().map(|number| number.to_string()),
        _ => None,
    }
}

const fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "this number",
        Value::String(_) => "text",
        Value::Array(_) => "this array",
        Value::Object(_) => "an object",
    }
}

/// The options of a disk as it is served, what is by default included; what has no value is left out.
pub(crate) fn of(config: &DiskConfig) -> Object {
    let entry = |key: Key| Some((key.name().to_owned(), value_of(config, key)?));
    Key::all().filter_map(entry).collect()
}

fn value_of(config: &DiskConfig, key: Key) -> Option<Value> {
    let path = |path: &Path| Value::from(path.to_string_lossy());
    Some(match key {
        Key::Path => path(&config.path),
        Key::Socket => path(config.socket.path()?),
        Key::Name => config.name.as_str().into(),
        Key::Size => config.size_bytes?.into(),
        Key::Serial => {
            String::from_utf8_lossy(config.serial.as_bytes()).trim_end_matches('\0').to_owned().into()
        }
        Key::ReadOnly => config.read_only.into(),
        Key::BlockSize => config.block_bytes?.into(),
        Key::Queues => config.queues.get().into(),
        Key::SegMax => config.seg_max.into(),
        Key::Sparse => config.sparse.into(),
        Key::Overlay => match &config.overlay {
            None => "off".into(),
            Some(overlay) => overlay.file.as_ref().map_or("memory".into(), |file| path(file)),
        },
        Key::OverlayMax => config.overlay.as_ref()?.max_bytes?.into(),
        Key::Template => config.template.word().into(),
        Key::Lock => config.lock.to_string().into(),
        Key::RequireDurable => config.require_durable.map_or("off", Durability::word).into(),
        Key::Discard => config.discard.to_string().into(),
        Key::DeepFlush => config.deep_flush.to_string().into(),
        Key::Cpus => match &config.cpus {
            CpuChoice::Set(cpus) => cpus.to_string().into(),
            CpuChoice::Any | CpuChoice::NearBacking => return None,
        },
        Key::Numa => match &config.cpus {
            CpuChoice::Set(_) => return None,
            CpuChoice::Any => "off".into(),
            CpuChoice::NearBacking => "auto".into(),
        },
        Key::Postcopy => config.postcopy.into(),
        Key::SocketMode => format!("{:04o}", config.access.mode).into(),
        Key::SocketOwner => config.access.owner?.into(),
        Key::SocketGroup => config.access.group?.into(),
        Key::AllowUid => config.allowed_users.uids()?.into(),
        Key::ThrottleGroup => config.throttle_group.as_deref()?.into(),
        Key::SlowMs => config.slow_ms?.get().into(),
        _ => return limit_of(&config.limits, key),
    })
}

fn limit_of(limits: &Limits, key: Key) -> Option<Value> {
    let Kind::Limit(measure, part) = key.kind() else { return None };
    let rate = limits.rate(measure)?;
    let number = match part {
        Part::Average => rate.average,
        Part::Max => rate.burst?.rate,
        Part::MaxLength => rate.burst?.seconds,
    };
    Some(number.get().into())
}

/// The keys in which two disks differ.
pub(crate) fn differences(one: &Object, other: &Object) -> Vec<Key> {
    Key::all().filter(|key| one.get(key.name()) != other.get(key.name())).collect()
}

/// A JSON schema of the options of a disk.
pub(crate) fn schema() -> Value {
    let properties: Object = Key::all().map(|key| (key.name().to_owned(), schema_of(key))).collect();
    json!({
        "type": "object",
        "description": "The options of a disk: the keys of `serve --disk`.",
        "properties": properties,
        "required": [Key::Path.name(), Key::Socket.name()],
        "additionalProperties": false,
    })
}

fn schema_of(key: Key) -> Value {
    let mut schema = match key.kind() {
        Kind::Path | Kind::Text | Kind::WordOrPath(_) => json!({"type": "string"}),
        Kind::Bytes => json!({"type": ["integer", "string"], "minimum": 0}),
        Kind::Limit(..) => json!({"type": ["integer", "string"], "minimum": 0}),
        Kind::Switch => json!({"type": ["boolean", "string"]}),
        Kind::Number { min, max } => json!({"type": ["integer", "string"], "minimum": min, "maximum": max}),
        Kind::OneOf(numbers) => json!({"enum": numbers}),
        Kind::Word(words) => json!({"enum": words}),
        Kind::Mode => json!({"type": "string", "pattern": "^[0-7]{1,4}$"}),
        Kind::Identity => json!({"type": ["integer", "string"]}),
        Kind::List => {
            json!({"type": ["array", "string", "integer"], "items": {"type": ["integer", "string"]}})
        }
    };
    if let Value::Object(schema) = &mut schema {
        schema.insert("description".to_owned(), key.sentence().into());
        // What PATCH takes of a disk that is served.
        schema.insert("x-changeable".to_owned(), key.is_changeable().into());
    }
    schema
}

#[cfg(test)]
mod tests;
