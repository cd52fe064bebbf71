//! One connection: who it is, its one request, and its answer.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Either, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER, SERVER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioTimer;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::answer::{Answer, LINES, Outcome, PROBLEM};
use super::operator::Operator;
use super::problem::{Code, Problem};
use super::routes::{self, Body, Call, Operation};
use super::stream::{Events, Stream};
use crate::limits::bounds::{
    CONTROL_TIMEOUT, MAX_CONTROL_BODY_BYTES, MAX_CONTROL_HEAD_BYTES, MAX_CONTROL_OPERATIONS,
    MAX_EVENT_FOLLOWERS,
};
use crate::limits::thread;
use crate::log::{EventLog, Follower};
use crate::sandbox::ThreadKind;

/// How often it is looked whether a connection is late.
const TICK: Duration = Duration::from_millis(250);

/// What all connections have in common.
#[derive(Debug)]
pub(super) struct Shared {
    operator: Arc<Operator>,
    pub(super) events: Arc<EventLog>,
    /// Changes that are under way: media below some of them may hang, so what only looks has places of its own.
    changes: Arc<AtomicUsize>,
    looks: Arc<AtomicUsize>,
    /// Those that were begun.
    begun: AtomicUsize,
    /// Reloads that nobody waits for.
    reloads: Arc<Rounds>,
    /// Besides root, who may change something.
    owner: u32,
}

impl Shared {
    pub(super) fn new(operator: Arc<Operator>, events: Arc<EventLog>) -> Self {
        let owner = rustix::process::geteuid().as_raw();
        Self {
            operator,
            events,
            changes: Arc::default(),
            looks: Arc::default(),
            begun: AtomicUsize::new(0),
            reloads: Arc::default(),
            owner,
        }
    }

    /// Reads the configuration again on a thread of its own; the log says what comes of it. Those that are asked for while
    /// one is under way are one more, after it.
    pub(super) fn reload(&self) {
        if !self.reloads.begins() {
            return;
        }
        let (operator, reloads) = (self.operator.clone(), self.reloads.clone());
        let run = move || {
            let _panics = Panics(&reloads);
            loop {
                // The log says what has come of it.
                let _ = operator.reload();
                if reloads.is_over() {
                    break;
                }
            }
        };
        if let Err(error) = thread::spawn(ThreadKind::Control, self.thread_name(), run) {
            self.reloads.end();
            tracing::error!(%error, "no thread to read the configuration again; check the limits (ulimit -u, -v)");
        }
    }

    fn thread_name(&self) -> String {
        format!("{}-{}", ThreadKind::Control, self.begun.fetch_add(1, Ordering::Relaxed) % 1000)
    }
}

/// Rounds of something that is done by one thread: the one that is under way, and one that comes after it.
#[derive(Debug, Default)]
struct Rounds(AtomicUsize);

impl Rounds {
    /// Asks for one. True if there is no thread yet.
    fn begins(&self) -> bool {
        let one_more = |rounds: usize| Some(rounds.saturating_add(1).min(2));
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more) == Ok(0)
    }

    /// One is done: whether it was the last one.
    fn is_over(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// There is no thread any more.
    fn end(&self) {
        self.0.store(0, Ordering::Release);
    }
}

/// A thread that ends by a panic is no longer there.
struct Panics<'a>(&'a Rounds);

impl Drop for Panics<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end();
        }
    }
}

/// A place among the operations that are under way.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn among(under_way: &Arc<AtomicUsize>) -> Option<Self> {
        let count = under_way.fetch_add(1, Ordering::AcqRel);
        let place = Self(under_way.clone());
        (count < MAX_CONTROL_OPERATIONS).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How far a connection is.
