//! A postcopy migration: its messages in any order, memory that comes, comes late or does not come, and a front-end that leaves
//! meanwhile. Whoever waits for a page is never waited for: the session ends, and the next one finds all in order.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};

use super::server::World;
use super::with_postcopy_world;
use crate::common::PATIENCE;
use crate::common::frontend::memory::{Memory, USER_BASE};
use crate::common::frontend::message::*;
use crate::common::frontend::pages::{PAGE, Pages, can_wait};
use crate::common::frontend::request::Request;
use crate::common::frontend::ring::Ring;
use crate::common::frontend::wire::{VERSION, Wire};
use crate::common::frontend::{EVENT_IDX, RING_PACKED, SPANS, fd_of};
use crate::common::guarded::found;
use crate::common::is_readable;

/// Steps on one connection.
const STEPS: usize = 40;

/// Requests that a ring has from the beginning.
const REQUESTS: u8 = 12;

/// How long an answer is waited for that needs pages which do not come.
const SHORTLY: Duration = Duration::from_millis(3);

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Part {
    Size,
    Base,
    Addresses,
    Err,
    Call,
    Kick,
    Enable,
    Disable,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Advise,
    Listen,
    End,
    /// All regions, or fewer, with a word that is another.
    Table {
        regions: u8,
        word: Option<(u8, i16)>,
    },
    Acknowledge {
        failure: u8,
    },
    Say {
        ring: u8,
        part: Part,
    },
    Start {
        ring: u8,
    },
    Stop {
        ring: u8,
    },
    Kick {
        ring: u8,
    },
    Bring {
        pages: u8,
    },
    BringAll,
    Features {
        bits: u8,
    },
    AddRegion,
    RemoveRegion,
    ReadConfig,
    Log,
    Reset,
    Other {
        code: u8,
        words: Vec<u8>,
    },
}

#[derive(Debug, Arbitrary)]
struct Input {
    /// Pages come while an answer is waited for.
    brings: bool,
    packed: bool,
    /// In the order in which a migration goes, before the others.
    usual: u8,
    requests: Vec<(bool, u8, u8)>,
    steps: Vec<Step>,
}

/// The front-end that the guest has moved to.
struct FrontEnd {
    wire: Wire,
    memory: Memory,
    pages: Option<Pages>,
    source: Memory,
    rings: Vec<Ring>,
    brings: bool,
}

/// A migration.
pub fn run(data: &[u8]) {
    thread_local! { static CAN_WAIT: bool = can_wait(); }
    if !CAN_WAIT.with(|it| *it) {
        return;
    }
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    with_postcopy_world(|world: &mut World| {
        let mut front_end = FrontEnd::new(Wire::new(world.connect()), &input);
        front_end.negotiate(input.packed);
        let usual = usual().into_iter().take(usize::from(input.usual % 9));
        for step in usual.chain(input.steps).take(STEPS) {
            if front_end.step(&step).is_none() {
                break;
            }
        }
        // Its pages do not come any more, whoever waits for one.
        front_end.leave();
        world.input_is_over();
    });
}

/// What a migration is that goes well.
fn usual() -> [Step; 8] {
    [
        Step::Advise,
        Step::Listen,
        Step::Table { regions: 2, word: None },
        Step::Acknowledge { failure: 0 },
        Step::Start { ring: 0 },
        Step::Bring { pages: 16 },
        Step::BringAll,
        Step::End,
    ]
}

impl FrontEnd {
    fn new(wire: Wire, input: &Input) -> Self {
        let source = Memory::new(&SPANS);
        // Entries of the rings are not looked at before they have come.
        let features = if input.packed { RING_PACKED } else { 0 };
        let mut rings: Vec<Ring> = (0..2).map(|index| Ring::new(&source, index, 64, features)).collect();
        for (is_write, sector, bytes) in input.requests.iter().take(REQUESTS.into()) {
            let (ring, sectors) = (usize::from(*sector % 2), u32::from(*bytes % 16) + 1);
            let request = match is_write {
                true => Request::write((*sector).into(), &vec![*bytes; sectors as usize * 512]),
                false => Request::read((*sector).into(), sectors * 512),
            };
            rings[ring].submit(&request);
        }
        let memory = Memory::new(&SPANS);
        Self { wire, memory, pages: None, source, rings, brings: input.brings }
    }

