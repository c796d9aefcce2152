//! `stead top`: the VMs on a screen of their own, kept up to date.
//!
//! [`state`] takes in what happens and knows no IO; [`draw`] makes lines of a state; `feed` looks at VMs on a thread of its own;
//! `screen` has the terminal. Here they are put together.

mod approval;
mod columns;
mod console;
mod draw;
mod feed;
mod layout;
mod order;
mod recent;
mod screen;
mod state;
#[cfg(test)]
mod tests;
mod text;

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::RecursiveMode;
use ratatui_crossterm::crossterm::event::{self, Event as Input, KeyEventKind};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use super::act::ANSWER_BOUND;
use super::error::in_full;
use super::follow::Follower;
use super::view::Looker;
use super::watch::Changes;
use super::{CliError, Context, Exit};
use crate::config::{Access, open_state};
use crate::control::{Reply, Request, ask};
use crate::names::{Layout, VmName};
use crate::plan::AllowPrune;
use crate::reconcile::preview;
use approval::Held;
use feed::{Feed, seen_process};
use layout::Size;
use screen::Screen;
use state::{Effect, Event, Sample, State};

/// How often the console is read without a sign of change: a net under the kernel's notices.
const CONSOLE_NET: Duration = Duration::from_secs(10);
/// Over which time `--once` tells of the CPU.
const ONCE_SPAN: Duration = Duration::from_secs(1);
/// The columns of `--once` where there is no terminal.
const ONCE_COLUMNS: usize = 120;

/// Arguments of `stead top`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead top                        every VM, kept up to date; ? shows the keys
  stead top --once                 the same once, as text

CPU and memory are those of each VM's VMM, read only of a process that is proven to be it.")]
pub struct Args {
    /// Print one frame as plain text, with every VM, and end
    #[arg(long)]
    once: bool,
}

impl Args {
    /// Whether the terminal is drawn on.
    pub(super) fn has_screen(&self) -> bool {
        !self.once
    }
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    if args.once {
        return once(context);
    }
    if !context.term.out.is_terminal {
        return Err(CliError::Usage {
            message: "`stead top` draws on a terminal, and standard output is none".to_owned(),
            hint: Some(
                "`stead get` shows VMs as text, `stead get --watch` goes on; `stead top --once` prints one frame"
                    .to_owned(),
            ),
        });
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::io("start the runtime", source))?;
    let ended = runtime.block_on(screen(context));
    // The thread that reads keys waits for one more.
    runtime.shutdown_background();
    ended
}

fn once(context: &Context) -> Result<Exit, CliError> {
    let mut looker = Looker::new(context)?;
    let mut views = looker.look(None)?;
    let processes: Vec<_> =
        views.vms.iter_mut().filter_map(|view| Some((view.name.clone(), seen_process(view)?))).collect();
    let columns = rustix::termios::tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col));
    let columns = columns.filter(|columns| *columns > 0).unwrap_or(ONCE_COLUMNS);
    // Room for every VM and the last events.
    let mut state = State::new(Size { columns, rows: views.vms.len() + 16 });
    state.update(Event::All(views));
    if let Some(host) = looker.host() {
        for round in 0..2 {
            if round > 0 && !processes.is_empty() {
                std::thread::sleep(ONCE_SPAN);
            }
            let sample = |(vm, process): &(VmName, crate::host::ProcessHandle)| {
                let usage = host.usage(process).ok()??;
                Some((vm.clone(), Sample { process: process.identity, usage, at: Instant::now() }))
            };
            state.update(Event::Usage(processes.iter().filter_map(sample).collect(), host.now()));
        }
    }
    context.term.print(draw::text(&state))?;
    Ok(Exit::Converged)
}

/// The signals that end it, and those of job control.
struct Signals {
    ends: [Signal; 4],
    stop: Signal,
    goes_on: Signal,
}

/// What a signal asks for.
enum Asked {
    End,
    Stop,
    GoOn,
}

