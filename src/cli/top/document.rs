//! What is to be seen, for programs: one JSON document in a line.

use std::time::SystemTime;

use serde_json::{Value, json};

use super::cells::standing;
use super::rates::{DiskRow, Done, Picture, RingRow, Standing};
use super::view::View;
use crate::cli::printable::printable_json;

/// The document of a picture; null is what is not known.
pub(super) fn line(picture: &Picture, view: &View) -> String {
    let rings: Vec<_> = match view.rings_of {
        Some(_) => view.rings(picture),
        None => picture.rings.iter().filter(|ring| ring.disk.contains(&view.filter)).collect(),
    };
    let cpu = picture.cpu.as_ref();
    let document = json!({
        "time": now(),
        "seconds": picture.seconds,
        "cpu_percent": cpu.map(|cpu| cpu.all_threads),
        "worker_cpu_percent": cpu.map(|cpu| &cpu.workers),
        "disks": view.disks(picture).into_iter().map(disk).collect::<Vec<_>>(),
        "rings": rings.into_iter().map(ring).collect::<Vec<_>>(),
    });
    printable_json(&document) + "\n"
}

/// There is none.
pub(super) fn away(why: &str) -> String {
    printable_json(&json!({"time": now(), "error": why})) + "\n"
}

/// In seconds since 1970.
fn now() -> Option<f64> {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map(|time| time.as_secs_f64()).ok()
}

fn disk(disk: &DiskRow) -> Value {
    let own = json!({
        "name": disk.name,
        "p50_seconds": disk.p50,
        "p99_seconds": disk.p99,
        "depth": disk.depth,
        "write_amplification": disk.amplification,
        "state": word(disk.standing),
        "hung_seconds": hung_seconds(disk.standing),
        "limits": disk.limits,
        "throttled_seconds_per_second": disk.throttled,
        "front_ends": disk.front_ends,
        "capacity_bytes": disk.capacity_bytes,
    });
    joined(own, &disk.done)
}

fn ring(ring: &RingRow) -> Value {
    let own = json!({
        "disk": ring.disk,
        "front_end": ring.front_end,
        "ring": ring.ring,
        "format": ring.format,
        "size": ring.size,
        "depth": ring.depth,
        "state": word(ring.standing),
        "seconds": ring.seconds,
    });
    joined(own, &ring.done)
}

fn joined(mut own: Value, done: &Done) -> Value {
    let rates = json!({
        "reads_per_second": done.reads,
        "writes_per_second": done.writes,
        "read_bytes_per_second": done.read_bytes,
        "written_bytes_per_second": done.written_bytes,
        "flushes_per_second": done.flushes,
        "failures_per_second": done.failures,
    });
    if let (Value::Object(own), Value::Object(rates)) = (&mut own, rates) {
        own.extend(rates);
    }
    own
}

fn word(it: Standing) -> String {
    match it {
        Standing::Hung(_) => "hung".to_owned(),
        it => standing(it),
    }
}

const fn hung_seconds(standing: Standing) -> Option<f64> {
    match standing {
        Standing::Hung(seconds) => Some(seconds),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::top::view::Sort;

    #[test]
    fn what_is_not_known_is_null() {
        let disk = DiskRow { name: "a".to_owned(), standing: Standing::Hung(3.5), ..DiskRow::default() };
        let ring = RingRow { disk: "a".to_owned(), depth: 4, ..RingRow::default() };
        let picture =
            Picture { seconds: Some(1.5), disks: vec![disk], rings: vec![ring], ..Picture::default() };
        let view = |filter: &str| View::new(Sort::Iops, filter.to_owned(), None);
        let document: Value = serde_json::from_str(&line(&picture, &view(""))).unwrap();
        let shown = &document["disks"][0];
        assert_eq!((&shown["state"], &shown["hung_seconds"]), (&"hung".into(), &3.5.into()));
        assert_eq!((&shown["reads_per_second"], &document["cpu_percent"]), (&Value::Null, &Value::Null));
        assert_eq!((&document["rings"][0]["depth"], &document["seconds"]), (&4.into(), &1.5.into()));
        let document: Value = serde_json::from_str(&line(&picture, &view("b"))).unwrap();
        assert_eq!((&document["disks"], &document["rings"]), (&json!([]), &json!([])));
    }
}
