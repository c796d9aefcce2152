//! What `stead top` knows and shows, and how it changes with each event. No IO, no clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ratatui_crossterm::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::approval::{Approval, Held};
use super::console::Console;
use super::layout::{self, Size};
use super::order::{Sort, matches};
use super::recent::{Recent, recent};
use super::text::share;
use crate::cli::view::{View, Views};
use crate::host::{ProcessIdentity, Usage};
use crate::names::VmName;
use crate::time::Now;

/// The shortest time over which a share of the CPU is told: the kernel counts in ticks of 10 ms.
const SPAN_MIN: Duration = Duration::from_millis(500);
/// The longest: it is of now, not of a while ago.
const SPAN_MAX: Duration = Duration::from_secs(15);

/// Something that happened.
#[derive(Debug)]
pub(super) enum Event {
    /// A key was pressed.
    Key(KeyEvent),
    /// The terminal has this size now.
    Resized(Size),
    /// Every VM was looked at.
    All(Views),
    /// These VMs were looked at; with `None`, there is none of this name any more.
    Some(Vec<(VmName, Option<View>)>, Option<Now>),
    /// What VMMs take of the host.
    Usage(Vec<(VmName, Sample)>, Now),
    /// Whether a `stead run` is at work.
    Daemon(Daemon),
    /// A look failed.
    LookFailed(String),
    /// The console that is shown has this more; nothing, if it is there and empty.
    Printed(Vec<u8>),
    /// The console cannot be read.
    Unprinted(String),
    /// What waits for an approval, as the preview of this number found.
    Held(u64, Result<Held, String>),
    /// What the running stead said to an approval of this digest.
    Answered(String, Result<String, String>),
}

/// What is to be done about an event, by whoever has hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// Look at this VM.
    Look(VmName),
    /// See what waits for an approval: the preview of this number.
    Preview(u64),
    /// Ask the running stead to let these deletions through.
    Approve(String),
    /// Draw everything anew.
    Redraw,
    /// Give the terminal back to the shell for a while.
    Suspend,
    /// End.
    Quit,
}

/// Whether a `stead run` is at work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Daemon {
    /// Not asked yet.
    #[default]
    Unasked,
    /// It is.
    Runs {
        /// Its version.
        version: String,
        /// Its pid.
        pid: u32,
    },
    /// It is not.
    None,
    /// It gives no answer: why.
    Silent(String),
}

/// What a VMM took of the host until a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    /// Which process.
    pub process: ProcessIdentity,
    /// What it took.
    pub usage: Usage,
    /// When.
    pub at: Instant,
}

/// A VM.
#[derive(Debug)]
pub(super) struct Row {
    /// What was last seen of it.
    pub view: View,
    sample: Option<Sample>,
    share: Option<u64>,
}

impl Row {
    /// Tenths of a percent of one CPU; `None` while that is not known.
    pub(super) fn cpu(&self) -> Option<u64> {
        self.share.filter(|_| self.current().is_some())
    }

    /// Bytes in memory; `None` while that is not known.
    pub(super) fn memory(&self) -> Option<u64> {
        self.current().map(|sample| sample.usage.resident)
    }

    /// The last sample, if it is of the process that is there now.
    fn current(&self) -> Option<&Sample> {
        let process = self.view.observed.process.present()?.process.identity;
        self.sample.as_ref().filter(|sample| sample.process == process)
    }

    fn take(&mut self, sample: Sample) {
        let before = self.sample.filter(|before| before.process == sample.process);
        let span = before.and_then(|before| sample.at.checked_duration_since(before.at));
        if let Some(before) = before.filter(|_| span.is_some_and(|span| span < SPAN_MIN)) {
            let usage = Usage { resident: sample.usage.resident, ..before.usage };
            self.sample = Some(Sample { usage, ..before });
            return;
        }
        let told = before.zip(span).filter(|(_, span)| *span <= SPAN_MAX);
        self.share = told.and_then(|(before, span)| share(sample.usage.cpu.saturating_sub(before.usage.cpu), span));
        self.sample = Some(sample);
    }
}

