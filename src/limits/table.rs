//! The [`bounds`](super::bounds) as users are told of them: the README and the manual page show this table.

use std::fmt;
use std::time::Duration;

use super::bounds::*;

/// A bound as users are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    /// What there may be so much of.
    pub what: &'static str,
    /// How much, with its unit.
    pub limit: String,
    /// What happens when somebody wants more.
    pub beyond: &'static str,
    /// The metric that counts it, where there is one.
    pub metric: Option<&'static str>,
}

/// A number with its unit, as people write it.
enum Amount {
    Count(u64),
    Bytes(u64),
    Time(Duration),
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Count(number) => write!(f, "{}", grouped(number)),
            Self::Bytes(bytes) => {
                let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
                match units.into_iter().find(|(shift, _)| bytes >> shift != 0 && bytes % (1 << shift) == 0) {
                    Some((shift, unit)) => write!(f, "{} {unit}", bytes >> shift),
                    None => write!(f, "{} bytes", grouped(bytes)),
                }
            }
            Self::Time(time) if time < Duration::from_millis(1) => write!(f, "{} µs", time.as_micros()),
            Self::Time(time) if time.subsec_millis() == 0 => write!(f, "{} s", time.as_secs()),
            Self::Time(time) => write!(f, "{} ms", time.as_millis()),
        }
    }
}

/// With a comma before each three digits.
fn grouped(number: u64) -> String {
    match number.checked_div(1000) {
        Some(0) | None => number.to_string(),
        Some(thousands) => format!("{},{:03}", grouped(thousands), number % 1000),
    }
}

fn count(number: impl TryInto<u64>) -> String {
    Amount::Count(number.try_into().unwrap_or(u64::MAX)).to_string()
}

fn bytes(number: impl TryInto<u64>) -> String {
    Amount::Bytes(number.try_into().unwrap_or(u64::MAX)).to_string()
}

fn time(time: Duration) -> String {
    Amount::Time(time).to_string()
}

const fn quarters(number: usize) -> &'static str {
    match number {
        1 => "a quarter",
        2 => "half",
        3 => "three quarters",
        _ => "all",
    }
}

const fn row(what: &'static str, limit: String, beyond: &'static str, metric: Option<&'static str>) -> Bound {
    Bound { what, limit, beyond, metric }
}

/// What counts messages that are refused, and connections that are closed.
const REFUSED: Option<&str> = Some("refused_messages_total");
const CLOSED: Option<&str> = Some("closed_connections_total");

/// The bounds of peers, as the README lists them.
pub fn of_peers() -> Vec<Bound> {
    [of_guests(), of_connections(), of_resources(), of_the_log()].into_iter().flatten().collect()
}

/// All bounds, as the manual page lists them.
pub fn all() -> Vec<Bound> {
    of_peers().into_iter().chain(of_operators()).collect()
}