impl Signals {
    fn listen() -> Result<Self, CliError> {
        let listen = |kind| signal(kind).map_err(|source| CliError::io("listen to signals", source));
        let raw = |signal: nix::sys::signal::Signal| listen(SignalKind::from_raw(signal as i32));
        Ok(Self {
            ends: [
                listen(SignalKind::interrupt())?,
                listen(SignalKind::terminate())?,
                listen(SignalKind::hangup())?,
                listen(SignalKind::quit())?,
            ],
            stop: raw(nix::sys::signal::Signal::SIGTSTP)?,
            goes_on: raw(nix::sys::signal::Signal::SIGCONT)?,
        })
    }

    async fn next(&mut self) -> Asked {
        let [interrupt, terminate, hangup, quit] = &mut self.ends;
        tokio::select! {
            _ = interrupt.recv() => Asked::End,
            _ = terminate.recv() => Asked::End,
            _ = hangup.recv() => Asked::End,
            _ = quit.recv() => Asked::End,
            _ = self.stop.recv() => Asked::Stop,
            _ = self.goes_on.recv() => Asked::GoOn,
        }
    }
}

/// The console that is shown, and how it is read on: never on the screen's own thread, since a disk that hangs delays no key.
struct Open {
    vm: VmName,
    log: Arc<Mutex<Follower>>,
    changes: Changes,
    /// Whether it was begun to be read.
    is_begun: bool,
    reading: Option<JoinHandle<Event>>,
}

impl Open {
    fn new(layout: &Layout, vm: VmName) -> Result<Self, CliError> {
        let path = layout.console_log(&vm);
        let log = Arc::new(Mutex::new(Follower::new(path.clone())));
        let folder = layout.vm_dir(&vm);
        let mut changes = Changes::new(move |changed: &Path| changed == path)?;
        changes.add(&folder, RecursiveMode::NonRecursive)?;
        Ok(Self { vm, log, changes, is_begun: false, reading: None })
    }

    /// What is printed next. May be dropped and called again without losing anything.
    async fn next(open: &mut Option<Self>) -> Event {
        let Some(open) = open else { return std::future::pending().await };
        let reading = match &mut open.reading {
            Some(reading) => reading,
            none => {
                if open.is_begun {
                    open.changes.wait(CONSOLE_NET).await;
                }
                let (log, is_first) = (Arc::clone(&open.log), !std::mem::replace(&mut open.is_begun, true));
                none.insert(tokio::task::spawn_blocking(move || read(&log, is_first)))
            }
        };
        let read = reading.await;
        open.reading = None;
        read.unwrap_or_else(|error| Event::Unprinted(error.to_string()))
    }
}

/// What was printed since, at first the last of it; an empty piece where nothing was, so that it is known that it was looked
/// for.
fn read(log: &Mutex<Follower>, is_first: bool) -> Event {
    // Nobody else has it meanwhile: it is read by one after the other.
    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
    let mut text = Vec::new();
    let skipped = if is_first { log.skip_to_last(console::LINES_MAX) } else { Ok(true) };
    let read = skipped.and_then(|_| {
        log.read_new::<io::Error>(|piece| {
            text.extend_from_slice(piece);
            Ok(())
        })
    });
    match read {
        Ok(_) => Event::Printed(text),
        Err(error) => Event::Unprinted(format!("the console cannot be read: {error}")),
    }
}

