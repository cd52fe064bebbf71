//! The table of requests for programs: an OpenAPI document.

use serde_json::{Map, Value, json};

use super::answer::{LINES, PROBLEM};
use super::routes::{Body, Operation, ROUTES, Route};
use crate::config::json;
use crate::log::kinds;

/// The document.
pub(super) fn document() -> Value {
    let mut paths = Map::new();
    for route in &ROUTES {
        let of_path = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Value::Object(of_path) = of_path {
            of_path.insert(route.method.to_ascii_lowercase(), request(route));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "vhost-user-pmem",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Disks are shown, added, changed and removed while they are served. Root and the user of the daemon may \
                            change something; whoever else may connect to the socket may read.",
        },
        "servers": [{"url": "http://localhost", "description": "on the Unix socket of --control"}],
        "paths": paths,
        "components": {"schemas": {
            "Options": json::schema(),
            "Disk": {
                "type": "object",
                "required": ["name", "options", "state"],
                "properties": {
                    "name": {"type": "string"},
                    "options": {"$ref": "#/components/schemas/Options"},
                    "state": {"type": "object", "description": "What is so at this moment; sizes in bytes"},
                },
            },
            "Ring": {
                "type": "object",
                "description": "Indices of a split ring count requests and wrap at 65536; of a packed ring they are places in it",
                "required": ["disk", "front_end", "ring", "format", "size", "state", "taken", "used", "shown", "under_way", "seconds"],
                "properties": {
                    "format": {"enum": ["split", "packed"]},
                    "state": {
                        "enum": ["armed", "polled", "held", "throttled", "broken", "leaving"],
                        "description": "It waits for its driver's kick; it is polled; it waits for a flush; a limit holds it; its driver broke it; it stops",
                    },
                    "seconds": {"type": "number", "description": "Since it was started"},
                },
            },
            "Event": event(),
            "Problem": {
                "type": "object",
                "description": "A problem document (RFC 9457)",
                "required": ["type", "title", "status", "code", "detail"],
                "properties": {
                    "type": {"const": "about:blank"},
                    "title": {"type": "string", "description": "The name of the status"},
                    "status": {"type": "integer"},
                    "code": {"type": "string", "description": "Which problem it is, in a word that does not change"},
                    "detail": {"type": "string", "description": "What is wrong, with what, and what to do"},
                },
            },
        }},
    })
}

/// An event, in a line of a stream.
fn event() -> Value {
    let lost = (
        "lost",
        "So many (`count`) are lost to this follower, which was too slow, or asked for what is not kept",
    );
    let all = kinds::ALL.iter().copied().chain([lost]);
    let words: Vec<_> = all.map(|(name, meaning)| json!({"const": name, "description": meaning})).collect();
    json!({
        "type": "object",
        "description": "A line of the log that programs follow, with the fields that it has there",
        "required": ["seq", "event"],
        "properties": {
            "seq": {"type": "integer", "description": "Its number; they begin with 1 when the process does"},
            "event": {"oneOf": words},
            "time": {"type": "string", "format": "date-time"},
            "message": {"type": "string", "description": "What the log says, for people"},
            "disk": {"type": "string", "description": "The disk that it is about, if it is about one"},
            "suppressed": {
                "type": "integer",
                "description": "So many of this kind, of this disk, were left out before it: what a peer can cause has a limit",
            },
        },
    })
}

fn request(route: &Route) -> Value {
    let mut parameters: Vec<Value> = Vec::new();
    if route.path.contains("{name}") {
        parameters
            .push(json!({"name": "name", "in": "path", "required": true, "schema": {"type": "string"}}));
    }
    parameters.extend(route.query.iter().map(
        |(name, meaning)| json!({"name": name, "in": "query", "description": meaning, "schema": {"type": "string"}}),
    ));
    let mut responses = Map::new();
    for (status, meaning) in route.answers {
        let mut response = json!({"description": meaning});
        if let (Value::Object(response), Some(content)) = (&mut response, content(route.operation)) {
            response.insert("content".to_owned(), content);
        }
        responses.insert(status.to_string(), response);
    }
    let schema = json!({"schema": {"$ref": "#/components/schemas/Problem"}});
    responses.insert(
        "default".to_owned(),
        json!({"description": "It was not done, and nothing has changed", "content": {PROBLEM: schema}}),
    );
    let mut request = json!({
        "operationId": format!("{:?}", route.operation),
        "summary": route.summary,
        "parameters": parameters,
        "responses": responses,
    });
    if let (Value::Object(request), Some(body)) = (&mut request, body(route.body)) {
        request.insert("requestBody".to_owned(), body);
    }
    request
}

fn content(operation: Operation) -> Option<Value> {
    let disk = json!({"$ref": "#/components/schemas/Disk"});
    let schema = match operation {
        Operation::ListDisks => json!({"type": "array", "items": disk}),
        Operation::ShowRings | Operation::ListRings => {
            json!({"type": "array", "items": {"$ref": "#/components/schemas/Ring"}})
        }
        Operation::ShowDisk | Operation::PutDisk | Operation::PatchDisk => disk,
        Operation::RemoveDisk | Operation::Flush | Operation::Log => return None,
        Operation::Events => {
            let event = json!({"schema": {"$ref": "#/components/schemas/Event"}});
            return Some(json!({LINES: event}));
        }
        Operation::Metrics => return Some(json!({"text/plain": {"schema": {"type": "string"}}})),
        Operation::Version
        | Operation::Resize
        | Operation::Disconnect
        | Operation::Reload
        | Operation::OpenApi => json!({"type": "object"}),
    };
    Some(json!({"application/json": {"schema": schema}}))
}

fn body(body: Body) -> Option<Value> {
    let (kind, required, schema) = match body {
        Body::Nothing => return None,
        Body::Options => ("application/json", true, json!({"$ref": "#/components/schemas/Options"})),
        Body::Patch => ("application/merge-patch+json", true, json!({"type": "object"})),
        Body::Level => {
            let level = json!({"type": "string", "description": "As --log takes it"});
            let properties = json!({"level": level});
            let schema = json!({"type": "object", "required": ["level"], "properties": properties});
            ("application/json", true, schema)
        }
        Body::Size => {
            let size = json!({"type": ["integer", "string"]});
            ("application/json", false, json!({"type": "object", "properties": {"size": size}}))
        }
    };
    Some(json!({"required": required, "content": {kind: {"schema": schema}}}))
}
