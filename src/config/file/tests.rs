//! Tests of the configuration file.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::config::disk_text;
use crate::config::keys::Part;
use crate::config::options::{Defaults, into_configs};

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

/// What is read of a file with this text, or what is said of it behind its path.
fn read(text: &str) -> Result<ConfigFile, String> {
    let folder = folder(&[("main.toml", text)]);
    let path = folder.path().join("main.toml");
    ConfigFile::read(&path).map_err(|error| {
        let text = error.to_string();
        text.strip_prefix(path.to_str().unwrap()).unwrap_or_else(|| panic!("{text}")).to_owned()
    })
}

/// Each option, as a file writes it and as `--disk` does.
#[test]
fn every_key_means_the_same_as_on_the_command_line() {
    let values = |key: Key| match key.kind() {
        Kind::Path => vec![("\"/x, y\"".to_owned(), "/x,, y".to_owned())],
        Kind::Text => vec![("\"a,b\"".into(), "a,,b".into())],
        // It does not stand alone.
        _ if matches!(key, Key::OverlayMax | Key::Template) => Vec::new(),
        Kind::Bytes => vec![
            ("4096".into(), "4096".into()),
            ("\"1M\"".into(), "1M".into()),
            ("1_024".into(), "1K".into()),
        ],
        Kind::Limit(_, Part::Average) => {
            vec![("1_024".into(), "1024".into()), ("\"none\"".into(), "0".into())]
        }
        // These do not stand alone.
        Kind::Limit(..) => Vec::new(),
        Kind::Switch => {
            vec![("true".into(), "on".into()), ("false".into(), "off".into()), ("\"on\"".into(), "on".into())]
        }
        Kind::Number { max, .. } => vec![(max.to_string(), max.to_string()), ("\"1\"".into(), "1".into())],
        Kind::OneOf(numbers) => numbers.iter().map(|it| (it.to_string(), it.to_string())).collect(),
        Kind::Word(words) => words.iter().map(|it| (format!("{it:?}"), it.to_string())).collect(),
        Kind::WordOrPath(words) => {
            let words = words.iter().map(|it| (format!("{it:?}"), it.to_string()));
            words.chain([("\"/x, y\"".to_owned(), "/x,, y".to_owned())]).collect()
        }
        Kind::Mode => vec![("\"0600\"".into(), "0600".into()), ("0o600".into(), "0600".into())],
        Kind::Identity => vec![("7".into(), "7".into()), ("\"root\"".into(), "root".into())],
        Kind::List => vec![
            ("[0, \"1\"]".into(), "0,,1".into()),
            ("0".into(), "0".into()),
            ("\"0,1\"".into(), "0,,1".into()),
        ],
    };
    let debug = |options: DiskOptions| format!("{:?}", into_configs(vec![options], Defaults::default()));
    let mut checked = 0;
    for key in Key::all() {
        for (in_file, on_line) in values(key) {
            let others = [Key::Path, Key::Socket].into_iter().filter(|other| *other != key);
            let (mut file, mut line) = ("[[disk]]\n".to_owned(), String::new());
            for other in others {
                file += &format!("{} = \"/{}\"\n", other.name(), other.name());
                line += &format!("{}=/{},", other.name(), other.name());
            }
            file += &format!("{} = {in_file}\n", key.name());
            line += &format!("{}={on_line}", key.name());
            let of_file = read(&file).unwrap_or_else(|error| panic!("{file}{error}")).disks.remove(0);
            let of_line = disk_text::parse(line.as_ref()).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(debug(of_file), debug(of_line), "{file}");
            checked += 1;
        }
    }
    assert!(checked > 40, "{checked}");
}

