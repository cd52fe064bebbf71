//! Events: the lines of the log that have a name ([`kinds`]), kept for whoever follows them, whatever the log's own level is.
//!
//! The last ones are kept. Whoever falls behind loses some, and is told how many; nobody who logs waits.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use serde_json::{Map, Value, json};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::layer::{Context as LayerContext, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::kinds;
use crate::limits::bounds::{MAX_EVENT_BYTES, MAX_EVENT_FOLLOWERS, MAX_EVENT_TEXT_BYTES, MAX_EVENTS};

/// Bytes that a follower is given at once, or a little more.
const CHUNK_BYTES: usize = 16 << 10;

/// The last events, as lines of JSON.
#[derive(Debug, Default)]
pub(crate) struct EventLog(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    bytes: usize,
    /// The number of the newest one; the first has the number 1.
    newest: u64,
    /// Those that follow, and who is to be woken for each.
    followers: Vec<(u64, Option<Waker>)>,
    next_follower: u64,
    is_over: bool,
}

/// Where somebody begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// With what comes from now on.
    Now,
    /// Behind the event of this number.
    Number(u64),
}

/// Somebody who follows.
#[derive(Debug)]
pub(crate) struct Follower {
    log: Arc<EventLog>,
    id: u64,
    /// The last one that it has.
    last: u64,
    /// It ends when it has all there are.
    is_once: bool,
}

impl Kept {
    /// The number before the oldest one that is kept.
    fn before_oldest(&self) -> u64 {
        self.newest.saturating_sub(self.lines.len() as u64)
    }

    fn push(&mut self, line: String) {
        self.newest = self.newest.saturating_add(1);
        self.bytes = self.bytes.saturating_add(line.len());
        self.lines.push_back(line);
        while self.lines.len() > MAX_EVENTS || self.bytes > MAX_EVENT_BYTES {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes = self.bytes.saturating_sub(oldest.len());
        }
    }

    fn take_wakers(&mut self) -> Vec<Waker> {
        self.followers.iter_mut().filter_map(|(_, waker)| waker.take()).collect()
    }
}

impl EventLog {
    /// Follows them; `None` where as many do as may.
    pub(crate) fn follow(self: &Arc<Self>, since: Since, is_once: bool) -> Option<Follower> {
        let mut kept = self.kept();
        if kept.followers.len() >= MAX_EVENT_FOLLOWERS {
            return None;
        }
        let last = match since {
            Since::Now => kept.newest,
            // A number that is not reached yet is of another process: all of them are new.
            Since::Number(number) if number > kept.newest => 0,
            Since::Number(number) => number,
        };
        let id = kept.next_follower;
        kept.next_follower = id.wrapping_add(1);
        kept.followers.push((id, None));
        Some(Follower { log: self.clone(), id, last, is_once })
    }

