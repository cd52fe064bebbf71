//! Tests of the options in JSON.

use super::*;
use crate::config::disk_text;
use crate::config::options::{Defaults, into_configs};
use crate::worker::Cpus;

fn config(object: &Object) -> DiskConfig {
    configs(read(object).unwrap(), Defaults::default())
}

fn configs(options: DiskOptions, defaults: Defaults) -> DiskConfig {
    into_configs(vec![options], defaults).pop().unwrap()
}

fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        other => panic!("{other}"),
    }
}

fn refused(value: Value) -> String {
    let object = object(value);
    check_paths(&object).and_then(|()| read(&object)).unwrap_err().to_string()
}

/// Each option, with values of its kind as JSON and as `--disk` write them.
#[test]
fn every_key_means_the_same_as_on_the_command_line() {
    let values = |key: Key| match key.kind() {
        Kind::Path => vec![(json!("/x, y"), "/x,, y".to_owned())],
        Kind::Text => vec![(json!("a,b"), "a,,b".into())],
        // It does not stand alone.
        _ if matches!(key, Key::OverlayMax | Key::Template) => Vec::new(),
        Kind::Bytes => vec![(json!(4096), "4096".into()), (json!("1M"), "1M".into())],
        Kind::Limit(_, Part::Average) => {
            vec![(json!(7), "7".into()), (json!("70"), "70".into()), (json!("none"), "0".into())]
        }
        // These do not stand alone.
        Kind::Limit(..) => Vec::new(),
        Kind::Switch => {
            vec![(json!(true), "on".into()), (json!(false), "off".into()), (json!("yes"), "on".into())]
        }
        Kind::Number { max, .. } => vec![(json!(max), max.to_string()), (json!("1"), "1".into())],
        Kind::OneOf(numbers) => numbers.iter().map(|it| (json!(it), it.to_string())).collect(),
        Kind::Word(words) => words.iter().map(|it| (json!(it), (*it).to_owned())).collect(),
        Kind::WordOrPath(words) => {
            let words = words.iter().map(|it| (json!(it), (*it).to_owned()));
            words.chain([(json!("/x, y"), "/x,, y".to_owned())]).collect()
        }
        Kind::Mode => vec![(json!("0600"), "0600".into())],
        Kind::Identity => vec![(json!(7), "7".into()), (json!("root"), "root".into())],
        Kind::List => {
            vec![(json!([0, 2]), "0,,2".into()), (json!("0,2"), "0,,2".into()), (json!(3), "3".into())]
        }
    };
    for key in Key::all() {
        for (value, text) in values(key) {
            let mut written = object(json!({"path": "/p", "socket": "/s"}));
            written.insert(key.name().to_owned(), value.clone());
            let line = match key {
                Key::Path => format!("socket=/s,path={text}"),
                Key::Socket => format!("path=/p,socket={text}"),
                _ => format!("path=/p,socket=/s,{}={text}", key.name()),
            };
            let of_line = configs(disk_text::parse(line.as_ref()).unwrap(), Defaults::default());
            assert_eq!(of(&config(&written)), of(&of_line), "{} = {value}", key.name());
        }
    }
}