#[test]
fn errors_name_line_key_cause_and_remedy() {
    let disk = "[[disk]]\npath = \"a\"\nsocket = \"s\"\n";
    for (text, message) in [
        ("[[disk]\n", ":1: this is not TOML: "),
        ("\n\nx = \n", ":3: this is not TOML: "),
        (
            "[servers]\n",
            ":1: unknown key \"servers\" (did you mean \"server\"?); a configuration file has [server], [[disk]] and include",
        ),
        ("\n[[disks]]\n", ":2: unknown key \"disks\" (did you mean \"disk\"?)"),
        ("[disk]\n", ":1: disk: a table is no value of it; write tables, each with the head [[disk]]"),
        ("server = 1\n", ":1: server: this whole number is no value of it; write a table, [server]"),
        ("[server]\nworkers = 1.5\n", ":2: workers: a number with a point is no value of it"),
        (
            "include = 1\n",
            ":1: include: this whole number is no value of it; write a pattern such as \"conf.d/*.toml\"",
        ),
        ("\n[[disk]]\npath = \"a\"\n", ":2: [[disk]]: socket is missing; add socket = \"SOCKET\""),
        (
            "[[disk]]\nsokcet = \"a\"\n",
            ":2: [[disk]]: unknown key \"sokcet\" (did you mean \"socket\"?); the keys are path,",
        ),
        (
            "[[disk]]\npath = \"a\"\nsocket = \"\"\n",
            ":3: [[disk]]: socket has no value; write socket = \"SOCKET\"",
        ),
        (&format!("{disk}queues = 300\n"), ":4: [[disk]]: queues=300: write a whole number from 1 to 256"),
        (
            &format!("{disk}queues = true\n"),
            ":4: queues: true or false is no value of it; write a whole number from 1 to 256",
        ),
        (
            &format!("{disk}readonly = 1\n"),
            ":4: readonly: this whole number is no value of it; write true or false",
        ),
        (
            &format!("{disk}\nsocket-mode = 660\n"),
            ":5: socket-mode: this whole number is no value of it; write permissions in octal",
        ),
        (
            &format!("{disk}lock = true\n"),
            ":4: lock: true or false is no value of it; write one of \"on\", \"wait\", \"off\"",
        ),
        (
            &format!("{disk}size = [1]\n"),
            ":4: size: an array is no value of it; write a number of bytes, or text",
        ),
        (&format!("{disk}size = -1\n"), ":4: [[disk]]: size=-1: \"-1\" is not a size"),
        (&format!("{disk}path = \"b\"\n"), ":4: this is not TOML: duplicate key"),
        (
            &format!("{disk}{disk}cpus = 1\nnuma = \"auto\"\n"),
            ":8: [[disk]]: cpus and numa=auto both say where",
        ),
    ] {
        let error = read(text).map(|_| ()).unwrap_err();
        assert!(error.starts_with(message), "{text}:\n{error}");
    }
    let endless = ConfigFile::read(Path::new("/dev/zero")).unwrap_err().to_string();
    assert!(endless.contains("(it has more than 16777216 bytes)"), "{endless}");
    let error = ConfigFile::read(Path::new("/nonexistent/x.toml")).unwrap_err().to_string();
    assert!(
        error.starts_with("/nonexistent/x.toml: cannot read the configuration file (No such file"),
        "{error}"
    );
}

#[test]
fn paths_are_relative_to_their_file_and_includes_come_in_order() {
    let disk = |name: &str| format!("[[disk]]\npath = \"{name}.img\"\nsocket = \"/run/{name}\"\n");
    let folder = folder(&[
        ("etc/main.toml", &format!("include = [\"conf.d/*.toml\", \"more.toml\"]\n{}", disk("main"))),
        ("etc/conf.d/20.toml", &disk("later")),
        ("etc/conf.d/10.toml", &format!("{}{}", disk("one"), disk("two"))),
        ("etc/conf.d/ignored.txt", "what?"),
        ("etc/more.toml", &disk("more")),
    ]);
    let config = ConfigFile::read(&folder.path().join("etc/main.toml")).unwrap();
    let disks = into_configs(config.disks, Defaults::default());
    let found: Vec<_> =
        disks.iter().map(|disk| disk.path.strip_prefix(folder.path()).unwrap().to_str().unwrap()).collect();
    assert_eq!(
        found,
        ["etc/main.img", "etc/conf.d/one.img", "etc/conf.d/two.img", "etc/conf.d/later.img", "etc/more.img"]
    );
    assert_eq!(disks[0].socket.path(), Some(Path::new("/run/main")));
}

#[test]
fn included_files_have_disks_only_and_must_be_there() {
    let at = |main: &str, other: &str| {
        let folder = folder(&[("main.toml", main), ("d/other.toml", other)]);
        let error = ConfigFile::read(&folder.path().join("main.toml")).map(|_| ()).unwrap_err().to_string();
        error.replace(folder.path().to_str().unwrap(), "")
    };
    let only = "may only stand in the file that is given with --config; move it there";
    assert_eq!(at("include = \"d/*\"", "\n[server]\n"), format!("/d/other.toml:2: [server] {only}"));
    assert_eq!(at("include = \"d/*\"", "include = \"x\""), format!("/d/other.toml:1: include {only}"));
    assert!(
        at("\ninclude = \"no.toml\"", "")
            .starts_with("/main.toml:2: include: cannot read /no.toml (No such file")
    );
    assert!(
        at("include = \"d/***\"", "").starts_with("/main.toml:1: include: \"d/***\" is no pattern of paths")
    );
    let none = folder(&[("main.toml", "include = \"none.d/*.toml\"\n")]);
    assert!(ConfigFile::read(&none.path().join("main.toml")).unwrap().disks.is_empty());
}

#[test]
fn options_of_the_server_keep_their_places() {
    let config = read("[server]\nno-symlinks = true\nworkers = 0x10\nsandbox = \"off\"\n").unwrap();
    let found: Vec<_> =
        config.server.iter().map(|it| (it.place.line, it.name.as_str(), it.value.clone())).collect();
    let text = |text: &str| SettingValue::Text(text.to_owned());
    let expected = [
        (2, "no-symlinks", SettingValue::Switch(true)),
        (3, "workers", text("16")),
        (4, "sandbox", text("off")),
    ];
    assert_eq!(found, expected);
}