    /// Followers have what there is, and no more comes.
    pub(crate) fn end(&self) {
        let wakers = {
            let mut kept = self.kept();
            kept.is_over = true;
            kept.take_wakers()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    fn push(&self, name: &str, mut fields: Map<String, Value>) {
        let mut time = String::new();
        // Writing to a string cannot fail.
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        fields.insert("event".to_owned(), name.into());
        fields.insert("time".to_owned(), time.into());
        let wakers = {
            let mut kept = self.kept();
            fields.insert("seq".to_owned(), kept.newest.saturating_add(1).into());
            kept.push(format!("{}\n", Value::Object(fields)));
            kept.take_wakers()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower {
    /// The next lines, as soon as there are some; `None` when no more will come.
    pub(crate) fn poll_next(&mut self, context: &Context<'_>) -> Poll<Option<String>> {
        let mut kept = self.log.kept();
        let mut text = String::new();
        if let Some(lost @ 1..) = kept.before_oldest().checked_sub(self.last) {
            self.last = kept.before_oldest();
            text = format!("{}\n", json!({"event": "lost", "seq": self.last, "count": lost}));
        }
        let skipped = usize::try_from(self.last.saturating_sub(kept.before_oldest())).unwrap_or(usize::MAX);
        for line in kept.lines.iter().skip(skipped) {
            if text.len() >= CHUNK_BYTES {
                break;
            }
            text += line;
            self.last = self.last.saturating_add(1);
        }
        if !text.is_empty() {
            return Poll::Ready(Some(text));
        }
        if self.is_once || kept.is_over {
            return Poll::Ready(None);
        }
        let place = kept.followers.iter_mut().find(|(id, _)| *id == self.id);
        place.into_iter().for_each(|(_, waker)| *waker = Some(context.waker().clone()));
        Poll::Pending
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.log.kept().followers.retain(|(id, _)| *id != self.id);
    }
}

/// What `tracing` hands the lines with a name to.
struct Recorder(Arc<EventLog>);

/// Has the lines with a name kept.
pub(crate) fn recorder<S>(log: &Arc<EventLog>) -> impl Layer<S> + Send + Sync + 'static
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let is_ours = |line: &tracing::Metadata<'_>| {
        line.is_event() && kinds::is_name(line.name()) && line.target().starts_with(env!("CARGO_CRATE_NAME"))
    };
    Recorder(log.clone()).with_filter(filter_fn(is_ours).with_max_level_hint(LevelFilter::INFO))
}

impl<S: tracing::Subscriber> Layer<S> for Recorder {
    fn on_event(&self, event: &tracing::Event<'_>, _: LayerContext<'_, S>) {
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        self.0.push(event.metadata().name(), fields.0);
    }
}

/// What a line says, by the names of its fields.
struct Fields(Map<String, Value>);

impl Fields {
    fn add(&mut self, field: &tracing::field::Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn add_text(&mut self, field: &tracing::field::Field, mut text: String) {
        if text.len() > MAX_EVENT_TEXT_BYTES {
            let end = (0..=MAX_EVENT_TEXT_BYTES).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
            text.truncate(end);
            text.push('…');
        }
        self.add(field, text);
    }
}

impl tracing::field::Visit for Fields {
    fn record_f64(&mut self, field: &tracing::field::Field, value: f64) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &tracing::field::Field, value: i64) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &tracing::field::Field, value: bool) {
        self.add(field, value);
    }

    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        self.add_text(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        self.add_text(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn push(log: &EventLog, name: &str) {
        log.push(name, Map::new());
    }

    /// Everything that there is for it by now.
    fn all(follower: &mut Follower) -> Vec<Value> {
        let mut events = Vec::new();
        while let Poll::Ready(Some(text)) = follower.poll_next(&Context::from_waker(Waker::noop())) {
            events.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
        }
        events
    }

    #[test]
    fn each_follower_has_each_event_once_from_where_it_begins() {
        let log = Arc::<EventLog>::default();
        push(&log, "a");
        let mut from_now = log.follow(Since::Now, false).unwrap();
        push(&log, "b");
        push(&log, "c");
        let seen = |since, is_once| {
            let events = all(&mut log.follow(since, is_once).unwrap());
            events.iter().map(|event| event["seq"].as_u64().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(seen(Since::Number(0), true), [1, 2, 3]);
        assert_eq!(seen(Since::Number(2), false), [3]);
        assert_eq!(seen(Since::Number(3), true), [0_u64; 0]);
        assert_eq!(seen(Since::Number(4), true), [1, 2, 3], "of another process");
        let events = all(&mut from_now);
        assert_eq!((events.len(), &events[0]["event"], &events[1]["event"]), (2, &"b".into(), &"c".into()));
        assert!(events[0]["time"].as_str().unwrap().ends_with('Z'));
        assert!(all(&mut from_now).is_empty());
    }

    #[test]
    fn who_falls_behind_is_told_how_many_are_lost() {
        let log = Arc::<EventLog>::default();
        let mut slow = log.follow(Since::Now, false).unwrap();
        (0..MAX_EVENTS + 10).for_each(|_| push(&log, "a"));
        let events = all(&mut slow);
        assert_eq!(events[0], json!({"event": "lost", "seq": 10, "count": 10}));
        assert_eq!((events.len(), &events[1]["seq"]), (MAX_EVENTS + 1, &11.into()));
        // Long ones take others' place, too.
        let long = MAX_EVENT_TEXT_BYTES;
        for _ in 0..MAX_EVENTS {
            log.push("a", Map::from_iter([("text".to_owned(), "x".repeat(long).into())]));
        }
        let kept = log.kept();
        assert!(kept.bytes <= MAX_EVENT_BYTES && kept.lines.len() < MAX_EVENTS, "{}", kept.lines.len());
        assert_eq!(kept.bytes, kept.lines.iter().map(String::len).sum::<usize>());
    }

    #[test]
    fn who_waits_is_woken_and_who_is_gone_is_forgotten() {
        let log = Arc::<EventLog>::default();
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(woken.clone());
        let mut followers: Vec<_> =
            (0..MAX_EVENT_FOLLOWERS).map(|_| log.follow(Since::Now, false).unwrap()).collect();
        assert!(log.follow(Since::Now, false).is_none(), "as many follow as may");
        let first = &mut followers[0];
        assert!(first.poll_next(&Context::from_waker(&waker)).is_pending());
        push(&log, "a");
        push(&log, "b");
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "for both of them");
        assert_eq!(all(first).len(), 2);
        assert!(first.poll_next(&Context::from_waker(&waker)).is_pending());
        log.end();
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
        assert_eq!(first.poll_next(&Context::from_waker(&waker)), Poll::Ready(None));
        drop(followers);
        assert!(log.kept().followers.is_empty());
    }
}
