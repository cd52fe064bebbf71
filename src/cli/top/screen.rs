//! The terminal: keys come from it, the view goes to it, and it is left as it was found, however this ends.

use std::io::{self, BufWriter, Stdout, Write as _};
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::style::{Attribute, Print, SetAttribute, SetForegroundColor};
use crossterm::terminal::{self, EnterAlternateScreen, LeaveAlternateScreen};
use crossterm::{execute, queue};
use ratatui_core::backend::{Backend, ClearType, WindowSize};
use ratatui_core::buffer::Cell;
use ratatui_core::layout::{Position, Size};
use ratatui_core::style::{Color, Modifier};
use ratatui_core::terminal::Terminal;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use super::draw::{Scene, draw};
use super::rates::{Picture, picture};
use super::sample::Sample;
use super::source::Source;
use super::view::{Key, View};
use crate::limits::thread;

/// How long a key, a signal or a sample waits at most before it is seen.
const TICK: Duration = Duration::from_millis(100);

/// What came from the server: a sample, or why there is none.
type News = Result<Sample, String>;

/// Shows the view until the user has seen enough.
///
/// # Errors
/// The terminal does not do what it is told.
pub(super) fn run(source: Source, interval: Duration, view: View) -> io::Result<()> {
    let is_over = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        flag::register(signal, Arc::clone(&is_over))?;
    }
    let socket = source.socket().display().to_string();
    let news = follow(source, interval)?;
    let is_coloured = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let entered = Entered::new()?;
    end_with_the_terminal()?;
    let mut terminal = Terminal::new(Screen(BufWriter::new(io::stdout())))?;
    let mut watched = Watched::new(view);
    while !is_over.load(Ordering::Relaxed) {
        match news.try_recv() {
            Ok(news) => watched.hear(news),
            Err(TryRecvError::Empty) => {}
            // Its thread has panicked, and the message has gone to the terminal.
            Err(TryRecvError::Disconnected) => break,
        }
        let scene = watched.scene(&socket, interval, is_coloured);
        terminal.draw(|frame| draw(frame.buffer_mut(), &scene))?;
        if event::poll(TICK)? && !watched.react(&event::read()?) {
            break;
        }
    }
    drop(entered);
    Ok(())
}

/// Ends the process once its terminal is gone, on a thread that ends with it: the first one may be in `event::poll`, which then reads
/// again and again and does not return (crossterm 0.29).
fn end_with_the_terminal() -> io::Result<()> {
    thread::spawn_before_sandbox("terminal", || {
        let input = io::stdin();
        // Without an event that is asked for, a hang-up is all there is to wait for.
        while poll(&mut [PollFd::new(&input, PollFlags::empty())], None) == Err(Errno::INTR) {}
        // Ignored: there is nobody left to tell.
        let _ = low_level::emulate_default_handler(SIGHUP);
    })?;
    Ok(())
}

/// Asks the server again and again, on a thread that ends with the process: a server that does not answer holds up no key.
fn follow(source: Source, interval: Duration) -> io::Result<Receiver<News>> {
    let (sender, receiver) = sync_channel(1);
    thread::spawn_before_sandbox("samples", move || {
        loop {
            let begun = Instant::now();
            if sender.send(source.sample().map_err(|error| error.to_string())).is_err() {
                return;
            }
            sleep(interval.saturating_sub(begun.elapsed()));
        }
    })?;
    Ok(receiver)
}

/// What has been seen by now.
struct Watched {
    view: View,
    last: Option<Sample>,
    /// Of the last two samples.
    picture: Picture,
    /// What is shown: another one while the view is paused.
    shown: Picture,
    away: Option<(Instant, String)>,
}

impl Watched {
    fn new(view: View) -> Self {
        let (picture, shown) = Default::default();
        Self { view, last: None, picture, shown, away: None }
    }

    fn hear(&mut self, news: News) {
        match news {
            Ok(sample) => {
                self.away = None;
                self.picture = picture(self.last.as_ref(), &sample);
                self.last = Some(sample);
            }
            Err(why) => {
                let since = self.away.take().map_or_else(Instant::now, |(since, _)| since);
                self.away = Some((since, why));
            }
        }
        self.show();
    }

    fn show(&mut self) {
        if !self.view.is_paused {
            self.shown.clone_from(&self.picture);
        }
    }

    fn scene<'a>(&'a self, socket: &'a str, interval: Duration, is_coloured: bool) -> Scene<'a> {
        let away = self.away.as_ref().map(|(since, why)| (since.elapsed(), why.as_str()));
        Scene { view: &self.view, picture: &self.shown, socket, interval, away, is_coloured }
    }