/// What a guest's driver can ask for.
fn of_guests() -> Vec<Bound> {
    const FAILURES: Option<&str> = Some("failures_total");
    let sectors = |number: u32| bytes(u64::from(number) << 9);
    vec![
        row(
            "queues of a disk",
            format!(
                "{}; the metrics have the first {} one by one",
                count(MAX_QUEUES),
                count(MAX_LISTED_RINGS)
            ),
            "exit code 2 (`queues=`)",
            None,
        ),
        row("entries of a queue", count(MAX_QUEUE_SIZE), "NACK", REFUSED),
        row("descriptors of a request", count(MAX_CHAIN), "the request fails (IOERR)", FAILURES),
        row(
            "data of a request",
            bytes(MAX_REQUEST_BYTES + 1) + " less one byte",
            "the request fails (IOERR)",
            FAILURES,
        ),
        row(
            "what a queue does at a time",
            format!("{} requests, or {}", count(MAX_TURN_REQUESTS), bytes(MAX_TURN_BYTES)),
            "the worker's other queues have their turn first",
            None,
        ),
        row(
            "what is done of a request at a time",
            format!(
                "{}; {} of space that is given back",
                bytes(MAX_SLICE_BYTES),
                bytes(MAX_UNMAP_SLICE_BYTES)
            ),
            "the request is done in slices, and other queues have their turn between them",
            None,
        ),
        row(
            "requests under way on media that may make one wait",
            format!(
                "{} of a queue; {} of a worker that the kernel does by itself (block devices); {} threads of a disk, each of which \
                 ends after {} without work; writes of a local file up to {} are done by the worker",
                count(MAX_PENDING_REQUESTS),
                count(MAX_DIRECT_TRANSFERS),
                count(MAX_IO_THREADS),
                time(IO_THREAD_IDLE_TIMEOUT),
                bytes(MAX_QUICK_WRITE_BYTES)
            ),
            "the next ones wait for those before them",
            None,
        ),
        row("ranges of a DISCARD or WRITE_ZEROES", count(MAX_RANGES), "the request fails (UNSUPP)", FAILURES),
        row(
            "length of such a range that is announced",
            format!("{} and {}", sectors(MAX_DISCARD_SECTORS), sectors(MAX_WRITE_ZEROES_SECTORS)),
            "it is done all the same",
            None,
        ),
        row(
            "ranges of bad blocks of a disk",
            format!(
                "{} are remembered, {} are in the metrics",
                count(MAX_BAD_BLOCKS),
                count(MAX_LISTED_BAD_BLOCKS)
            ),
            "others are found when they are read; the sum has all that are remembered",
            Some("bad_bytes"),
        ),
    ]
}

/// What a front-end can do with its connection.
fn of_connections() -> Vec<Bound> {
    vec![
        row(
            "front-ends of a disk",
            format!(
                "{}, and until {} those that are being closed; of a template {}, and twice as many",
                count(MAX_FRONT_ENDS),
                count(MAX_CONNECTIONS),
                count(MAX_PRIVATE_FRONT_ENDS)
            ),
            "the oldest connection that has not completed a message is closed, or if there is none, the new one",
            CLOSED,
        ),
        row(
            "a message",
            format!(
                "{} besides its header, {} descriptors",
                bytes(MAX_MESSAGE_BYTES),
                count(MAX_MESSAGE_DESCRIPTORS)
            ),
            "the connection is closed; further descriptors are closed",
            CLOSED,
        ),
        row(
            "time from the first byte of a message to its last, and until there is room for an answer",
            time(MESSAGE_TIMEOUT),
            "the connection is closed",
            CLOSED,
        ),
        row(
            "memory regions of a front-end",
            format!("{}; {} in one SET_MEM_TABLE", count(MAX_REGIONS), count(MAX_TABLE_REGIONS)),
            "NACK",
            REFUSED,
        ),
        row(
            "time that a device's state may take, and its end once that is asked for",
            format!("{}; {}", time(STATE_TRANSFER_TIMEOUT), time(STATE_TIMEOUT)),
            "CHECK_DEVICE_STATE fails",
            None,
        ),
        row(
            "messages of a connection with descriptors that are refused for what they are",
            count(MAX_REFUSED_MESSAGES),
            "the connection is closed",
            Some("refused_descriptors_total"),
        ),
        row(
            "the processes that check descriptors",
            format!(
                "{}, of which {} while descriptors of the daemon's user are on their way; {} of each disk that still close what its front-ends have sent, and one for each connection that there is then; a message waits {} for one to end",
                time(CHECKER_TIMEOUT),
                time(IN_FLIGHT_TIMEOUT),
                count(MAX_RETIRED_CHECKERS),
                time(RETIRED_CHECKERS_TIMEOUT)
            ),
            "the connection is closed, and the process replaced; while too many of a disk close, who connects to it waits, and so does a message with descriptors, whose connection is closed in the end",
            Some("budget_refusals_total"),
        ),
        row(
            "time that a front-end holds up its worker: a call of its driver, a kick's lock, a turn in which guest memory is waited for",
            format!(
                "{} of what takes more than {} of the processor (turns: {} of more than {}, with waits for pages unless the disk is populated), from {HOLD_UPS} times on, besides 1/{HOLD_UP_SHARE} of the time; {}, nice {OWN_WORKER_NICE}, pauses up to {}; a turn is ended when a round has taken {} and pages are the reason",
                time(HOLD_UP),
                time(LONG_CALL),
                time(HOLD_UP_TURNS),
                time(LONG_TURN),
                time(HOLD_UPS_MEMORY),
                time(MAX_PAUSE),
                time(MAX_ROUND)
            ),
            "the disk has workers of its own, if it shares one, behind all others and on any CPU, until nothing has taken long for that time; they pause after long turns. Where none can be started, another serves it, and it is tried again every few seconds",
            Some("hold_ups_total"),
        ),
    ]
}

