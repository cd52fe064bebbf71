//! Every way to fail: its exit code, and a message that names the object, the cause and a remedy.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::common::daemon::{Place, Setup};
use super::common::folder;
use super::{Running, assert_error, image, program, run, stderr};

/// Serves `path` at a socket in `folder` with more `keys`.
fn serve(folder: &Path, path: &Path, keys: &str) -> Output {
    let socket = folder.join("s.sock");
    let output =
        run(["serve", "--disk", &format!("path={},socket={},{keys}", path.display(), socket.display())]);
    assert!(!socket.exists(), "the socket stayed behind");
    output
}

#[test]
fn a_wrong_command_line_is_2() {
    for (args, part) in [
        (&["nonsense"][..], "unrecognized subcommand 'nonsense'"),
        (&["--log", "debug"], "nothing to do; use serve, info, or --socket-path"),
        (&["serve"], "required arguments"),
        (&["serve", "--disk", "path=/a"], "--disk path=/a: socket is missing; add socket=SOCKET"),
        (&["serve", "--disk", "socket=/a"], "--disk socket=/a: path is missing; add path=FILE"),
        (&["serve", "--disk", "path=/a,path=/b"], "path is given twice; leave one of them out"),
        (&["serve", "--disk", "path=a,socket=s,block-size=1000"], "block-size=1000: write 512 or 4096"),
        (&["serve", "--disk", "path=a,socket=s,size=12Q"], "size=12Q: \"12Q\" is not a size; write bytes"),
        (&["serve", "--disk", "path=a,socket=s", "--workers", "0"], "invalid value '0' for '--workers <N>'"),
        (&["--log=loud", "info", "/"], "\"loud\" is no level; the levels are off, error"),
        (&["--log-format=xml", "info", "/"], "invalid value 'xml' for '--log-format <FORMAT>'"),
        (&["--read-only", "serve", "--disk", "path=a,socket=s"], "cannot be used with a subcommand"),
        (&["--socket-path=s", "--fd=3", "--blk-file=a"], "cannot be used with"),
        (&["--socket-path=s"], "required arguments"),
        (&["--blk-file=a"], "required arguments"),
    ] {
        assert_error(&run(args), 2, &[part]);
    }
    let nothing = run::<&str>([]);
    assert_eq!(nothing.status.code(), Some(2));
    assert!(stderr(&nothing).contains("Usage: vhost-user-pmem serve --disk"));
}

#[test]
fn disks_must_differ_in_name_and_socket() {
    let two = |a: &str, b: &str| run(["serve", "--disk", a, "--disk", b]);
    assert_error(
        &two("path=a,socket=s,name=db", "path=b,socket=t,name=db"),
        2,
        &["disk \"db\": two disks have this name; give each its own with name="],
    );
    assert_error(
        &two("path=a,socket=/s", "path=b,socket=/s"),
        2,
        &["disk \"b\": its socket /s is already that of disk \"a\"", "give each its own with socket="],
    );
}

/// With postcopy its front-end can reach all memory of the process.
#[test]
fn a_disk_with_postcopy_is_the_only_one_of_its_process() {
    let folder = folder::in_memory();
    let path = |name: &str| folder.path().join(name);
    let disk = |name: &str, keys: &str| {
        let (file, socket) = (path(&format!("{name}.img")), path(&format!("{name}.sock")));
        format!("path={},socket={},size=1M{keys}", file.display(), socket.display())
    };
    let (alone, other) = (disk("a", ",postcopy=on"), disk("b", ""));
    for disks in [[&alone, &other], [&other, &alone]] {
        let output = run(["serve", "--disk", disks[0], "--disk", disks[1]]);
        let parts = ["disk \"a\": with postcopy=on", "1 more", "from a process of its own"];
        assert_error(&output, 2, &parts);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "files stayed behind");
}

#[test]
fn an_unknown_key_is_11_and_the_nearest_is_named() {
    let output = run(["serve", "--disk", "path=/a,sokcet=/b"]);
    let keys = "path, socket, name, size, serial, readonly, block-size, queues, seg-max, sparse, overlay, overlay-max, template, lock";
    assert_error(
        &output,
        11,
        &["--disk path=/a,sokcet=/b: unknown key \"sokcet\" (did you mean \"socket\"?)", keys],
    );
}