    /// Says whether to go on. A terminal of another size is seen when it is drawn to.
    fn react(&mut self, event: &Event) -> bool {
        let Event::Key(key) = event else { return true };
        if key.kind == KeyEventKind::Release {
            return true;
        }
        let modifiers = key.modifiers;
        let key = match key.code {
            KeyCode::Char('c' | 'd') if modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Char(letter) => Key::Char(letter),
            KeyCode::Enter => Key::Enter,
            KeyCode::Esc => Key::Escape,
            KeyCode::Backspace => Key::Backspace,
            KeyCode::Up => Key::Up,
            KeyCode::Down => Key::Down,
            KeyCode::PageUp => Key::PageUp,
            KeyCode::PageDown => Key::PageDown,
            KeyCode::Home => Key::Home,
            KeyCode::End => Key::End,
            _ => return true,
        };
        // A terminal sends Escape and what follows it at once as it does this key with Alt.
        if modifiers.contains(KeyModifiers::ALT) && !self.view.press(Key::Escape, &self.shown) {
            return false;
        }
        let goes_on = self.view.press(key, &self.shown);
        self.show();
        goes_on
    }
}

/// A terminal that is ours until this is dropped.
struct Entered;

impl Entered {
    fn new() -> io::Result<Self> {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            // What it says must not be lost with the screen.
            leave();
            before(panic);
        }));
        terminal::enable_raw_mode()?;
        // From here on it is given back.
        let entered = Self;
        execute!(io::stdout(), EnterAlternateScreen, Hide)?;
        Ok(entered)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        leave();
    }
}

fn leave() {
    // Ignored: where the terminal is gone, nothing is left to be done.
    let _ = execute!(io::stdout(), SetAttribute(Attribute::Reset), Show, LeaveAlternateScreen);
    let _ = terminal::disable_raw_mode();
}

/// What a terminal is told.
struct Screen(BufWriter<Stdout>);

impl Backend for Screen {
    type Error = io::Error;

    fn draw<'a, I>(&mut self, content: I) -> io::Result<()>
    where
        I: Iterator<Item = (u16, u16, &'a Cell)>,
    {
        let mut style = None;
        for (x, y, cell) in content {
            queue!(self.0, MoveTo(x, y))?;
            if style != Some((cell.fg, cell.modifier)) {
                self.set_style(cell.fg, cell.modifier)?;
                style = Some((cell.fg, cell.modifier));
            }
            queue!(self.0, Print(cell.symbol()))?;
        }
        queue!(self.0, SetAttribute(Attribute::Reset))
    }

    fn hide_cursor(&mut self) -> io::Result<()> {
        execute!(self.0, Hide)
    }

    fn show_cursor(&mut self) -> io::Result<()> {
        execute!(self.0, Show)
    }

    /// Nobody asks: the view is as large as the terminal.
    fn get_cursor_position(&mut self) -> io::Result<Position> {
        Ok(Position::ORIGIN)
    }

    fn set_cursor_position<P: Into<Position>>(&mut self, position: P) -> io::Result<()> {
        let Position { x, y } = position.into();
        execute!(self.0, MoveTo(x, y))
    }

    fn clear(&mut self) -> io::Result<()> {
        self.clear_region(ClearType::All)
    }

    fn clear_region(&mut self, region: ClearType) -> io::Result<()> {
        let region = match region {
            ClearType::All => terminal::ClearType::All,
            ClearType::AfterCursor => terminal::ClearType::FromCursorDown,
            ClearType::BeforeCursor => terminal::ClearType::FromCursorUp,
            ClearType::CurrentLine => terminal::ClearType::CurrentLine,
            ClearType::UntilNewLine => terminal::ClearType::UntilNewLine,
        };
        execute!(self.0, terminal::Clear(region))
    }

    fn size(&self) -> io::Result<Size> {
        terminal::size().map(|(width, height)| Size { width, height })
    }

    fn window_size(&mut self) -> io::Result<WindowSize> {
        Ok(WindowSize { columns_rows: self.size()?, pixels: Size::ZERO })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Screen {
    fn set_style(&mut self, colour: Color, modifier: Modifier) -> io::Result<()> {
        queue!(self.0, SetAttribute(Attribute::Reset))?;
        let attributes = [
            (Modifier::BOLD, Attribute::Bold),
            (Modifier::DIM, Attribute::Dim),
            (Modifier::UNDERLINED, Attribute::Underlined),
            (Modifier::REVERSED, Attribute::Reverse),
        ];
        for (_, attribute) in attributes.iter().filter(|(it, _)| modifier.contains(*it)) {
            queue!(self.0, SetAttribute(*attribute))?;
        }
        match colour {
            Color::Red => queue!(self.0, SetForegroundColor(crossterm::style::Color::DarkRed)),
            Color::Yellow => queue!(self.0, SetForegroundColor(crossterm::style::Color::DarkYellow)),
            // The view has no others.
            _ => Ok(()),
        }
    }
}