    fn negotiate(&mut self, packed: bool) {
        let features = !EVENT_IDX & if packed { u64::MAX } else { !RING_PACKED };
        self.say(SET_FEATURES, &[features], &[]);
        self.say(SET_PROTOCOL_FEATURES, &[u64::MAX], &[]);
    }

    /// None where the connection is over, or would be waited for in vain.
    fn step(&mut self, step: &Step) -> Option<()> {
        match step {
            Step::Advise => {
                self.say(POSTCOPY_ADVISE, &[], &[]);
                let (_, file) = self.answer(POSTCOPY_ADVISE)?;
                self.pages = Some(Pages::new(file?, &self.source));
            }
            Step::Listen => self.say(POSTCOPY_LISTEN, &[], &[]),
            Step::End => {
                self.say(POSTCOPY_END, &[], &[]);
                self.answer(POSTCOPY_END)?;
            }
            Step::Table { regions, word } => return self.announce(*regions, *word),
            Step::Acknowledge { failure } => self.say(SET_MEM_TABLE, &[u64::from(*failure)], &[]),
            Step::Say { ring, part } => self.say_of_ring(*ring, *part),
            Step::Start { ring } => {
                use Part::{Addresses, Base, Call, Enable, Err, Kick, Size};
                for part in [Size, Base, Addresses, Err, Call, Kick, Enable] {
                    self.say_of_ring(*ring, part);
                }
            }
            Step::Stop { ring } => {
                self.say(GET_VRING_BASE, &[u64::from(*ring % 3)], &[]);
                self.answer(GET_VRING_BASE)?;
            }
            Step::Kick { ring } => self.rings[usize::from(*ring) % 2].kick.signal(),
            Step::Bring { pages } => {
                for _ in 0..*pages % 64 {
                    if !self.pages.as_mut()?.bring_any_within(SHORTLY) {
                        break;
                    }
                }
            }
            Step::BringAll => {
                let (start, end) = (SPANS[0].guest_start, self.source.allocate(1, PAGE));
                for page in (start..end).step_by(PAGE as usize) {
                    let _ = self.pages.as_mut()?.try_bring(page);
                }
            }
            Step::Features { bits } => {
                let few = u64::from(*bits);
                self.say(SET_FEATURES, &[!EVENT_IDX & !(few << 24 | few << 33)], &[]);
            }
            Step::AddRegion => self.say_with_memory(ADD_MEM_REG, &self.slot()),
            Step::RemoveRegion => self.say(REM_MEM_REG, &self.slot(), &[]),
            Step::ReadConfig => self.say(GET_CONFIG, &[60 << 32, 0, 0, 0, 0, 0, 0, 0, 0], &[]),
            Step::Log => self.say_with_memory(SET_LOG_BASE, &[1 << 18, 0]),
            Step::Reset => self.say(RESET_DEVICE, &[], &[]),
            Step::Other { code, words } => {
                let words: Vec<u64> = words.iter().take(8).map(|word| u64::from(*word)).collect();
                self.say(u32::from(*code % 46), &words, &[]);
            }
        }
        Some(())
    }

    /// All that it has is given up once the back-end has noticed.
    fn leave(self) {
        let Self { wire, .. } = self;
        wire.hang_up();
    }

    fn slot(&self) -> [u64; 5] {
        let start = 1 << 40;
        [0, start, PAGE, USER_BASE + start, 0]
    }

