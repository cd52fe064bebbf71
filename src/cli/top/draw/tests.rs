use ratatui_core::backend::TestBackend;
use ratatui_core::terminal::Terminal;

use super::*;
use crate::cli::top::rates::Done;
use crate::cli::top::view::{Key, Sort};

fn done(reads: f64) -> Done {
    Done {
        reads: Some(reads),
        writes: Some(reads / 2.0),
        read_bytes: Some(reads * 4096.0),
        written_bytes: Some(reads * 2048.0),
        flushes: Some(0.0),
        failures: Some(0.0),
    }
}

fn picture() -> Picture {
    let busy = DiskRow {
        name: "db0".to_owned(),
        done: done(2_284_000.0),
        p50: Some(820e-9),
        p99: Some(12e-6),
        depth: Some(32),
        amplification: Some(1.0),
        standing: Standing::Polled,
        front_ends: 1,
        capacity_bytes: 20 << 30,
        ..DiskRow::default()
    };
    let hung = DiskRow {
        name: "a-disk-with-a-long-name-\x1b[2J".to_owned(),
        standing: Standing::Hung(754.0),
        ..DiskRow::default()
    };
    let ring = RingRow {
        disk: "db0".to_owned(),
        front_end: 3,
        format: "split".to_owned(),
        size: 256,
        done: done(5.0),
        depth: 7,
        standing: Standing::Armed,
        seconds: 90_000.0,
        ..RingRow::default()
    };
    Picture {
        seconds: Some(1.0),
        disks: vec![hung, busy],
        rings: vec![ring],
        cpu: Some(Cpu { workers: vec![67.0, 66.6], all_threads: 140.2 }),
    }
}

fn scene<'a>(view: &'a View, picture: &'a Picture) -> Scene<'a> {
    Scene {
        view,
        picture,
        socket: "/run/pmem.sock",
        interval: Duration::from_secs(1),
        away: None,
        is_coloured: true,
    }
}

/// The lines that are drawn in a terminal of this size.
fn drawn(scene: &Scene<'_>, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame.buffer_mut(), scene)).unwrap();
    let buffer = terminal.backend().buffer();
    let lines = buffer.content().chunks(usize::from(width).max(1));
    lines
        .map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned())
        .collect()
}

fn view() -> View {
    View::new(Sort::Iops, String::new(), None)
}

#[test]
fn all_is_readable_in_80_by_24() {
    let lines = drawn(&scene(&view(), &picture()), 80, 24);
    let expected = [
        "/run/pmem.sock  2 disks by iops, every 1 s",
        "CPU 140%, workers 67% 67%   all disks: 3.43M requests/s, 9355 MB/s read, 4678 wr",
        "",
        "NAME           READ/S WRITE/S RD-MB/S WR-MB/S   P50   P99 DEPTH  AMPL STATE",
        "db0             2.28M   1.14M    9355    4678 820ns  12us    32  1.00 polled",
        "a-disk-with-~       -       -       -       -     -     -     -     - hung 13m",
    ];
    for (line, expected) in lines.iter().zip(expected) {
        assert_eq!(line, expected);
    }
    assert_eq!(lines[23], KEYS);
    assert!(KEYS.len() <= 80 && HELP.iter().all(|line| line.len() <= 80) && HELP.len() + 5 <= 24);
}

#[test]
fn any_size_can_be_drawn() {
    let (mut view, picture) = (view(), picture());
    let many = Picture { disks: vec![picture.disks[0].clone(); 300], ..picture.clone() };
    for is_second in [false, true] {
        view.shows_help = is_second;
        view.rings_of = is_second.then(|| "db0".to_owned());
        for (width, height) in [(0, 0), (1, 1), (5, 2), (7, 3), (22, 4), (79, 5), (500, 6), (80, 200)] {
            for picture in [&picture, &many, &Picture::default()] {
                let away = Some((Duration::from_secs(5), "it is gone"));
                drawn(&Scene { away, ..scene(&view, picture) }, width, height);
            }
        }
        view.shows_help = false;
    }
    view.rings_of = None;
    let lines = drawn(&scene(&view, &picture), 32, 3);
    assert_eq!(lines, ["NAME           READ/S STATE", "db0             2.28M polled", KEYS[..32].trim_end()]);
    assert!(
        drawn(&scene(&view, &picture), 200, 8)[3].ends_with("FLUSH/S FAIL/S FRONT-ENDS       SIZE LIMITS")
    );
    assert!(drawn(&scene(&view, &picture), 200, 8)[5].contains("a-disk-with-a-long-name-\\u{1b}[2J "));
}

#[test]
fn the_chosen_disk_is_on_the_page() {
    let row = |number: usize| DiskRow { name: format!("disk{number}"), ..DiskRow::default() };
    let picture = Picture { disks: (0..100).map(row).collect(), ..Picture::default() };
    let mut view = View::new(Sort::Given, String::new(), None);
    view.press(Key::End, &picture);
    let lines = drawn(&scene(&view, &picture), 80, 24);
    assert!(lines[22].starts_with("disk99 ") && lines[4].starts_with("disk81 "), "{lines:#?}");
    view.press(Key::Home, &picture);
    assert!(drawn(&scene(&view, &picture), 80, 24)[4].starts_with("disk0 "));
}

#[test]
fn rings_of_a_disk_have_lines_of_their_own() {
    let view = View::new(Sort::Iops, String::new(), Some("db0".to_owned()));
    let lines = drawn(&scene(&view, &picture()), 80, 24);
    assert!(lines[0].contains("rings of db0 by iops"), "{lines:#?}");
    assert_eq!(lines[4].split_whitespace().collect::<Vec<_>>()[..3], ["3:0", "5.0", "2.5"]);
    assert_eq!(lines[23], KEYS_OF_RINGS);
}

#[test]
fn what_is_out_of_the_ordinary_is_said() {
    let (mut view, picture) = (view(), picture());
    view.is_paused = true;
    assert_eq!(drawn(&scene(&view, &picture), 80, 24)[2], "PAUSED (p goes on)");
    let away = Some((Duration::from_secs(12), "cannot \x1b reach"));
    let lines = drawn(&Scene { away, ..scene(&view, &picture) }, 80, 24);
    assert_eq!(lines[2], "NO ANSWER for 12s, waiting: cannot \\u{1b} reach");
    assert!(lines[4].starts_with("db0"), "what was seen last stays");
    view.is_paused = false;
    for key in "/d\u{202e}".chars().map(Key::Char) {
        view.press(key, &picture);
    }
    assert_eq!(drawn(&scene(&view, &picture), 80, 24)[2], "filter: d\\u{202e}_");
    view.press(Key::Char('?'), &picture);
    view.press(Key::Enter, &picture);
    view.press(Key::Char('?'), &picture);
    assert_eq!(drawn(&scene(&view, &picture), 80, 24)[3], HELP[0]);
}

#[test]
fn without_colours_nothing_is_coloured() {
    let (view, picture) = (view(), picture());
    for is_coloured in [true, false] {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        let scene = Scene { is_coloured, ..scene(&view, &picture) };
        terminal.draw(|frame| draw(frame.buffer_mut(), &scene)).unwrap();
        let has_colours = terminal.backend().buffer().content().iter().any(|cell| cell.fg != Color::Reset);
        assert_eq!(has_colours, is_coloured);
    }
}