/// What is shown can be given again, whatever the defaults are there.
#[test]
fn what_is_shown_makes_the_same_disk() {
    let text = "path=/p,socket=/s,name=n,size=1M,serial=a b,readonly=on,block-size=4096,queues=3,seg-max=7,sparse=on,lock=wait,\
                require-durable=page,discard=unmap,deep-flush=always,postcopy=on,socket-mode=0600,socket-owner=1,\
                socket-group=2,allow-uid=3,,4,iops-rd=1,iops-rd-max=2,iops-rd-max-length=3,iops-wr=4,bps=5K,bps-max=6K,throttle-group=g,\
                slow-ms=8";
    let other = || Defaults {
        require_durable: Some(Durability::Byte),
        cpus: CpuChoice::Set("1".parse::<Cpus>().unwrap()),
        ..Defaults::default()
    };
    for more in ["", ",numa=auto", ",numa=off", ",cpus=2-5"] {
        let private = format!("path=/p,socket=/s,overlay=memory,overlay-max=1M,template=same-serial{more}");
        for text in [format!("{text}{more}"), format!("path=/p,socket=/s{more}"), private] {
            let shown = of(&configs(disk_text::parse(text.as_ref()).unwrap(), Defaults::default()));
            let again = of(&configs(read(&shown).unwrap(), other()));
            assert_eq!(differences(&shown, &again), [], "{text}");
        }
    }
    let all = of(&configs(disk_text::parse(format!("{text},cpus=1").as_ref()).unwrap(), Defaults::default()));
    let left_out: Vec<_> = Key::listed().filter(|key| !all.contains_key(key.name())).collect();
    let why = "it is not private, cpus= stands for it, and iops-rd= beside iops-wr=";
    assert_eq!(left_out, [Key::OverlayMax, Key::Numa, Key::Iops], "{why}");
    let shown = |key: &str| all.get(key).and_then(Value::as_u64);
    assert_eq!(
        (shown("iops-rd-max-length"), shown("iops-wr-max-length"), shown("iops-wr-max")),
        (Some(3), None, None)
    );
    assert_eq!(
        (shown("bps"), shown("bps-max"), shown("bps-max-length")),
        (Some(5 << 10), Some(6 << 10), Some(1))
    );
}

#[test]
fn what_is_wrong_is_named() {
    let with = |key: &str, value: Value| {
        let mut written = object(json!({"path": "/p", "socket": "/s"}));
        written.insert(key.to_owned(), value);
        refused(Value::Object(written))
    };
    for (text, start) in [
        (refused(json!({"path": "/p"})), "socket is missing; add \"socket\": \"SOCKET\""),
        (with("siez", json!(1)), "unknown key \"siez\" (did you mean \"size\"?)"),
        (with("path", json!("p")), "path: \"p\" is relative"),
        (with("path", json!("")), "path has no value; write \"path\": \"FILE\""),
        (with("size", json!(1.5)), "size: this number is no value of it; write a number of bytes"),
        (with("size", json!(-1)), "size: this number is no value of it"),
        (with("size", json!(null)), "size: null is no value of it"),
        (with("readonly", json!(1)), "readonly: this number is no value of it; write true or false"),
        (with("name", json!(7)), "name: this number is no value of it; write text"),
        (with("allow-uid", json!([1, [2]])), "allow-uid: this array is no value of it"),
        (
            with("queues", json!({})),
            "queues: an object is no value of it; write a whole number from 1 to 256",
        ),
        (
            with("socket-mode", json!(432)),
            "socket-mode: this number is no value of it; write permissions in octal",
        ),
        (with("lock", json!("maybe")), "lock=maybe: "),
    ] {
        assert!(text.starts_with(start), "{text}");
    }
    for text in ["", "[]", "7", "{", "{\"a\":1,}", "{\"a\":1} x", "\u{feff}{}"] {
        assert!(matches!(parse(text.as_bytes()), Err(JsonError::Syntax(_))), "{text}");
    }
    let twice = parse(br#"{"size":1,"size":2}"#).unwrap_err().to_string();
    assert!(twice.contains("\"size\" is given twice"), "{twice}");
    assert!(parse(b"{\"a\":\xff}").is_err());
}

#[test]
fn a_patch_changes_what_it_names() {
    let before = of(&config(&object(json!({"path": "/p", "socket": "/s", "size": 4096}))));
    let mut after = before.clone();
    merge(&mut after, &object(json!({"size": "8K", "serial": null}))).unwrap();
    let after = of(&config(&after));
    assert_eq!(differences(&before, &after), [Key::Size]);
    assert_eq!(after["size"], 8192);
    assert!(Key::Size.is_changeable() && !Key::Path.is_changeable());
    let mut unchanged = before;
    assert!(merge(&mut unchanged, &object(json!({"sizes": 1}))).is_err());
    assert!(merge(&mut unchanged, &object(json!({"size": true}))).is_err());
}

#[test]
fn the_schema_has_every_key() {
    let schema = schema();
    for key in Key::all() {
        let property = &schema["properties"][key.name()];
        assert!(property["description"].is_string(), "{}", key.name());
        assert_eq!(property["x-changeable"], key.is_changeable());
    }
}
