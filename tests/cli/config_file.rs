//! `serve --config`: a file says what the command line would, and `--check` what would be served.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Output;

use rustix::fs::FlockOperation;
use tempfile::TempDir;

use super::common::{folder, wait_for};
use super::errors::as_nobody;
use super::{Running, assert_error, assert_served, image, program, run, stderr, stdout};

/// A folder with a configuration file of this text.
fn config(text: &str) -> TempDir {
    let folder = folder::in_memory();
    fs::write(folder.path().join("c.toml"), text).unwrap();
    folder
}

fn serve(folder: &Path, more: &[&str]) -> Output {
    let file = folder.join("c.toml").display().to_string();
    run([&["serve", "--config", &file][..], more].concat())
}

/// What is in a folder, with sizes and times.
fn state(folder: &Path) -> Vec<String> {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            format!("{:?} {} {:?}", entry.file_name(), metadata.len(), metadata.modified().unwrap())
        })
        .collect();
    entries.sort();
    entries
}

#[test]
fn disks_of_the_file_and_of_the_command_line_are_served() {
    let folder = config(
        "include = \"conf.d/*.toml\"\n\
         [server]\nworkers = 1\nmetrics = \"metrics.sock\"\nlog = \"warn\"\n\
         [[disk]]\nname = \"first\"\npath = \"a.img\"\nsocket = \"a.sock\"\nsize = \"1M\"\nqueues = 3\n",
    );
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("conf.d")).unwrap();
    fs::write(path("conf.d/b.toml"), "[[disk]]\npath = \"b.img\"\nsocket = \"b.sock\"\nsize = 2097152\n")
        .unwrap();
    let line = format!("path={},socket={},size=3M", path("c.img").display(), path("c.sock").display());
    let file = path("c.toml").display().to_string();
    let mut daemon = Running::spawn(program(["serve", "--disk", &line, "--config", &file]));
    let sockets = [path("a.sock"), path("conf.d/b.sock"), path("c.sock"), path("metrics.sock")];
    for socket in &sockets {
        wait_for("it listens", || UnixStream::connect(socket).ok());
    }
    let sizes = ["a.img", "conf.d/b.img", "c.img"].map(|name| path(name).metadata().unwrap().len());
    assert_eq!(sizes, [1 << 20, 2 << 20, 3 << 20]);
    drop(assert_served(UnixStream::connect(&sockets[1]).unwrap()));
    assert_eq!(daemon.terminate().code(), Some(0));
    let text = daemon.output();
    let places =
        ["disk \"c\"\n", "disk \"first\"\n", "disk \"b\"\n"].map(|part| text.find(part).expect(part));
    assert!(places.is_sorted(), "the command line comes first: {text}");
    assert!(text.contains("  queues      3\n"), "{text}");
}

/// Whatever is said on the command line goes before the file: a wrong value there shows which one was taken.
#[test]
fn the_command_line_goes_before_the_file() {
    let disk = "[[disk]]\npath = \"a.img\"\nsocket = \"a.sock\"\nsize = \"1M\"\n";
    let folder = config(&format!("[server]\nrequire-durable = \"page\"\ncpus = \"0\"\n{disk}"));
    assert_error(&serve(folder.path(), &["--check"]), 13, &["disk \"a\"", "volatile"]);
    let output = serve(folder.path(), &["--check", "--require-durable=byte"]);
    assert_error(&output, 13, &["cannot promise durability \"byte\""]);
    let folder = config(&format!("[server]\ncpus = \"1000\"\n{disk}"));
    assert_error(&serve(folder.path(), &["--check"]), 2, &["cpus=1000: this process may use none of these"]);
    for option in ["--cpus=0", "--numa=off"] {
        let output = serve(folder.path(), &["--check", option]);
        assert_eq!(output.status.code(), Some(0), "{option}: {}", stderr(&output));
    }
}

