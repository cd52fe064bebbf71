//! Media that need a kernel of their own, which is User-Mode Linux: a device of the device-mapper that is suspended, and an NFS
//! server that is gone.

use std::path::Path;

use crate::common::user_mode::{self, INSTALLED, assert_lines};
use crate::ends::each_end;
use crate::fuse::Media;
use crate::table::{Row, each_row};

const HERE: &str = "other_kernel::in_a_kernel_of_their_own";

/// Set, all rows are tried (`ci/soak`), and not only these; those at whose end it is looked, too, come first.
const ALL: &str = "HANG_ALL";
const ROWS: [&str; 5] =
    ["20 reads", "a flush behind a write", "a discard", "20 writes", "SET_CONFIG, write-through"];
const ENDS: usize = 1;

/// What `user_mode.sh` runs.
#[test]
#[ignore = "in User-Mode Linux only, as the test below has it"]
fn in_a_kernel_of_their_own() {
    let tries_all = std::env::var_os(ALL).is_some();
    let has = |names: &[&str], row: &Row| names.contains(&row.name);
    for (media, packed) in [(Media::Suspended, false), (Media::Nfs, true)] {
        let rows = each_row(media, packed, |row| tries_all || has(&ROWS, row));
        println!("case {media:?}: {rows} rows");
        each_end(media, packed, |row| has(if tries_all { &ROWS[..] } else { &ROWS[..ENDS] }, row));
        println!("case {media:?}: each end came in time");
    }
    println!("case all");
}

#[test]
fn a_suspended_device_and_a_file_whose_nfs_server_is_gone_cost_their_own_disk() {
    let packages = [
        (INSTALLED, "user-mode-linux"),
        ("/usr/sbin/rpc.nfsd", "nfs-kernel-server"),
        ("/usr/sbin/modinfo", "kmod"),
        ("/usr/sbin/dmsetup", "dmsetup"),
    ];
    let mut words = vec![
        format!("tests={}", std::env::current_exe().unwrap().display()),
        format!("test={HERE}"),
        format!("temporary={}", env!("CARGO_TARGET_TMPDIR")),
    ];
    let tries_all = std::env::var_os(ALL).is_some();
    // The kernel makes its first process an environment of such words.
    words.extend(tries_all.then(|| format!("{ALL}=1")));
    let Some(text) = user_mode::run(Path::new("tests/waits/user_mode.sh"), &words, &packages) else { return };
    for line in text.lines().filter(|line| line.contains("others' requests")) {
        eprintln!("{line}");
    }
    let rows = if tries_all { [18, 13] } else { [5, 4] };
    let [suspended, nfs] = [rows[0], rows[1]].map(|rows| format!("{rows} rows"));
    let lines = [
        &format!("case Suspended: {suspended}"),
        "case Suspended: each end came in time",
        &format!("case Nfs: {nfs}"),
        "case Nfs: each end came in time",
        "case all",
    ];
    assert_lines(&text, &lines);
}