/// What is on the screen.
#[derive(Debug, Default)]
pub(super) enum Page {
    /// The VMs.
    #[default]
    List,
    /// The VMs, while a filter is typed; with the one before.
    Filter {
        /// What it was.
        before: String,
    },
    /// Everything about one VM.
    Describe {
        /// Which.
        vm: VmName,
        /// The first line shown.
        scroll: usize,
    },
    /// What its guest prints.
    Console {
        /// Which.
        vm: VmName,
        /// Its text.
        console: Console,
    },
    /// Whether deletions may go on.
    Approval(Approval),
    /// The keys.
    Help {
        /// The first line shown.
        scroll: usize,
    },
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The terminal.
    pub size: Size,
    /// Every VM.
    pub rows: BTreeMap<VmName, Row>,
    /// Those shown, in their order.
    pub order: Vec<VmName>,
    /// The one that keys are about.
    pub selected: Option<VmName>,
    /// The first one on the screen.
    pub offset: usize,
    /// What they are sorted by.
    pub sort: Sort,
    /// Whether the other way round.
    pub reversed: bool,
    /// What those shown have in common.
    pub filter: String,
    /// What is on the screen.
    pub page: Page,
    /// Whether a `stead run` is at work.
    pub daemon: Daemon,
    /// When all this was so; `None` before the first look, and where there is no state.
    pub now: Option<Now>,
    /// Whether the first look has come.
    pub looked: bool,
    /// The number of the last question what waits for an approval.
    asked: u64,
    /// Whether what waits is being looked at: one look at a time, however often somebody asks.
    is_previewing: bool,
    /// What happened last.
    pub recent: Vec<Recent>,
    /// Something to know, until the next key.
    pub said: Option<String>,
}

impl State {
    /// That of a screen of this size that knows nothing yet.
    pub(super) fn new(size: Size) -> Self {
        Self { size, ..Self::default() }
    }

    /// Takes in what happened.
    pub(super) fn update(&mut self, event: Event) -> Option<Effect> {
        let effect = match event {
            Event::Key(key) => self.key(key),
            Event::Resized(size) => {
                // Other lines than those that were seen.
                if let Page::Approval(Approval::Asked { seen, .. }) = &mut self.page
                    && size.columns != self.size.columns
                {
                    *seen = 0;
                }
                self.size = size;
                None
            }
            Event::All(views) => {
                self.take_all(views);
                None
            }
            Event::Some(views, now) => {
                for (name, view) in views {
                    self.take_one(name, view);
                }
                self.now = now.or(self.now.take());
                self.changed();
                None
            }
            Event::Usage(samples, now) => {
                for (name, sample) in samples {
                    if let Some(row) = self.rows.get_mut(&name) {
                        row.take(sample);
                    }
                }
                self.now = Some(now);
                if self.sort.needs_usage() {
                    self.arrange();
                }
                None
            }
            Event::Daemon(daemon) => {
                self.daemon = daemon;
                None
            }
            Event::LookFailed(why) | Event::Unprinted(why) => {
                self.said = Some(why);
                None
            }
            Event::Printed(piece) => {
                if let Page::Console { console, .. } = &mut self.page {
                    console.push(&piece);
                }
                None
            }
            Event::Held(number, held) => self.ask(number, held),
            Event::Answered(digest, answer) => {
                if matches!(&self.page, Page::Approval(Approval::Sent { digest: sent }) if *sent == digest) {
                    self.page = Page::List;
                }
                self.said = Some(answer.unwrap_or_else(|why| format!("Not approved: {why}")));
                None
            }
        };
        self.settle();
        effect
    }

    /// The VM whose console is shown.
    pub(super) fn console_of(&self) -> Option<&VmName> {
        match &self.page {
            Page::Console { vm, .. } => Some(vm),
            _ => None,
        }
    }

    /// The VMs of which it must be known what they take of the host: those on the screen, unless the order depends on all.
    pub(super) fn watched(&self) -> Vec<VmName> {
        match self.page {
            _ if self.sort.needs_usage() => self.order.clone(),
            Page::List | Page::Filter { .. } => self.on_screen().to_vec(),
            _ => Vec::new(),
        }
    }

    /// The VMs on the screen.
    pub(super) fn on_screen(&self) -> &[VmName] {
        let end = (self.offset + layout::list(self.size, self.order.len()).vms).min(self.order.len());
        self.order.get(self.offset..end).unwrap_or_default()
    }

    /// Where the selected VM stands in the list.
    pub(super) fn position(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.order.iter().position(|name| name == selected)
    }