    fn say(&self, code: u32, words: &[u64], files: &[BorrowedFd<'_>]) {
        let payload: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        // Where the back-end has closed, whatever comes next will notice.
        let _ = self.wire.send(code, VERSION, &payload, files);
    }

    fn say_with_memory(&self, code: u32, words: &[u64]) {
        self.say(code, words, &[self.memory.fd()]);
    }

    fn say_of_ring(&self, ring: u8, part: Part) {
        let at = &self.rings[usize::from(ring) % 2];
        let index = u64::from(at.index);
        let halves = |value: u64| index | value << 32;
        match part {
            Part::Size => self.say(SET_VRING_NUM, &[halves(64)], &[]),
            Part::Base => {
                self.say(SET_VRING_BASE, &[halves(if at.is_packed() { 0x8000_8000 } else { 0 })], &[])
            }
            Part::Addresses => {
                let [descriptors, used, available] = [at.descriptors, at.used, at.available].map(Ring::user);
                self.say(SET_VRING_ADDR, &[index, descriptors, used, available, 0], &[]);
            }
            Part::Err => self.say(SET_VRING_ERR, &[index], &[fd_of(&*at.err.current())]),
            Part::Call => self.say(SET_VRING_CALL, &[index], &[fd_of(&*at.call.current())]),
            Part::Kick => self.say(SET_VRING_KICK, &[index], &[fd_of(&*at.kick.current())]),
            Part::Enable => self.say(SET_VRING_ENABLE, &[halves(1)], &[]),
            Part::Disable => self.say(SET_VRING_ENABLE, &[halves(0)], &[]),
        }
    }

    /// Announces memory; where it is answered, it is known then where that is mapped.
    fn announce(&mut self, regions: u8, word: Option<(u8, i16)>) -> Option<()> {
        let mut words = self.memory.table();
        let count = usize::from(regions % 3);
        words[0] = count as u64;
        words.truncate(1 + 4 * count);
        if let Some((at, more)) = word {
            let at = usize::from(at) % words.len();
            words[at] = words[at].wrapping_add_signed(more.into());
        }
        let files = vec![self.memory.fd(); count];
        self.say(SET_MEM_TABLE, &words, &files);
        // One that is not listened for is not answered, but the next message is.
        self.say(GET_QUEUE_NUM, &[], &[]);
        loop {
            let (code, payload, _) = self.next_answer()?;
            match code {
                SET_MEM_TABLE if payload.len() > 8 => self.mapped(&payload),
                GET_QUEUE_NUM => return Some(()),
                _ => {}
            }
        }
    }

    fn mapped(&mut self, payload: &[u8]) {
        let words: Vec<u64> =
            payload.chunks_exact(8).map(|it| u64::from_le_bytes(it.try_into().unwrap())).collect();
        let Some(pages) = &mut self.pages else {
            found("memory is announced as missing, and nobody was advised")
        };
        pages.forget_places();
        for region in words[1..].chunks_exact(4) {
            if !region[2].is_multiple_of(PAGE) || region[2] == 0 {
                found("a region is mapped at no page");
            }
            pages.mapped(region[0], region[1], region[2]);
        }
    }

    /// The answer to the last message of this kind.
    fn answer(&mut self, code: u32) -> Option<(Vec<u8>, Option<File>)> {
        loop {
            let (got, payload, file) = self.next_answer()?;
            if got == code {
                return Some((payload, file));
            }
        }
    }

    /// Where pages come, an answer has to come as well.
    fn next_answer(&mut self) -> Option<(u32, Vec<u8>, Option<File>)> {
        let limit = if self.brings { PATIENCE } else { SHORTLY };
        let since = Instant::now();
        while !is_readable(self.wire.socket(), Duration::from_micros(200)) {
            if since.elapsed() > limit {
                return if self.brings { found("no answer, though pages come") } else { None };
            }
            if let Some(pages) = self.pages.as_mut().filter(|_| self.brings) {
                while pages.bring_any_within(Duration::ZERO) {}
            }
        }
        let (message, files) = self.wire.receive_with_files()?;
        Some((message.code, message.payload, files.into_iter().next().map(File::from)))
    }
}