#[derive(Debug)]
pub(super) struct Progress(Mutex<Stage>);

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// They ask, or take the answer: until when they must have gone on.
    Theirs(Option<Instant>),
    /// An operation is under way.
    Ours,
    /// They follow events, for as long as they like.
    Follows,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Stage::theirs()))
    }

    fn set(&self, stage: Stage) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    fn stage(&self) -> Stage {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing is done for it that would be lost.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.stage(), Stage::Theirs(_))
    }

    /// Whether it follows events.
    pub(super) fn follows(&self) -> bool {
        matches!(self.stage(), Stage::Follows)
    }

    /// Whether it is of no use to wait for the other side.
    fn is_over(&self, stream: &Stream) -> bool {
        match self.stage() {
            Stage::Theirs(deadline) => deadline.is_some_and(|deadline| Instant::now() > deadline + 2 * TICK),
            Stage::Ours => false,
            // While nothing is said to it, nothing else tells.
            Stage::Follows => stream.is_closed(),
        }
    }
}

impl Stage {
    fn theirs() -> Self {
        Self::Theirs(Instant::now().checked_add(CONTROL_TIMEOUT))
    }
}

/// Answers one request, and closes the connection.
pub(super) async fn serve(stream: UnixStream, shared: Arc<Shared>, progress: Arc<Progress>) {
    let stream = Stream::new(stream);
    let client = Arc::new(Client { uid: stream.uid(), shared, progress: progress.clone() });
    let service = service_fn(move |request| {
        let client = client.clone();
        async move { Ok::<_, Infallible>(client.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CONTROL_TIMEOUT)
        .keep_alive(false)
        .half_close(true)
        .max_buf_size(MAX_CONTROL_HEAD_BYTES)
        .serve_connection(stream.clone(), service);
    let mut connection = pin!(connection);
    loop {
        match timeout(TICK, connection.as_mut()).await {
            // What is wrong with it was said to the other side, or there is nobody any more.
            Ok(_) => return,
            Err(_) if progress.is_over(&stream) => return,
            Err(_) => {}
        }
    }
}

struct Client {
    uid: Option<u32>,
    shared: Arc<Shared>,
    progress: Arc<Progress>,
}

impl Client {
    async fn answer(&self, request: Request<Incoming>) -> Response<Either<Full<Bytes>, Events>> {
        let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
        let outcome = match routes::find(&method, &path, request.uri().query()) {
            Ok(call) if call.route.operation == Operation::Events => match self.follow(&call) {
                Ok(follower) => {
                    self.progress.set(Stage::Follows);
                    return stream(follower);
                }
                Err(problem) => Err(problem),
            },
            Ok(call) => self.outcome(call, request).await,
            Err(problem) => Err(problem),
        };
        self.progress.set(Stage::theirs());
        response(outcome).map(Either::Left)
    }

    fn follow(&self, call: &Call) -> Result<Follower, Problem> {
        let follower = self.shared.events.follow(call.query.since, call.query.is_once);
        follower.ok_or_else(|| {
            let text =
                format!("{MAX_EVENT_FOLLOWERS} connections follow events; ask again when one has left");
            Problem::new(Code::Crowded, text)
        })
    }

    async fn outcome(&self, call: Call, request: Request<Incoming>) -> Outcome {
        let changes = call.route.changes();
        if changes && !self.may_change() {
            let who = self.uid.map_or_else(|| "somebody".to_owned(), |uid| format!("user {uid}"));
            let text = format!(
                "{who} may only read here; root and the user of the daemon ({}) may change something",
                self.shared.owner
            );
            return Err(Problem::new(Code::NotAllowed, text));
        }
        let body = body(call.route.body, request).await?;
        self.progress.set(Stage::Ours);
        let (what, disk, uid) = (call.route.operation, call.disk.clone(), self.uid);
        let outcome = self.work(call, body).await;
        if changes {
            let status = outcome.as_ref().map_or_else(|problem| problem.status, |answer| answer.status);
            let problem = outcome.as_ref().err().map(|problem| problem.detail.as_str());
            tracing::info!(operation = ?what, disk, uid, status, problem, "control");
        }
        outcome
    }

    /// Whether it may change something.
    fn may_change(&self) -> bool {
        self.uid.is_some_and(|uid| uid == 0 || uid == self.shared.owner)
    }

    /// Does it on a thread of its own.
    async fn work(&self, call: Call, body: Bytes) -> Outcome {
        let (others, what) = match call.route.changes() {
            true => (&self.shared.changes, "changes"),
            false => (&self.shared.looks, "operations"),
        };
        let Some(place) = Place::among(others) else {
            let text = format!("{MAX_CONTROL_OPERATIONS} {what} are under way; ask again when one is done");
            return Err(Problem::new(Code::Crowded, text));
        };
        let (sender, receiver) = oneshot::channel();
        let operator = self.shared.operator.clone();
        let spawned = thread::spawn(ThreadKind::Control, self.shared.thread_name(), move || {
            let outcome = operator.run(&call, &body);
            drop(place);
            // Who asked may have gone.
            let _ = sender.send(outcome);
        });
        if let Err(error) = spawned {
            let text = format!("there is no thread for it ({error}); check the limits (ulimit -u, -v)");
            return Err(Problem::new(Code::Exhausted, text));
        }
        // It only fails where the thread has panicked, which the log says.
        receiver.await.unwrap_or_else(|_| {
            Err(Problem::new(
                Code::Failed,
                "this is a bug in the program; the log has more, and GET says what is so now",
            ))
        })
    }
}

/// The body of a request.
async fn body(wanted: Body, request: Request<Incoming>) -> Result<Bytes, Problem> {
    let kind = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    let is_known = matches!(&*kind, b"" | b"application/json")
        || (wanted == Body::Patch && &*kind == b"application/merge-patch+json");
    let too_large = || {
        let text = format!("the body may have {MAX_CONTROL_BODY_BYTES} bytes");
        Problem::new(Code::TooLarge, text)
    };
    let body = Limited::new(request.into_body(), MAX_CONTROL_BODY_BYTES);
    let body = match timeout(CONTROL_TIMEOUT, body.collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => return Err(too_large()),
        Ok(Err(error)) => {
            return Err(Problem::new(
                Code::BadRequest,
                format!("the body ends too early, or is none ({error})"),
            ));
        }
        Err(_) => {
            let text = format!("the body was not there within {CONTROL_TIMEOUT:?}");
            return Err(Problem::new(Code::Slow, text));
        }
    };
    if wanted == Body::Nothing && !body.is_empty() {
        return Err(Problem::new(Code::BadRequest, "this request has no body; leave it out"));
    }
    if !is_known && !body.is_empty() {
        let text = format!(
            "the body is {:?}; write it in JSON (Content-Type: application/json)",
            String::from_utf8_lossy(&kind)
        );
        return Err(Problem::new(Code::MediaType, text));
    }
    Ok(body)
}

/// How this server calls itself.
const NAME: HeaderValue = HeaderValue::from_static(concat!("vhost-user-pmem/", env!("CARGO_PKG_VERSION")));

/// Events, a line each.
fn stream(follower: Follower) -> Response<Either<Full<Bytes>, Events>> {
    let mut response = Response::new(Either::Right(Events(follower)));
    let headers = response.headers_mut();
    headers.insert(SERVER, NAME);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(LINES));
    response
}

fn response(outcome: Outcome) -> Response<Full<Bytes>> {
    let (answer, allow) = match outcome {
        Ok(answer) => (answer, None),
        Err(problem) => {
            let body = problem.json() + "\n";
            (Answer { status: problem.status, kind: PROBLEM, body, location: None }, problem.allow)
        }
    };
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let has_body = !answer.body.is_empty();
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(SERVER, NAME);
    if has_body {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.kind));
    }
    if let Some(location) = answer.location.and_then(|it| HeaderValue::from_str(&it).ok()) {
        headers.insert(LOCATION, location);
    }
    if let Some(allow) = allow.and_then(|it| HeaderValue::from_str(&it).ok()) {
        headers.insert(ALLOW, allow);
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}