    fn take_all(&mut self, views: Views) {
        let mut before = std::mem::take(&mut self.rows);
        self.rows =
            views.vms.into_iter().map(|view| (view.name.clone(), row(before.remove(&view.name), view))).collect();
        self.now = views.now.or(self.now.take());
        self.looked = true;
        self.changed();
    }

    fn take_one(&mut self, name: VmName, view: Option<View>) {
        let before = self.rows.remove(&name);
        if let Some(view) = view {
            self.rows.insert(name, row(before, view));
        }
    }

    fn changed(&mut self) {
        self.recent = recent(self.rows.values().map(|row| &row.view));
        self.arrange();
    }

    /// Filters and sorts anew. The selected VM stays selected wherever it goes; if it is gone, whoever took its place is.
    fn arrange(&mut self) {
        let was_at = self.position();
        let mut shown: Vec<&Row> = self.rows.values().filter(|row| matches(&self.filter, row)).collect();
        shown.sort_by(|a, b| {
            let order = self.sort.compare(a, b);
            if self.reversed { order.reverse() } else { order }
        });
        self.order = shown.into_iter().map(|row| row.view.name.clone()).collect();
        if self.position().is_none() {
            let at = was_at.unwrap_or(0).min(self.order.len().saturating_sub(1));
            self.selected = self.order.get(at).cloned();
        }
    }

    /// Brings what is scrolled back to where there is something to see.
    fn settle(&mut self) {
        let rows = layout::list(self.size, self.order.len()).vms;
        let at = self.position().unwrap_or(0);
        self.offset = self.offset.min(self.order.len().saturating_sub(rows)).min(at);
        self.offset = self.offset.max((at + 1).saturating_sub(rows));
        let body = layout::page(self.size).body;
        if let Page::Approval(Approval::Asked { held, scroll, seen }) = &mut self.page {
            let lines = held.lines(self.size.columns).len();
            *scroll = (*scroll).min(lines.saturating_sub(body));
            // What was jumped over was not seen.
            if *scroll <= *seen {
                *seen = (*seen).max(*scroll + body).min(lines);
            }
        }
    }

    /// Asks about what a preview found. One of an earlier question may be older than what the person has seen since: then what
    /// waits is looked at anew.
    fn ask(&mut self, number: u64, held: Result<Held, String>) -> Option<Effect> {
        self.is_previewing = false;
        if !matches!(self.page, Page::Approval(Approval::Looking)) {
            return None;
        }
        if number != self.asked {
            return self.preview();
        }
        self.page = Page::Approval(match held {
            Ok(held) => Approval::Asked { held, scroll: 0, seen: 0 },
            Err(why) => Approval::Failed(why),
        });
        None
    }

    fn preview(&mut self) -> Option<Effect> {
        let begins = !std::mem::replace(&mut self.is_previewing, true);
        begins.then_some(Effect::Preview(self.asked))
    }