/// What the front-ends of all disks share ([`budget`](super::budget) and `map_count`).
fn of_resources() -> Vec<Bound> {
    const REFUSALS: Option<&str> = Some("budget_refusals_total");
    let (memory, threads) = (quarters(MEMORY_MAPPING_QUARTERS), quarters(THREAD_MAPPING_QUARTERS));
    vec![
        row("guest memory of all front-ends", bytes(MAX_GUEST_MEMORY_BYTES), "NACK", REFUSALS),
        row(
            "memory regions of all front-ends",
            format!("`vm.max_map_count` / {}", count(MAPPINGS_PER_REGION)),
            "NACK",
            REFUSALS,
        ),
        row(
            "descriptors of all front-ends",
            format!(
                "the limit of open files less those that are open at the start (each disk has {}, or {} with DAX), {} to spare, and {} for each disk that comes later; a connection counts as {}, a ring as {}",
                count(DISK_DESCRIPTORS),
                count(DAX_DISK_DESCRIPTORS),
                count(PROCESS_DESCRIPTORS),
                count(DISK_DESCRIPTORS),
                count(CONNECTION_DESCRIPTORS),
                count(RING_DESCRIPTORS)
            ),
            "the connection is closed; NACK of a kick, call or err descriptor",
            REFUSALS,
        ),
        row(
            "threads of all front-ends",
            format!(
                "{}, or {} for each disk if that is more; a connection counts as {}",
                count(MAX_THREADS),
                count(MAX_THREADS_PER_DISK),
                count(CONNECTION_THREADS)
            ),
            "the connection is closed; NACK of a postcopy migration",
            REFUSALS,
        ),
        row(
            "mappings of the process",
            format!("guest memory: {memory} of `vm.max_map_count`; with threads: {threads}"),
            "NACK, or the connection is closed",
            REFUSED,
        ),
        row(
            "address space that stays free (`ulimit -v`)",
            format!(
                "{}; {} when a thread starts",
                bytes(MIN_FREE_ADDRESS_SPACE_BYTES),
                bytes(MIN_THREAD_ADDRESS_SPACE_BYTES)
            ),
            "NACK, or the connection is closed",
            REFUSED,
        ),
        row("ranges of memory that are watched for faults", count(MAX_WATCHED_RANGES), "NACK", REFUSED),
    ]
}

/// What the log and the metrics can hold.
fn of_the_log() -> Vec<Bound> {
    vec![
        row(
            "lines of the log that peers cause",
            format!("{} a second for each cause and disk", count(MAX_LOG_LINES_PER_SECOND)),
            "the next such line says in `suppressed=` how many were left out",
            Some("suppressed_log_lines_total"),
        ),
        row(
            "lines of the log that nobody has read",
            format!("{}, or {}", count(MAX_WAITING_LOG_LINES), bytes(MAX_WAITING_LOG_BYTES)),
            "further lines are dropped, and the log says how many",
            Some("dropped_log_lines_total"),
        ),
        row(
            "a request for metrics",
            format!(
                "{}; {} with its answer; {MAX_METRICS_READERS} at a time",
                bytes(MAX_HTTP_HEAD_BYTES),
                time(METRICS_TIMEOUT)
            ),
            "HTTP status 431; the connection is closed; the oldest connection is closed",
            None,
        ),
        row(
            "a request at the control socket",
            format!(
                "{}, and a body of {}; {} to ask, and as long to take the answer; {MAX_CONTROL_CONNECTIONS} connections, and \
                 {MAX_CONTROL_OPERATIONS} changes at a time and as many that only look, and {MAX_EVENT_FOLLOWERS} that follow events, of which the last \
                 {MAX_EVENTS} or {} are kept, and of a text in them {}; {} to leave a disk that is removed (`drain`)",
                bytes(MAX_CONTROL_HEAD_BYTES),
                bytes(MAX_CONTROL_BODY_BYTES),
                time(CONTROL_TIMEOUT),
                bytes(MAX_EVENT_BYTES),
                bytes(MAX_EVENT_TEXT_BYTES),
                time(MAX_DRAIN_TIMEOUT)
            ),
            "HTTP status 431, 413, 408; the oldest connection that waits for nothing is closed, 503; who follows is told how many events are lost; 400",
            None,
        ),
    ]
}

