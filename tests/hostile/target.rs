//! The daemon that is attacked, and what must be so after each attack.

use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::common::daemon::{Daemon, Place as FileSystem, Setup};
use crate::common::frontend::Session;
use crate::common::frontend::request::{OK, Request};
use crate::common::pattern;
use crate::driver::case::{DISK_BYTES, KEPT_BYTES};
use crate::neighbour::Neighbour;
use crate::table::{Place, Report, Row};

/// Disks that are attacked in turn: the log has some lines a second of each cause for each of them.
const DISKS: usize = 8;

/// Of so many rows next to each other in the table, one after the other is tried.
const STRIDE: usize = 41;

/// Of a machine that is busy with other things, too.
const LIFETIME: Duration = Duration::from_secs(3600);

/// How soon the log says why, if it does and nothing else has the processors.
const LOGGED: Duration = Duration::from_millis(50);

/// How soon it does then.
const LOGGED_IN_THE_END: Duration = Duration::from_secs(10);

/// How long the places of front-ends that are gone may be taken: a descriptor of theirs may hold one up for seconds.
const NEXT_PATIENCE: Duration = Duration::from_secs(60);

/// How long a row is tried again until the log does: it may have had too many lines of the cause in a second.
const PATIENCE: Duration = Duration::from_secs(5);

/// For whoever has a neighbour at work: one at a time, as each is to have the processors.
static ALONE: Mutex<()> = Mutex::new(());

/// A daemon with one worker: whoever holds it up holds up all.
pub(crate) struct Target {
    pub(crate) daemon: Daemon,
    /// What is in the part of each disk that nobody may change.
    kept: Vec<u8>,
    attacks: usize,
}

/// Waits for [`ALONE`], whatever became of those before.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Target {
    /// Nobody is connected yet.
    pub(crate) fn start() -> Self {
        let mut setup = Setup::new(FileSystem::Tmpfs).arg("--workers=1").with_metrics().lifetime(LIFETIME);
        let kept = pattern(1, KEPT_BYTES as usize);
        for disk in 0..=DISKS {
            setup = setup.disk("");
            let file = std::fs::File::create(setup.image(disk)).unwrap();
            file.set_len(DISK_BYTES).unwrap();
            file.write_all_at(&kept, 0).unwrap();
        }
        let daemon = setup.start();
        Self { daemon, kept, attacks: 0 }
    }

    /// An honest front-end of the disk that is not attacked, at work.
    pub(crate) fn neighbour(&self) -> Neighbour {
        Neighbour::start(&self.daemon.socket(DISKS))
    }

    /// Tries each row once; not one after the other, as neighbours may fill the log with lines of the same cause.
    pub(crate) fn try_rows(&mut self, rows: &[Row], neighbour: &Neighbour) -> Report {
        let mut report = Report::default();
        let spread = (0..STRIDE).flat_map(|first| (first..rows.len()).step_by(STRIDE));
        for number in spread {
            let row = &rows[number];
            report.add(number, row, &self.try_row(row, neighbour));
            self.daemon.assert_alive();
            neighbour.assert_at_work();
        }
        report
    }

    fn try_row(&mut self, row: &Row, neighbour: &Neighbour) -> Result<(), String> {
        let disk = self.next_disk();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = self.daemon.log().len();
            let seen =
                catch_unwind(AssertUnwindSafe(|| self.attack(row, disk))).map_err(|panic| told(&*panic))?;
            if seen != row.expected {
                return Err(format!("{seen}; log:\n{}", &self.daemon.log()[before..]));
            }
            // A row may take longer than all of the patience.
            let is_last = Instant::now() > deadline;
            if self.is_logged(before, &row.reason, if is_last { LOGGED_IN_THE_END } else { LOGGED }) {
                break;
            }
            if is_last {
                return Err(format!("not logged: {:?}; log:\n{}", row.reason, &self.daemon.log()[before..]));
            }
        }
        let after = AssertUnwindSafe(|| self.assert_unharmed(disk, neighbour));
        catch_unwind(after).map_err(|panic| told(&*panic))
    }

    /// Tries a row on the next disk, whatever comes of it.
    pub(crate) fn attack_next(&mut self, row: &Row) {
        let disk = self.next_disk();
        self.attack(row, disk);
    }

    fn next_disk(&mut self) -> usize {
        self.attacks += 1;
        self.attacks % DISKS
    }

    fn attack(&self, row: &Row, disk: usize) -> crate::table::Answer {
        let (socket, image) = (self.daemon.socket(disk), self.daemon.image(disk));
        let place = Place { daemon: &self.daemon, socket, image };
        (row.attack)(&place)
    }

    fn is_logged(&self, before: usize, reason: &str, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        loop {
            if self.daemon.log()[before..].contains(reason) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The neighbour goes on; the disk serves whoever comes next, and has what it must keep.
    fn assert_unharmed(&mut self, disk: usize, neighbour: &Neighbour) {
        self.daemon.assert_alive();
        neighbour.wait_for_progress();
        let session = self.next_front_end(disk);
        let answer = session.ring(0, 16).run(&Request::read(KEPT_BYTES / 512, 4096));
        assert_eq!((answer.status, answer.used_bytes), (OK, 4097), "the next front-end's read");
        let mut bytes = vec![0; self.kept.len()];
        std::fs::File::open(self.daemon.image(disk)).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == self.kept, "the disk has changed");
    }

    /// Those before it may have all places until the daemon has noticed that they are gone.
    fn next_front_end(&self, disk: usize) -> Session {
        let deadline = Instant::now() + NEXT_PATIENCE;
        loop {
            match catch_unwind(AssertUnwindSafe(|| Session::connect(&self.daemon.socket(disk)))) {
                Ok(session) => return session,
                Err(panic) if Instant::now() > deadline => resume_unwind(panic),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }
}

/// What a panic says.
fn told(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_else(|| "panicked".into())
}