#[test]
fn a_missing_path_is_3() {
    let folder = folder::in_memory();
    let path = folder.path().join("none.img");
    let shown = path.to_str().unwrap();
    for keys in ["name=db", "name=db,readonly=on,size=1M"] {
        assert_error(
            &serve(folder.path(), &path, keys),
            3,
            &["disk \"db\": ", shown, "cannot open it (", "; "],
        );
    }
    let lost = folder.path().join("no/such/folder.img");
    assert_error(
        &serve(folder.path(), &lost, "size=1M"),
        3,
        &[lost.to_str().unwrap(), "cannot create it (", "; "],
    );
    assert_error(&run(["info".as_ref(), path.as_os_str()]), 3, &[shown, "; "]);
    assert!(!path.exists());
}

#[test]
fn what_is_no_regular_file_is_4() {
    let folder = folder::in_memory();
    let socket = folder.path().join("a.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    for (path, what) in [
        (folder.path(), "a directory"),
        (Path::new("/dev/null"), "a character device"),
        (&socket, "a socket"),
    ] {
        for keys in ["name=db", "name=db,readonly=on", "name=db,size=1M"] {
            let output = serve(folder.path(), path, keys);
            assert_error(&output, 4, &["disk \"db\": ", path.to_str().unwrap(), what, "; "]);
        }
    }
}

#[test]
fn a_size_that_is_no_whole_number_of_blocks_is_5() {
    let folder = folder::in_memory();
    let path = folder.path().join("db.img");
    for keys in ["size=1000", "size=0", "size=1025K,block-size=4096"] {
        assert_error(&serve(folder.path(), &path, keys), 5, &["disk \"db\": ", "db.img: ", "; "]);
        assert!(!path.exists(), "{keys}: the file stayed behind");
    }
    image(&path, 5 * 512);
    let output = serve(folder.path(), &path, "block-size=4096");
    assert_error(&output, 5, &["the file has 2560 bytes", "4096", "; "]);
    image(&path, 0);
    assert_error(&serve(folder.path(), &path, "queues=1"), 5, &["the file has 0 bytes", "size="]);
}

#[test]
fn a_file_smaller_than_its_size_is_6() {
    let folder = folder::in_memory();
    let path = folder.path().join("db.img");
    image(&path, 1 << 20);
    let output = serve(folder.path(), &path, "size=2M");
    assert_error(&output, 6, &["disk \"db\": ", "db.img: ", "2097152 bytes", "1048576 bytes", "; "]);
    assert_eq!(path.metadata().unwrap().len(), 1 << 20, "the file was changed");
}

#[test]
fn no_space_is_7_and_leaves_nothing_behind() {
    let folder = folder::in_memory();
    let path = folder.path().join("db.img");
    let output = serve(folder.path(), &path, "size=1P");
    assert_error(&output, 7, &["disk \"db\": ", "db.img: ", "no space", "; "]);
    assert!(!path.exists());
}

#[test]
fn a_socket_of_a_living_daemon_is_8() {
    let setup = Setup::new(Place::Tmpfs).disk("size=1M,name=first");
    let daemon = setup.start();
    let folder = folder::in_memory();
    let path = folder.path().join("second.img");
    let socket = daemon.socket(0);
    let disk = format!("path={},socket={},size=1M", path.display(), socket.display());
    let output = run(["serve", "--disk", &disk]);
    assert_error(&output, 8, &["disk \"second\": ", socket.to_str().unwrap(), "; "]);
    drop(super::assert_served(UnixStream::connect(&socket).unwrap()));
    daemon.stop();
}

/// Whoever listens there has no place left for those who want to be let in: still somebody listens.
#[test]
fn a_socket_where_nobody_is_let_in_is_8_at_once() {
    let folder = folder::in_memory();
    let (image, socket) = (folder.path().join("db.img"), folder.path().join("s"));
    let listener = UnixListener::bind(&socket).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let _waiting = UnixStream::connect(&socket).unwrap();
    let at = |socket: &Path| format!("path={},socket={},size=1M", image.display(), socket.display());
    let metrics = socket.to_str().unwrap();
    for args in [
        vec!["serve", "--disk", &at(&socket)],
        vec!["serve", "--disk", &at(&folder.path().join("t")), "--metrics", metrics],
    ] {
        let mut serve = Running::spawn({
            let mut command = program(&args);
            command.stderr(Stdio::piped());
            command
        });
        assert_eq!(serve.wait().code(), Some(8), "{args:?}");
        let text = std::io::read_to_string(serve.0.stderr.take().unwrap()).unwrap();
        assert!(text.contains(metrics) && text.contains("another process listens"), "{text}");
    }
    assert!(!image.exists(), "created by a start that failed");
}