/// Draws, waits for what happens, and has it taken in, until somebody wants it to end.
async fn screen(context: &Context) -> Result<Exit, CliError> {
    let layout = open_state(&context.settings()?, Access::Reader)?;
    let mut signals = Signals::listen()?;
    let (events_in, mut events) = unbounded_channel();
    let feed = Feed::start(context, events_in.clone())?;
    let taken = Screen::take(context.term.out.color);
    let mut screen = taken.map_err(|source| CliError::io("take the terminal", source))?;
    let mut keys = keys()?;
    let mut state = State::new(screen.size()?);
    let mut watched = Vec::new();
    let mut open: Option<Open> = None;
    loop {
        screen.draw(&state)?;
        let mut next = tokio::select! {
            biased;
            asked = signals.next() => match asked {
                Asked::End => return Ok(Exit::Converged),
                Asked::Stop => { screen.suspend()?; None }
                Asked::GoOn => { screen.retake()?; None }
            },
            key = keys.recv() => match key {
                Some(Input::Key(key)) if key.kind != KeyEventKind::Release => Some(Event::Key(key)),
                Some(Input::Resize(columns, rows)) => {
                    Some(Event::Resized(Size { columns: columns.into(), rows: rows.into() }))
                }
                Some(_) => None,
                // The terminal is gone.
                None => return Ok(Exit::Converged),
            },
            Some(event) = events.recv() => Some(event),
            printed = Open::next(&mut open) => Some(printed),
        };
        // What has come meanwhile is one frame.
        while let Some(event) = next {
            match state.update(event) {
                Some(Effect::Quit) => return Ok(Exit::Converged),
                Some(Effect::Look(vm)) => feed.look(vm),
                Some(Effect::Redraw) => screen.clear()?,
                Some(Effect::Suspend) => screen.suspend()?,
                Some(Effect::Preview(number)) => preview_for(context, number, events_in.clone()),
                Some(Effect::Approve(digest)) => approve(&layout, digest, events_in.clone()),
                None => {}
            }
            next = events.try_recv().ok();
        }
        if state.size != screen.size()? {
            state.update(Event::Resized(screen.size()?));
        }
        let wanted = state.watched();
        if wanted != watched {
            feed.watch(wanted.clone());
            watched = wanted;
        }
        if state.console_of() != open.as_ref().map(|open| &open.vm) {
            open = state.console_of().cloned().and_then(|vm| begin(&layout, vm, &mut state));
        }
    }
}

/// Begins to read a console; says so where that cannot be done.
fn begin(layout: &Layout, vm: VmName, state: &mut State) -> Option<Open> {
    match Open::new(layout, vm) {
        Ok(open) => Some(open),
        Err(error) => {
            state.update(Event::Unprinted(in_full(&error)));
            None
        }
    }
}

/// What is typed. Read on a thread of its own: nothing else wakes a read from a terminal.
fn keys() -> Result<UnboundedReceiver<Input>, CliError> {
    let (keys, typed) = unbounded_channel();
    let read = move || {
        while let Ok(input) = event::read() {
            if keys.send(input).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("keys".to_owned())
        .spawn(read)
        .map_err(|source| CliError::io("start a thread", source))?;
    Ok(typed)
}

/// Sees what waits for an approval: it reads every manifest and looks at every VM, so it is not done here.
fn preview_for(context: &Context, number: u64, events: UnboundedSender<Event>) {
    let context = Context::new(context.flags.clone());
    aside(move || {
        let held = context.reader().and_then(|stead| Ok(Held::of(&preview(&stead, AllowPrune::default())?)));
        let _ = events.send(Event::Held(number, held.map_err(|error| in_full(&error))));
    });
}

/// Asks the running stead, as `stead approve` does. Where none runs nothing is done: this is for looking.
fn approve(layout: &Layout, digest: String, events: UnboundedSender<Event>) {
    let layout = layout.clone();
    aside(move || {
        let answer = match ask(&layout, &Request::Approve { digest: digest.clone() }, ANSWER_BOUND) {
            Ok(Some(Reply::Accepted { message })) => Ok(message),
            Ok(Some(Reply::Refused { message, hint })) => {
                Err(hint.map_or(message.clone(), |hint| format!("{message}; {hint}")))
            }
            Ok(Some(_)) => Err("the running stead's answer makes no sense".to_owned()),
            Ok(None) => Err(format!("no `stead run` is at work; `stead approve {digest}` acts by itself")),
            Err(error) => Err(in_full(&error.into())),
        };
        let _ = events.send(Event::Answered(digest, answer));
    });
}

/// Does something that takes its time. Nobody waits for it: its answer is an event.
fn aside(work: impl FnOnce() + Send + 'static) {
    drop(std::thread::spawn(work));
}
