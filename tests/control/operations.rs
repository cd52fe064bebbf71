//! All that can be asked for, who may, and what is said of it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use super::common::daemon::Place;
use super::common::process::as_user;
use super::http::ask;
use super::{Host, setup};

/// Each request of the document is one that is answered, with a status that the document has.
#[test]
fn the_document_is_what_is_answered() {
    let host = Host::new(Place::Tmpfs);
    let document = host.get("/openapi.json");
    assert_eq!(document["openapi"], "3.1.0");
    let mut asked = 0;
    // Removing comes last; and a disk that is larger than its configuration says is in the way of a reload.
    for method in ["get", "put", "post", "patch", "delete"] {
        for (path, methods) in document["paths"].as_object().unwrap() {
            let Some(request) = methods.get(method) else { continue };
            let body = match (method, path.as_str()) {
                ("put", "/v1/log") => Some(json!({"level": "info"})),
                ("put", _) => Some(host.options("new")),
                ("patch", _) => Some(json!({"size": "16M"})),
                _ => None,
            };
            let disk = if ["put", "delete"].contains(&method) { "new" } else { "stays" };
            let mut target = path.replace("{name}", disk);
            if path == "/v1/events" {
                // It would not end.
                target += "?since=0&once";
            }
            let answer = host.ask(&method.to_ascii_uppercase(), &target, body.as_ref());
            let response = &request["responses"][answer.status.to_string()];
            assert!(response.is_object(), "{method} {path}: {answer:?}");
            let content = response["content"].as_object().map(|it| it.keys().next().unwrap().as_str());
            match content {
                None => {
                    assert!(answer.body.is_empty() && !answer.head.contains("content-type"), "{answer:?}")
                }
                Some(kind) => {
                    assert!(answer.head.contains(&format!("content-type: {kind}")), "{answer:?}");
                    check(&document, &response["content"][kind]["schema"], &answer, kind);
                }
            }
            asked += 1;
        }
    }
    assert_eq!(asked, 16);
}

/// What is required in a schema is there.
fn check(document: &Value, schema: &Value, answer: &super::http::Answer, kind: &str) {
    let answer = match kind {
        "application/json" => answer.json(),
        // An object a line; sizes of chunks stand between them.
        "application/x-ndjson" => {
            let objects = answer.body.lines().filter(|line| line.starts_with('{'));
            objects.for_each(|line| check_value(document, schema, &serde_json::from_str(line).unwrap()));
            return;
        }
        _ => return,
    };
    let (schema, values) = match schema["type"].as_str() {
        Some("array") => (&schema["items"], answer.as_array().unwrap().clone()),
        _ => (schema, vec![answer]),
    };
    values.iter().for_each(|value| check_value(document, schema, value));
}

fn check_value(document: &Value, schema: &Value, value: &Value) {
    let schema = match schema["$ref"].as_str() {
        Some(path) => document.pointer(path.strip_prefix('#').unwrap()).unwrap(),
        None => schema,
    };
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(!value[name.as_str().unwrap()].is_null(), "{name}: {value}");
    }
    if let Some(kinds) = schema["properties"]["event"]["oneOf"].as_array() {
        assert!(kinds.iter().any(|kind| kind["const"] == value["event"]), "{value}");
    }
}

#[test]
fn a_disk_is_shown_with_its_options_and_its_state() {
    let host = Host::new(Place::Tmpfs);
    let version = host.get("/v1");
    assert_eq!((&version["api"], &version["version"]), (&1.into(), &env!("CARGO_PKG_VERSION").into()));
    let disk = host.get("/v1/disks/stays");
    let options = &disk["options"];
    assert_eq!(
        (&options["queues"], &options["lock"], &options["socket-mode"]),
        (&64.into(), &"on".into(), &"0660".into())
    );
    assert_eq!(options["path"], json!(host.daemon.image(0)));
    assert_eq!(disk["state"]["durability"], "volatile");
    let metrics = host.ask("GET", "/metrics", None);
    assert!(metrics.body.contains("vhost_user_pmem_capacity_bytes{disk=\"stays\"} 8388608"), "{metrics:?}");
    // A name may have any characters.
    let mut options = host.options("odd");
    options["name"] = "a/b ü".into();
    let added = host.ask("PUT", "/v1/disks/a%2Fb%20%C3%BC", Some(&options));
    assert!(added.status == 201 && added.head.contains("location: /v1/disks/a%2fb%20%c3%bc"), "{added:?}");
    assert_eq!(host.get("/v1/disks/a%2Fb%20%C3%BC")["name"], "a/b ü");
    assert_eq!(host.remove("a%2fb%20%c3%bc", "").status, 204);
}

/// The socket's group may read; only root and the user of the daemon may change something.
#[test]
fn others_may_only_read() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can be somebody else");
        return;
    }
    let host = Host::new(Place::Tmpfs);
    std::fs::set_permissions(&host.sockets, Permissions::from_mode(0o755)).unwrap();
    let control = host.control();
    let as_nobody = |method, path| as_user(65534, 0, || ask(&control, method, path, None));
    assert_eq!(as_nobody("GET", "/v1/disks/stays").json()["name"], "stays");
    assert_eq!(as_nobody("GET", "/metrics").status, 200);
    for (method, path) in [
        ("DELETE", "/v1/disks/stays"),
        ("POST", "/v1/disks/stays/flush"),
        ("POST", "/v1/disks/stays/resize"),
        ("POST", "/v1/reload"),
        ("PUT", "/v1/disks/new"),
        ("PATCH", "/v1/disks/stays"),
    ] {
        let answer = as_nobody(method, path);
        let (code, text) = answer.problem();
        assert!(code == "not-allowed" && answer.status == 403, "{answer:?}");
        assert!(text.starts_with("user 65534 may only read here"), "{text}");
    }
    assert_eq!(host.names(), ["stays"]);
}

/// What is not in a folder of `--allow` stays out of reach, and is said to be.
#[test]
fn only_what_is_allowed_can_be_opened() {
    let host = Host::new(Place::Tmpfs);
    let elsewhere = Place::FileSystem.folder();
    let mut options = host.options("new");
    options["path"] = json!(elsewhere.path().join("new"));
    let (code, text) = host.ask("PUT", "/v1/disks/new", Some(&options)).problem();
    assert!(code == "permission" && text.contains("is in no folder of --allow"), "{text}");
    let mut options = host.options("new");
    options["socket"] = json!(elsewhere.path().join("new"));
    let (code, text) = host.ask("PUT", "/v1/disks/new", Some(&options)).problem();
    assert!(code == "permission" && text.contains("is in no folder of --allow"), "{text}");
    assert!(!host.image("new").exists(), "what was made for it is gone");
    host.daemon.stop();
    let open = Host::start(setup(Place::Tmpfs).arg("--sandbox=off"));
    options["path"] = json!(open.image("new"));
    assert_eq!(open.ask("PUT", "/v1/disks/new", Some(&options)).status, 201);
}