#[test]
fn what_is_wrong_with_the_file_is_said_with_its_place() {
    let disk = "[[disk]]\npath = \"a.img\"\nsocket = \"a.sock\"\n";
    for (text, code, parts) in [
        ("[[disk\n", 2, [":1: this is not TOML: ", ""]),
        (
            "[server]\nworker = 1\n",
            11,
            [":2: [server]: unknown option \"worker\" (did you mean \"workers\"?)", "--help"],
        ),
        ("[server]\nworkers = 0\n", 2, [":2: [server]: invalid value '0' for '--workers <N>'", ""]),
        (
            "[server]\nnuma = \"all\"\n",
            2,
            [":2: [server]: invalid value 'all'", "[possible values: auto, off]"],
        ),
        (
            "[server]\nno-symlinks = \"yes\"\n",
            2,
            [":2: [server]: no-symlinks is a switch; write true or false", ""],
        ),
        ("[server]\ndisk = \"path=a\"\n", 11, [":2: [server]: unknown option \"disk\"", ""]),
        (
            "[[disk]]\nsokcet = \"a\"\n",
            11,
            [":2: [[disk]]: unknown key \"sokcet\" (did you mean \"socket\"?)", ""],
        ),
        (
            &format!("{disk}queues = 300\n"),
            2,
            [":4: [[disk]]: queues=300: write a whole number from 1 to 256", ""],
        ),
        (&format!("{disk}{disk}"), 2, ["disk \"a-2\": its socket ", "is already that of disk \"a\""]),
        ("", 2, ["no disk is given", ""]),
    ] {
        let folder = config(text);
        for more in [&[][..], &["--check"]] {
            assert_error(&serve(folder.path(), more), code, &parts);
        }
    }
    let missing = run(["serve", "--config", "/nonexistent/c.toml"]);
    assert_error(
        &missing,
        2,
        &["/nonexistent/c.toml: cannot read the configuration file (No such file", "; correct"],
    );
    assert_error(&run(["serve", "--check"]), 2, &["required arguments"]);
}

/// `--check` ends with the code of a start, says the same, and changes nothing.
#[test]
fn a_check_ends_as_a_start_would() {
    let folder = config("");
    let path = |name: &str| folder.path().join(name);
    image(&path("a.img"), 1 << 20);
    image(&path("odd.img"), 5 * 512);
    image(&path("empty.img"), 0);
    fs::write(path("precious"), "data").unwrap();
    let _living = UnixListener::bind(path("living.sock")).unwrap();
    let locked = fs::File::create(path("locked.img")).unwrap();
    locked.set_len(1 << 20).unwrap();
    rustix::fs::flock(&locked, FlockOperation::LockExclusive).unwrap();
    std::os::unix::fs::symlink("nowhere", path("link.img")).unwrap();
    for (disk, code) in [
        ("path = \"none.img\"\nsocket = \"s\"", 3),
        ("path = \"none.img\"\nsocket = \"s\"\nsize = \"1M\"\nreadonly = true", 3),
        ("path = \"no/such.img\"\nsocket = \"s\"\nsize = \"1M\"", 3),
        ("path = \"link.img\"\nsocket = \"s\"\nsize = \"1M\"", 3),
        ("path = \"/dev/null\"\nsocket = \"s\"", 4),
        ("path = \".\"\nsocket = \"s\"", 4),
        ("path = \"a.img\"\nsocket = \"s\"\nsize = 1000", 5),
        ("path = \"odd.img\"\nsocket = \"s\"\nblock-size = 4096", 5),
        ("path = \"empty.img\"\nsocket = \"s\"", 5),
        ("path = \"a.img\"\nsocket = \"s\"\nsize = \"2M\"", 6),
        ("path = \"new.img\"\nsocket = \"s\"\nsize = \"1P\"", 7),
        ("path = \"empty.img\"\nsocket = \"s\"\nsize = \"1P\"", 7),
        ("path = \"a.img\"\nsocket = \"living.sock\"", 8),
        ("path = \"locked.img\"\nsocket = \"s\"", 9),
        ("path = \"locked.img\"\nsocket = \"s\"\nreadonly = true", 9),
        ("path = \"a.img\"\nsocket = \"s\"\n[[disk]]\npath = \"a.img\"\nsocket = \"t\"", 9),
        ("path = \"a.img\"\nsocket = \"precious\"", 12),
        ("path = \"a.img\"\nsocket = \"no/such/s\"", 12),
        (&format!("path = \"a.img\"\nsocket = \"{}\"", "x".repeat(120)), 12),
        ("path = \"a.img\"\nsocket = \"s\"\nrequire-durable = \"page\"", 13),
        ("path = \"new.img\"\nsocket = \"s\"\nsize = \"1M\"\nrequire-durable = \"page\"", 13),
    ] {
        fs::write(path("c.toml"), format!("[[disk]]\n{disk}\n")).unwrap();
        let before = state(folder.path());
        let check = serve(folder.path(), &["--check"]);
        assert_eq!(before, state(folder.path()), "{disk}");
        let start = serve(folder.path(), &[]);
        let codes = [&check, &start].map(|output| output.status.code());
        assert_eq!(codes, [Some(code); 2], "{disk}\n{}{}", stderr(&check), stderr(&start));
        let error = |output: &Output| {
            let text = stderr(output);
            let line = text.lines().find(|line| line.starts_with("error: ")).unwrap().to_owned();
            // Free space may have changed, and the two find out of some things by other calls.
            line.split(" (").next().unwrap().to_owned()
        };
        if code != 12 {
            assert_eq!(error(&check), error(&start), "{disk}");
        }
    }
}

