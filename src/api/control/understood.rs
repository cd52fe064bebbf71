//! What a request is understood as, without anybody who does it.

use serde_json::{Value, json};

use super::change::{Change, change};
use super::operator::{config_of, level_of, put_object, size_of};
use super::problem::Problem;
use super::routes::{self, Body};
use crate::config::json::{self, Object};
use crate::config::options::Defaults;

/// What the control socket makes of a request, as JSON: its path, its disk, and what its body says. `before` are the options of
/// the disk that a PATCH changes. No file is touched: this is for tests of what peers may say.
///
/// # Errors
/// The status, and the problem document.
#[doc(hidden)]
pub fn understood(method: &str, target: &str, before: &Object, body: &[u8]) -> Result<Value, (u16, String)> {
    read(method, target, before, body).map_err(|problem| (problem.status, problem.json()))
}

fn read(method: &str, target: &str, before: &Object, body: &[u8]) -> Result<Value, Problem> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let call = routes::find(method, path, query)?;
    let options = |object: &Object| config_of(object, Defaults::default()).map(|config| json::of(&config));
    let said = match call.route.body {
        Body::Nothing => Value::Null,
        Body::Options => options(&put_object(&call.disk, body)?)?.into(),
        Body::Patch => {
            let patch = json::parse(body)?;
            json::check_paths(&patch)?;
            let mut after = before.clone();
            json::merge(&mut after, &patch)?;
            let config = config_of(&after, Defaults::default())?;
            let Change { to_bytes, throttling, slow_ms } = change(&call.disk, before, &config)?;
            json!({"size": to_bytes, "limits": throttling.map(|it| it.limits.to_string()), "slow_ms": slow_ms})
        }
        Body::Level => level_of(body)?.into(),
        Body::Size => size_of(body)?.into(),
    };
    Ok(json!({"path": call.route.path, "disk": call.disk, "body": said}))
}
