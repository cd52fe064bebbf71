//! Tests of the options of disks, written as `--disk` takes them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use super::*;
use crate::config::disk_text::{self, DiskTextError};
use crate::config::keys::Kind;

fn parse(text: &str) -> Result<DiskOptions, DiskTextError> {
    disk_text::parse(OsStr::new(text))
}

fn error(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn every_key_reaches_the_configuration() {
    let option = parse(
        "path=/a.img,socket=/a.sock,name=db,size=1M,serial=S1,readonly=yes,block-size=4096,queues=3,\
         sparse=true,lock=wait,require-durable=byte,discard=ignore,deep-flush=always,\
         postcopy=on,socket-mode=0600,socket-owner=7,socket-group=8,allow-uid=9,,root,throttle-group=g,iops=9,\
         slow-ms=100",
    );
    let disk = into_configs(vec![option.unwrap()], Defaults::default()).remove(0);
    assert_eq!((disk.name.as_str(), disk.path), ("db", "/a.img".into()));
    assert_eq!(disk.socket.path(), Some(Path::new("/a.sock")));
    assert_eq!((disk.size_bytes, disk.block_bytes, disk.queues.get()), (Some(1 << 20), Some(4096), 3));
    assert_eq!(disk.serial, Serial::new("S1").unwrap());
    assert!(disk.read_only && disk.sparse && disk.postcopy);
    assert!(matches!(disk.lock, LockMode::Wait));
    assert_eq!(disk.require_durable, Some(Durability::Byte));
    assert_eq!((disk.discard, disk.deep_flush), (DiscardPolicy::Ignore, DeepFlush::Always));
    let access = SocketAccess { mode: 0o600, owner: Some(7), group: Some(8), symlinks: Symlinks::Follow };
    assert_eq!((disk.throttle_group.as_deref(), disk.limits.to_string().as_str()), (Some("g"), "iops=9"));
    assert_eq!(disk.slow_ms.map(NonZeroU16::get), Some(100));
    assert_eq!((disk.access, disk.allowed_users), (access, AllowedUsers::only(vec![9, 0])));
}

#[test]
fn what_is_not_said_has_its_default() {
    let disk = into_configs(vec![parse("socket=/a.sock,path=/pm/db0.img").unwrap()], Defaults::default());
    let disk = &disk[0];
    assert_eq!((disk.name.as_str(), disk.size_bytes), ("db0", None));
    assert_eq!((disk.block_bytes, disk.queues.get()), (None, 64));
    assert_eq!(disk.serial, Serial::new("db0").unwrap());
    assert!(!disk.read_only && !disk.sparse && !disk.postcopy);
    assert_eq!((disk.access.mode, &disk.allowed_users), (0o660, &AllowedUsers::default()));
    assert!(matches!(disk.lock, LockMode::On));
    assert_eq!((disk.require_durable, disk.discard), (None, DiscardPolicy::Auto));
}

/// Of keys whose default is a value that they take.
#[test]
fn the_defaults_that_help_shows_are_those_that_hold() {
    let config = |text: &str| {
        let mut disk = into_configs(vec![parse(text).unwrap()], Defaults::default()).remove(0);
        disk.socket = SocketSource::Path("/b".into());
        format!("{disk:?}")
    };
    let mut values = 0;
    for key in Key::all() {
        let Some(value) = key.default().strip_prefix('`').map(|value| value.trim_end_matches('`').to_owned())
        else {
            continue;
        };
        values += 1;
        let text = format!("path=/a,socket=/b,{}={value}", key.name());
        assert_eq!(config(&text), config("path=/a,socket=/b"), "{text}");
    }
    assert_eq!(
        values, 11,
        "readonly, queues, seg-max, sparse, overlay, template, lock, discard, postcopy, socket-mode, slow-ms"
    );
}

#[test]
fn a_disk_goes_before_what_holds_for_all() {
    let defaults = Defaults {
        require_durable: Some(Durability::CacheLine),
        deep_flush: DeepFlush::Never,
        ..Defaults::default()
    };
    for (text, class, deep_flush) in [
        ("", Some(Durability::CacheLine), DeepFlush::Never),
        (",require-durable", Some(Durability::Page), DeepFlush::Never),
        (",require-durable=byte,deep-flush=auto", Some(Durability::Byte), DeepFlush::Auto),
        (",require-durable=off", None, DeepFlush::Never),
    ] {
        let option = parse(&format!("path=a,socket=s{text}")).unwrap();
        let disk = into_configs(vec![option], defaults.clone()).remove(0);
        assert_eq!((disk.require_durable, disk.deep_flush), (class, deep_flush), "{text}");
    }
}

#[test]
fn a_pair_of_commas_is_a_comma() {
    for (text, path, socket) in [
        ("path=a,,b,socket=s", "a,b", "s"),
        ("path=a,,,socket=s", "a,", "s"),
        ("path=,,,,a,socket=s,,", ",,a", "s,"),
        ("path=a=b,socket=s", "a=b", "s"),
    ] {
        let option = parse(text).unwrap();
        assert_eq!((option.path, option.socket), (path.into(), socket.into()), "{text}");
    }
}

#[test]
fn a_path_needs_no_utf8() {
    let text = OsStr::from_bytes(b"path=/\xff,socket=/s,name=db");
    assert_eq!(disk_text::parse(text).unwrap().path.as_os_str().as_bytes(), b"/\xff");
    let text = OsStr::from_bytes(b"path=/a,socket=/s,name=\xff");
    assert!(disk_text::parse(text).unwrap_err().to_string().ends_with("it is not UTF-8 text"));
}

#[test]
fn switches_are_on_by_their_bare_name() {
    for (text, on) in [("", false), (",readonly", true), (",readonly=on", true), (",readonly=no", false)] {
        assert_eq!(parse(&format!("path=a,socket=s{text}")).unwrap().read_only, on, "{text}");
    }
}

#[test]
fn errors_say_what_and_what_to_do() {
    for (rest, message) in [
        (",readonly=maybe", "readonly=maybe: write on or off"),
        (",block-size=1000", "block-size=1000: write 512 or 4096"),
        (",queues=0", "queues=0: write a whole number from 1 to 256"),
        (",queues=257", "queues=257: write a whole number from 1 to 256"),
        (",seg-max=0", "seg-max=0: write a whole number from 1 to 1022"),
        (",seg-max=1023", "seg-max=1023: write a whole number from 1 to 1022"),
        (",serial=123456789012345678901", "at most 20 bytes, this one has 21; shorten it"),
        (",serial=grün", "printable ASCII characters only"),
        (",lock=yes", "lock=yes: `yes` is not a lock mode; use on, wait or off"),
        (",require-durable=yes", "require-durable=yes: write page, cacheline, byte or off"),
        (",discard=no", "discard=no: `no` is not one of its values; use auto, ignore, unmap"),
        (",cpus=all", "cpus=all: write CPU numbers below 1024 and ranges of them"),
        (",numa=1", "numa=1: write auto or off"),
        (",cpus=1,numa=auto", "cpus and numa=auto both say where its workers run; leave one of them out"),
        (",size=1X", "is not a size; write bytes, or a whole number with K, M, G, T or P"),
        (",size", "size has no value; write size=SIZE"),
        (",name=", "name has no value; write name=NAME"),
        (",socket-mode=rw", "socket-mode=rw: write permissions as chmod(1) takes them in octal, up to 0777"),
        (",socket-mode=1777", "up to 0777"),
        (
            ",socket-owner=no-such-one",
            "this machine has no such user; write a name that it knows, or a number",
        ),
        (",socket-group=no-such-one", "this machine has no such group"),
        (",allow-uid=0,,no-such-one", "this machine has no such user"),
        (",path=b", "path is given twice; leave one of them out"),
        (",", "an item is empty"),
    ] {
        let text = error(&format!("path=a,socket=s{rest}"));
        assert!(text.starts_with(&format!("--disk path=a,socket=s{rest}: ")), "{text}");
        assert!(text.contains(message), "{text}");
    }
    assert!(error("path=a").ends_with("socket is missing; add socket=SOCKET"));
    assert!(error("socket=a").ends_with("path is missing; add path=FILE"));
}

#[test]
fn a_disk_says_where_its_workers_run_or_all_of_them_do() {
    let set = |text: &str| CpuChoice::Set(text.parse().unwrap());
    let defaults = Defaults { cpus: set("7"), ..Defaults::default() };
    for (text, choice) in [
        ("", set("7")),
        (",cpus=2-5,,8", set("2-5,8")),
        (",numa=auto", CpuChoice::NearBacking),
        (",numa=off", CpuChoice::Any),
        (",numa=off,cpus=3", set("3")),
    ] {
        let option = parse(&format!("path=a,socket=s{text}")).unwrap();
        assert_eq!(into_configs(vec![option], defaults.clone()).remove(0).cpus, choice, "{text}");
    }
}

#[test]
fn an_unknown_key_gets_the_nearest_one() {
    for (key, nearest) in [
        ("sokcet", "socket"),
        ("read-only", "readonly"),
        ("blocksize", "block-size"),
        ("num-queues", "queues"),
        ("Path", "path"),
        ("locks", "lock"),
    ] {
        let text = error(&format!("{key}=x"));
        let expected = format!("unknown key {key:?} (did you mean {nearest:?}?); the keys are path, socket,");
        assert!(text.contains(&expected), "{text}");
    }
    assert!(error("colour=red").contains("unknown key \"colour\"; the keys are path, socket, name,"));
}

#[test]
fn names_are_made_unique() {
    let options = ["path=/x/db.img", "path=/y/db.img", "path=/z,name=db-2", "path=/v/db.raw"]
        .map(|text| parse(&format!("{text},socket=s")).unwrap());
    let names: Vec<_> =
        into_configs(options.into(), Defaults::default()).into_iter().map(|disk| disk.name).collect();
    assert_eq!(names, ["db", "db-3", "db-2", "db-4"]);
    assert_eq!(default_name(Path::new("/")), "disk");
}

/// What the table says of a value is what is read.
#[test]
fn values_are_of_the_kind_that_the_table_says() {
    let read = |key: Key, value: &str| {
        let mut values = Values::default();
        for needed in [Key::Path, Key::Socket].into_iter().filter(|needed| *needed != key) {
            values.add(needed, "/x".into()).unwrap();
        }
        // It does not stand alone.
        if matches!(key, Key::OverlayMax | Key::Template) {
            values.add(Key::Overlay, "memory".into()).unwrap();
        }
        values.add(key, value.into()).unwrap();
        DiskOptions::read(values).map(|option| format!("{option:?}"))
    };
    for (place, key) in Key::all().enumerate() {
        assert_eq!(key as usize, place, "the rows stand in the order of the keys");
        assert!(key.bare().is_none_or(|bare| read(key, bare).is_ok()), "{key:?}");
        let (good, bad): (Vec<String>, Vec<String>) = match key.kind() {
            Kind::Path | Kind::Text => (vec!["a b,c=d".into(), "1".into()], vec![]),
            Kind::Bytes => (vec!["512".into(), "1G".into()], vec!["on".into(), "-1".into(), "1.5".into()]),
            Kind::Limit(_, Part::Average) => {
                (vec!["1".into(), "0".into(), "none".into()], vec!["on".into(), "-1".into(), "1.5".into()])
            }
            // These do not stand alone.
            Kind::Limit(..) => (vec![], vec!["on".into(), "-1".into()]),
            Kind::Switch => (["on", "off", "true", "false"].map(Into::into).into(), vec!["1".into()]),
            Kind::Number { min, max } => {
                assert!(key.meaning().contains(&format!("{min} to {max}")), "{}", key.meaning());
                let outside = [(i32::from(min) - 1).to_string(), (i32::from(max) + 1).to_string()];
                (vec![min.to_string(), max.to_string()], outside.into())
            }
            Kind::OneOf(numbers) => {
                let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
                assert_eq!(key.form(), numbers.join("|"));
                (numbers, vec!["1".into(), "off".into()])
            }
            Kind::Word(words) => {
                assert!(key.form() == "CLASS" || key.form() == words.join("|"), "{key:?}");
                (words.iter().map(ToString::to_string).collect(), vec!["1".into(), "other".into()])
            }
            Kind::WordOrPath(words) => {
                (words.iter().map(ToString::to_string).chain(["./x".into()]).collect(), vec!["other".into()])
            }
            Kind::Mode => (vec!["0600".into()], vec!["0888".into(), "rw".into()]),
            Kind::Identity => (vec!["root".into(), "7".into()], vec!["no-such-one".into()]),
            Kind::List => (vec!["0".into(), "0,1".into()], vec!["no-such-one".into()]),
        };
        for value in good {
            let text = read(key, &value).unwrap_or_else(|error| panic!("{key:?} {value}: {error}"));
            assert!(!text.is_empty());
        }
        for value in bad {
            assert!(
                matches!(read(key, &value), Err(OptionError::Value { key: of, .. }) if of == key),
                "{key:?} {value}"
            );
        }
    }
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let refused = |keys: &str| error(&format!("path=/a,socket=/b,{keys}"));
    for (keys, cause) in [
        ("iops-max=5", "iops-max needs iops; add it, or leave iops-max out"),
        ("iops=5,iops-max-length=2", "iops-max-length needs iops-max; add it"),
        (
            "bps-wr=5M,bps-wr-max=4M",
            "bps-wr-max is lower than bps-wr; a burst is at least as fast as the average",
        ),
        ("iops=5,iops-rd=5", "iops and iops-rd both limit the same requests; leave one of them out"),
        ("iops=-1", "iops=-1: write a whole number, or none"),
        ("iops=1K", "iops=1K: write a whole number, or none"),
        ("bps=1MB", "bps=1MB: \"1MB\" is ambiguous"),
        ("bps=16384P", "bps=16384P: \"16384P\" is more than 2^64 bytes"),
        ("bps=1P", "bps is limited to more than can be counted"),
    ] {
        let found = refused(keys);
        assert!(found.contains(cause), "{keys}: {found}");
    }
    let none = parse("path=/a,socket=/b,iops=none,bps=0").unwrap();
    assert!(into_configs(vec![none], Defaults::default()).remove(0).limits.is_empty());
}