#[test]
fn a_check_says_what_would_be_served_and_changes_nothing() {
    let folder = config(
        "[server]\nmetrics = \"m.sock\"\n\
         [[disk]]\npath = \"a.img\"\nsocket = \"a.sock\"\nreadonly = true\n\
         [[disk]]\npath = \"b.img\"\nsocket = \"stale.sock\"\nsize = \"2M\"\nqueues = 7\n",
    );
    let path = |name: &str| folder.path().join(name);
    image(&path("a.img"), 1 << 20);
    drop(UnixListener::bind(path("stale.sock")).unwrap());
    let before = state(folder.path());
    let output = serve(folder.path(), &["--check"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(before, state(folder.path()));
    let text = stdout(&output);
    for part in [
        &format!("disk \"a\"\n  file        {}: memory (tmpfs", path("a.img").display()),
        "  size        1 MiB (1048576 bytes), 512-byte blocks, read-only\n  durability  volatile",
        "disk \"b\"\n",
        "  size        2 MiB (2097152 bytes), 512-byte blocks, read-write\n",
        "  queues      7\n",
        &format!("  socket      {}\n  a start creates the file\n", path("stale.sock").display()),
    ] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    assert_eq!(text.matches("a start creates").count(), 1);
}

/// All that is wrong is said at once; the code is that of the first, as the disks stand.
#[test]
fn a_check_names_all_disks_that_could_not_be_served() {
    let folder = config(
        "[[disk]]\npath = \"a.img\"\nsocket = \"a.sock\"\n\
         [[disk]]\npath = \"b.img\"\nsocket = \"b.sock\"\nsize = \"1M\"\n\
         [[disk]]\npath = \"/dev/null\"\nsocket = \"c.sock\"\n",
    );
    let output = serve(folder.path(), &["--check"]);
    assert_eq!(output.status.code(), Some(3));
    let text = stderr(&output);
    let errors: Vec<_> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 2, "{text}");
    assert!(errors[0].contains("disk \"a\"") && errors[1].contains("disk \"null\""), "{text}");
    assert!(stdout(&output).starts_with("disk \"b\"\n"), "{}", stdout(&output));
}

#[test]
fn a_file_that_may_not_be_read_is_10() {
    let folder = config("");
    let file = folder.path().join("c.toml");
    for (path, mode) in [(folder.path(), 0o755), (&file, 0o000)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let output = as_nobody(folder.path()).args(["serve", "--config"]).arg(&file).output().unwrap();
    assert_error(&output, 10, &["cannot read the configuration file (Permission denied"]);
}