#[test]
fn a_file_that_is_served_already_is_9() {
    let setup = Setup::new(Place::Tmpfs).disk("size=1M");
    let daemon = setup.start();
    let folder = folder::in_memory();
    let image = daemon.image(0);
    let holder = format!("process {}", daemon.pid());
    for keys in ["name=other", "name=other,readonly=on"] {
        let output = serve(folder.path(), &image, keys);
        assert_error(&output, 9, &["disk \"other\": ", image.to_str().unwrap(), &holder, "; "]);
    }
    daemon.stop();

    let both = folder.path().join("both.img");
    super::image(&both, 1 << 20);
    let twice = ["a", "b"]
        .map(|name| format!("path={},socket={}", both.display(), folder.path().join(name).display()));
    let output = run(["serve", "--disk", &twice[0], "--disk", &twice[1]]);
    assert_error(&output, 9, &["disk \"both-2\": ", both.to_str().unwrap(), "another disk of this process"]);
}

/// The program as somebody who is not root, with everybody's access to its own binary.
pub(super) fn as_nobody(folder: &Path) -> Command {
    let binary = folder.join("vhost-user-pmem");
    if !binary.exists() {
        // Not copied by this process: a child of another test, just forked, would have it open for writing.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_vhost-user-pmem")).arg(&binary).status();
        assert!(copied.unwrap().success());
    }
    let mut command = Command::new(binary);
    command.stdin(Stdio::null()).current_dir("/");
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    command
}

fn with_mode(path: PathBuf, mode: u32) -> PathBuf {
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    path
}

#[test]
fn permission_denied_is_10() {
    let folder = folder::in_memory();
    let place = with_mode(folder.path().to_owned(), 0o755);
    let closed = place.join("closed");
    std::fs::create_dir(&closed).unwrap();
    let secret = place.join("secret.img");
    image(&secret, 1 << 20);
    let secret = with_mode(secret, 0);
    let public = place.join("public.img");
    image(&public, 1 << 20);
    let public = with_mode(public, 0o666);
    let closed = with_mode(closed, 0o555);

    let open = |path: &Path, socket: &Path| {
        let disk = format!("path={},socket={}", path.display(), socket.display());
        as_nobody(&place).args(["serve", "--disk", &disk]).output().unwrap()
    };
    let output = open(&secret, &place.join("s"));
    assert_error(&output, 10, &["disk \"secret\": ", secret.to_str().unwrap(), "Permission denied", "; "]);
    let socket = closed.join("s");
    let output = open(&public, &socket);
    assert_error(&output, 10, &["disk \"public\": ", socket.to_str().unwrap(), "Permission denied", "; "]);
    with_mode(closed, 0o755);
}

#[test]
fn other_socket_errors_are_12() {
    let folder = folder::in_memory();
    let path = folder.path().join("db.img");
    image(&path, 1 << 20);
    let at = |socket: &Path| {
        run(["serve", "--disk", &format!("path={},socket={}", path.display(), socket.display())])
    };
    let file = folder.path().join("precious");
    std::fs::write(&file, "data").unwrap();
    assert_error(&at(&file), 12, &["disk \"db\": ", file.to_str().unwrap(), "; "]);
    assert_eq!(std::fs::read(&file).unwrap(), b"data", "a file that is no socket was replaced");
    let lost = folder.path().join("no/such/folder/s");
    assert_error(&at(&lost), 12, &["disk \"db\": ", lost.to_str().unwrap(), "; "]);
    let long = folder.path().join("x".repeat(120));
    assert_error(&at(&long), 12, &["disk \"db\": ", long.to_str().unwrap(), "; "]);
}