/// What an operator can ask for, and how long the daemon waits for others.
fn of_operators() -> Vec<Bound> {
    vec![
        row(
            "data segments of a request that are announced",
            count(MAX_SEG_MAX),
            "exit code 2 (`seg-max=`)",
            None,
        ),
        row(
            "time that a request may take and not be called slow; how often it is looked for those that have not ended",
            format!(
                "{}; as `slow-ms=` says, at least every {} and at most every {}",
                time(Duration::from_millis(MAX_SLOW_MS.into())),
                time(SLOW_INTERVALS.1),
                time(SLOW_INTERVALS.0)
            ),
            "exit code 2 (`slow-ms=`)",
            Some("slow_requests_total"),
        ),
        row("a configuration file", bytes(MAX_CONFIG_FILE_BYTES), "exit code 2 (`--config`)", None),
        row("serial number", bytes(SERIAL_BYTES), "exit code 2 (`serial=`)", None),
        row("path of a socket", bytes(MAX_SOCKET_PATH_BYTES), "exit code 12", None),
        row(
            "time to poll empty queues",
            time(Duration::from_micros(MAX_POLL_US)),
            "exit code 2 (`--poll-max-us`)",
            None,
        ),
        row(
            "metrics wait for a busy worker",
            time(COLLECT_TIMEOUT),
            "its queues are left out this time",
            None,
        ),
        row(
            "a start waits for another that changes sockets in the same folder",
            time(SOCKET_FOLDER_TIMEOUT),
            "exit code 12",
            None,
        ),
        row("a start waits for a lease on the file (NFS, Samba)", time(LEASE_TIMEOUT), "exit code 1", None),
        row(
            "a start waits for the lock of a process that has ended",
            time(ENDED_HOLDER_TIMEOUT),
            "exit code 9",
            None,
        ),
        row(
            "the end waits for media that do not answer",
            format!(
                "{}, or as `--stop-timeout` says: at most {} s",
                time(STOP_TIMEOUT),
                count(MAX_STOP_TIMEOUT_S)
            ),
            "it names what was given up; exit code 15",
            None,
        ),
        row(
            "a request waits for media before the log names it",
            time(STALL_INTERVAL),
            "a line as often",
            Some("oldest_request_seconds"),
        ),
        row(
            "the end waits for the log, for who follows events and for populating, and a disk's removal for its last use",
            format!(
                "{}; {}; {}; {}",
                time(LAST_OUTPUT_TIMEOUT),
                time(LAST_EVENTS_TIMEOUT),
                time(THREAD_STOP_TIMEOUT),
                time(CLOSE_TIMEOUT)
            ),
            "the last lines are lost; the last events are; the process ends all the same; its file is closed later",
            None,
        ),
        row(
            "the service manager takes a message, and the name of a socket",
            format!("{}; {}", time(NOTIFY_TIMEOUT), bytes(MAX_KEPT_NAME_BYTES)),
            "a warning; that socket is not kept",
            None,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_units() {
        for (amount, text) in [
            (Amount::Count(7), "7"),
            (Amount::Count(32_768), "32,768"),
            (Amount::Count(1_000_007), "1,000,007"),
            (Amount::Bytes(0), "0 bytes"),
            (Amount::Bytes(1000), "1,000 bytes"),
            (Amount::Bytes(4096), "4 KiB"),
            (Amount::Bytes(3 << 40), "3 TiB"),
            (Amount::Time(Duration::from_secs(60)), "60 s"),
            (Amount::Time(Duration::from_millis(1500)), "1500 ms"),
        ] {
            assert_eq!(amount.to_string(), text);
        }
    }
}