    fn key(&mut self, key: KeyEvent) -> Option<Effect> {
        self.said = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Some(Effect::Quit),
                KeyCode::Char('z') => Some(Effect::Suspend),
                KeyCode::Char('l') => Some(Effect::Redraw),
                _ => None,
            };
        }
        match &mut self.page {
            Page::Filter { before } => {
                let before = std::mem::take(before);
                self.type_filter(key.code, before);
                return None;
            }
            Page::Approval(_) => return self.answer(key.code),
            Page::List | Page::Describe { .. } | Page::Console { .. } | Page::Help { .. } => {}
        }
        if let Some(by) = self.distance(key.code) {
            self.scroll(by);
            return None;
        }
        match key.code {
            KeyCode::Char('q') => Some(Effect::Quit),
            KeyCode::Esc => self.back(),
            KeyCode::Char('?' | 'h') => {
                self.page = if matches!(self.page, Page::Help { .. }) { Page::List } else { Page::Help { scroll: 0 } };
                None
            }
            KeyCode::Enter | KeyCode::Char('d') => {
                let vm = self.selected.clone()?;
                self.page = Page::Describe { vm: vm.clone(), scroll: 0 };
                Some(Effect::Look(vm))
            }
            KeyCode::Char('l') => {
                self.page = Page::Console { vm: self.selected.clone()?, console: Console::default() };
                None
            }
            KeyCode::Char('a') => {
                self.page = Page::Approval(Approval::Looking);
                self.asked += 1;
                self.preview()
            }
            code if matches!(self.page, Page::List) => {
                match code {
                    KeyCode::Char('/') => self.page = Page::Filter { before: self.filter.clone() },
                    KeyCode::Char('s') => self.sort = self.sort.step(false),
                    KeyCode::Char('S') => self.sort = self.sort.step(true),
                    KeyCode::Char('r') => self.reversed = !self.reversed,
                    _ => return None,
                }
                self.arrange();
                None
            }
            _ => None,
        }
    }

    /// One step out: of a page, of a filter, and at last of everything.
    fn back(&mut self) -> Option<Effect> {
        match self.page {
            Page::List if self.filter.is_empty() => return Some(Effect::Quit),
            Page::List => self.filter.clear(),
            _ => self.page = Page::List,
        }
        self.arrange();
        None
    }

    fn type_filter(&mut self, code: KeyCode, before: String) {
        match code {
            KeyCode::Enter => self.page = Page::List,
            KeyCode::Esc => {
                self.filter = before;
                self.page = Page::List;
            }
            _ => {
                match code {
                    KeyCode::Backspace => drop(self.filter.pop()),
                    KeyCode::Char(c) if !c.is_control() => self.filter.push(c),
                    _ => {}
                }
                self.page = Page::Filter { before };
            }
        }
        self.arrange();
    }

    /// `y` approves, and only what was on the screen to its end; whatever else leads back or does nothing.
    fn answer(&mut self, code: KeyCode) -> Option<Effect> {
        let by = self.distance(code);
        let Page::Approval(approval) = &mut self.page else { return None };
        match (approval, code) {
            (Approval::Asked { held, seen, .. }, KeyCode::Char('y')) => {
                let digest = held.digest.clone()?;
                if *seen < held.lines(self.size.columns).len() {
                    self.said = Some("Scroll to the end first: all that would be deleted should be seen.".to_owned());
                    return None;
                }
                self.page = Page::Approval(Approval::Sent { digest: digest.clone() });
                Some(Effect::Approve(digest))
            }
            (_, KeyCode::Esc | KeyCode::Char('n' | 'q')) => {
                self.page = Page::List;
                None
            }
            (Approval::Asked { scroll, .. }, _) => {
                *scroll = scroll.saturating_add_signed(by?);
                None
            }
            _ => None,
        }
    }

    /// How far a key moves; `None` for one that does not.
    fn distance(&self, code: KeyCode) -> Option<isize> {
        const ALL: isize = 1 << 30;
        let rows = match self.page {
            Page::List | Page::Filter { .. } => layout::list(self.size, self.order.len()).vms,
            _ => layout::page(self.size).body,
        };
        let screen = isize::try_from(rows.max(2) - 1).unwrap_or(1);
        Some(match code {
            KeyCode::Up | KeyCode::Char('k') => -1,
            KeyCode::Down | KeyCode::Char('j') => 1,
            KeyCode::PageUp => -screen,
            KeyCode::PageDown | KeyCode::Char(' ') => screen,
            KeyCode::Home | KeyCode::Char('g') => -ALL,
            KeyCode::End | KeyCode::Char('G') => ALL,
            _ => return None,
        })
    }

    fn scroll(&mut self, by: isize) {
        let size = self.size;
        match &mut self.page {
            Page::Console { console, .. } => console.scroll(by),
            Page::Describe { vm, scroll } => {
                let lines = self.rows.get(vm).map_or(0, |row| layout::description(row, self.now.as_ref(), size).len());
                *scroll = scroll.saturating_add_signed(by).min(lines.saturating_sub(layout::page(size).body));
            }
            Page::Help { scroll } => {
                let lines = layout::help(size).len();
                *scroll = scroll.saturating_add_signed(by).min(lines.saturating_sub(layout::page(size).body));
            }
            Page::List | Page::Filter { .. } | Page::Approval(_) => {
                let last = self.order.len().saturating_sub(1);
                let at = self.position().unwrap_or(0).saturating_add_signed(by).min(last);
                self.selected = self.order.get(at).cloned();
            }
        }
    }
}

fn row(before: Option<Row>, view: View) -> Row {
    let (sample, share) = before.map_or((None, None), |before| (before.sample, before.share));
    Row { view, sample, share }
}