/// What is done to files that are missing, of the wrong kind, or closed to this user: object, operation, cause, remedy.
#[test]
fn messages_say_what_failed_why_and_what_to_do() {
    let folder = folder::in_memory();
    let place = with_mode(folder.path().to_owned(), 0o755);
    let at = |name: &str| place.join(name).to_str().unwrap().to_owned();
    image(&place.join("file"), 1 << 20);
    with_mode(place.join("file"), 0o666);
    std::fs::create_dir(place.join("closed")).unwrap();
    image(&place.join("closed/file"), 1 << 20);
    with_mode(place.join("closed"), 0);
    std::os::unix::fs::symlink("loop", place.join("loop")).unwrap();
    let long = "x".repeat(120);
    let long_path =
        format!("cannot bind the socket (its path has {} bytes); a socket's path has", at(&long).len());
    let denied =
        "cannot examine it (Permission denied (os error 13)); run as a user who may search all directories";
    let no_folder =
        "cannot bind the socket (its folder does not exist); create its folder, or choose another";
    let taken = "cannot bind the socket (the path exists and is no socket); remove what is there, or choose";
    for (what, name, code, message) in [
        (
            "info",
            "none",
            3,
            "cannot examine it (there is no such file); correct the path, or let `serve` create it",
        ),
        ("info", "file/x", 1, "cannot examine it (Not a directory (os error 20)); correct the path"),
        (
            "info",
            "loop",
            1,
            "cannot examine it (Too many levels of symbolic links (os error 40)); correct the path",
        ),
        ("info", "closed/file", 10, denied),
        ("disk", "closed/file", 10, denied),
        (
            "socket",
            "closed/s",
            10,
            "cannot bind the socket (Permission denied (os error 13)); run as a user who may",
        ),
        ("socket", "none/s", 12, no_folder),
        ("socket", "file", 12, taken),
        ("socket", &long, 12, &long_path),
        ("metrics", "none/s", 12, no_folder),
        ("metrics", "file", 12, taken),
        ("backend", "none/s", 12, no_folder),
    ] {
        let (path, file, socket) = (at(name), at("file"), at("s"));
        let arguments = match what {
            "info" => vec![what.to_owned(), path.clone()],
            "disk" => vec!["serve".to_owned(), format!("--disk=path={path},socket={socket}")],
            "socket" => vec!["serve".to_owned(), format!("--disk=path={file},socket={path}")],
            "backend" => vec![format!("--blk-file={file}"), format!("--socket-path={path}")],
            _ => vec![
                "serve".into(),
                format!("--disk=path={file},socket={socket}"),
                format!("--metrics={path}"),
            ],
        };
        let output = as_nobody(&place).args(arguments).output().unwrap();
        assert_error(&output, code, &[&format!("{path}: {message}")]);
    }
    with_mode(place.join("closed"), 0o755);
}

#[test]
fn output_that_finds_no_space_is_1() {
    for arguments in
        [&["info", "/"][..], &["info", "--json", "/"], &["--help"], &["man"], &["--print-capabilities"]]
    {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = program(arguments).stdout(full).output().unwrap();
        let text = "cannot write to standard output (No space left on device (os error 28)); check where";
        assert_error(&output, 1, &[text]);
    }
}

#[test]
fn a_failed_start_takes_back_what_it_did() {
    let folder = folder::in_memory();
    let at = |name: &str| folder.path().join(name);
    let disk = |name: &str, keys: &str| {
        format!("path={},socket={}{keys}", at(&format!("{name}.img")).display(), at(name).display())
    };
    let mut command = program(["serve", "--disk", &disk("a", ",size=1M"), "--disk", &disk("b", "")]);
    assert_error(&command.output().unwrap(), 3, &["disk \"b\": "]);
    assert!(!at("a").exists(), "the first disk's socket stayed behind");
}

#[test]
fn a_start_that_fails_leaves_no_file_of_an_earlier_disk_behind() {
    let folder = folder::in_memory();
    let (new, kept) = (folder.path().join("new.img"), folder.path().join("kept.img"));
    std::fs::write(&kept, [7; 4096]).unwrap();
    let disk = |path: &Path, name: &str| {
        let socket = folder.path().join(name);
        format!("path={},socket={},name={name},size=4K", path.display(), socket.display())
    };
    let missing = format!("path=/nonexistent/x,socket={}", folder.path().join("x").display());
    let args = ["serve", "--disk", &disk(&new, "a"), "--disk", &disk(&kept, "b"), "--disk", &missing];
    assert_error(&run(args), 3, &["/nonexistent/x"]);
    assert!(!new.exists(), "created by the start that failed");
    assert!(kept.exists(), "was there before");
}
