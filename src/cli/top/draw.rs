//! What stands on the screen for a state. Colours only repeat what words say.

use std::collections::BTreeMap;

use ratatui_core::layout::Rect;
use ratatui_core::style::{Color, Modifier, Style};
use ratatui_core::terminal::Frame;
use ratatui_core::text::{Line, Span};

use super::approval::Approval;
use super::columns::{self, Kind};
use super::console::Console;
use super::layout;
use super::state::{Daemon, Page, State};
use super::text::{clean, fit, fit_right, truncate, width};
use crate::cli::table::age;
use crate::cli::view::{Tone, tone};
use crate::names::VmName;
use crate::status::EventType;

/// A key, what it does, and who goes first where there is no room: the largest number.
type Hint = (&'static str, &'static str, u8);

const LIST_KEYS: &[Hint] = &[
    ("Enter", "describe", 2),
    ("l", "console", 2),
    ("a", "approve", 3),
    ("/", "filter", 3),
    ("s", "sort", 4),
    ("r", "reverse", 5),
    ("?", "help", 1),
    ("q", "quit", 0),
];
const FILTER_KEYS: &[Hint] = &[("Enter", "keep", 0), ("Esc", "cancel", 0)];
const PAGE_KEYS: &[Hint] =
    &[("Esc", "back", 0), ("Up Down PgUp PgDn", "scroll", 2), ("?", "help", 3), ("q", "quit", 1)];
const APPROVE_KEYS: &[Hint] = &[("y", "approve", 0), ("n", "cancel", 0), ("Up Down", "scroll", 1)];
const CANCEL_KEYS: &[Hint] = &[("Esc", "back", 0)];

/// Draws a state.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State, color: bool) {
    let area = frame.area();
    for (row, line) in lines(state, color).into_iter().take(usize::from(area.height)).enumerate() {
        let y = area.y + u16::try_from(row).unwrap_or(0);
        frame.render_widget(line, Rect { y, height: 1, ..area });
    }
}

/// The screen, from its top.
pub(super) fn lines(state: &State, color: bool) -> Vec<Line<'static>> {
    let pen = Pen { color, columns: state.size.columns };
    match &state.page {
        Page::List | Page::Filter { .. } => list(state, pen),
        Page::Describe { vm, scroll } => {
            let body = match state.rows.get(vm) {
                Some(row) => layout::description(row, state.now.as_ref(), state.size),
                None => vec![format!("{vm} is gone.")],
            };
            let body = body.into_iter().map(|line| pen.described(line)).collect();
            page(state, pen, &format!("{vm}: description"), body, *scroll, PAGE_KEYS)
        }
        Page::Console { vm, console } => console_page(state, pen, vm, console),
        Page::Help { scroll } => {
            let body = layout::help(state.size).into_iter().map(|line| pen.described(line)).collect();
            page(state, pen, "help", body, *scroll, PAGE_KEYS)
        }
        Page::Approval(approval) => approval_page(state, pen, approval),
    }
}

/// How text is made to look.
#[derive(Debug, Clone, Copy)]
struct Pen {
    color: bool,
    columns: usize,
}

impl Pen {
    fn tone(self, tone: Tone) -> Style {
        match tone {
            _ if !self.color => Style::new(),
            Tone::Good => Style::new().fg(Color::Green),
            Tone::Calm => Style::new(),
            Tone::Careful => Style::new().fg(Color::Yellow),
            Tone::Bad => Style::new().fg(Color::Red),
        }
    }

    fn faint(self) -> Style {
        if self.color { Style::new().fg(Color::DarkGray) } else { Style::new() }
    }

    /// One text at the left edge and one at the right, if there is room for both.
    fn edges(self, left: Vec<Span<'static>>, right: Span<'static>) -> Line<'static> {
        let (used, wanted) = (left.iter().map(|span| width(&span.content)).sum::<usize>(), width(&right.content));
        let mut spans = left;
        if used + wanted + 2 <= self.columns {
            spans.push(Span::raw(" ".repeat(self.columns - used - wanted)));
            spans.push(right);
        }
        self.cut(spans)
    }

    /// A line that ends with `…` where it does not fit.
    fn cut(self, spans: Vec<Span<'static>>) -> Line<'static> {
        let mut left = self.columns;
        let mut fitting = Vec::new();
        let total: usize = spans.iter().map(|span| width(&span.content)).sum();
        if total <= left {
            return Line::from(spans);
        }
        for span in spans {
            let taken = width(&span.content);
            if taken < left {
                left -= taken;
                fitting.push(span);
            } else {
                // A blank more than it holds, so that it ends with the mark.
                fitting.push(Span::styled(truncate(&format!("{} ", span.content), left), span.style));
                break;
            }
        }
        Line::from(fitting)
    }

    /// A line of a page: what is not indented and ends with a colon is a heading.
    fn described(self, line: String) -> Line<'static> {
        let is_heading = line.ends_with(':') && !line.starts_with(' ');
        self.cut(vec![Span::styled(line, if is_heading { bold() } else { Style::new() })])
    }

    fn keys(self, hints: &[Hint]) -> Line<'static> {
        let long = |kept: &[&Hint]| kept.iter().map(|(key, what, _)| width(key) + 1 + width(what) + 2).sum::<usize>();
        let mut kept: Vec<&Hint> = hints.iter().collect();
        while long(&kept) > self.columns + 2 {
            let Some((at, _)) = kept.iter().enumerate().max_by_key(|(at, hint)| (hint.2, *at)) else { break };
            kept.remove(at);
        }
        let spans = kept
            .iter()
            .flat_map(|(key, what, _)| [Span::styled(*key, bold()), Span::styled(format!(" {what}  "), self.faint())]);
        Line::from(spans.collect::<Vec<_>>())
    }
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn list(state: &State, pen: Pen) -> Vec<Line<'static>> {
    let room = layout::list(state.size, state.order.len());
    let mut lines = Vec::new();
    if room.title {
        lines.push(title(state, pen));
    }
    if room.gap {
        lines.push(Line::default());
    }
    let longest = state.order.iter().map(|name| name.as_str().len()).max().unwrap_or(0);
    // Two for the mark at the selected VM.
    let columns = columns::choose(pen.columns.saturating_sub(2), longest);
    if room.headings {
        let headings = columns::headings(&columns, state.sort, state.reversed);
        lines.push(pen.cut(vec![Span::styled(format!("  {headings}"), bold())]));
    }
    let above = lines.len();
    for name in state.on_screen() {
        let (Some(row), Some(now)) = (state.rows.get(name), &state.now) else { continue };
        let is_selected = state.selected.as_ref() == Some(name);
        let mut spans = vec![Span::raw(if is_selected { "> " } else { "  " })];
        for (kind, text) in columns::cells(&columns, row, now) {
            spans.push(Span::styled(
                text,
                if kind == Kind::Status { pen.tone(tone(row.view.live.phase)) } else { Style::new() },
            ));
        }
        let mut line = pen.cut(spans);
        if is_selected {
            let used = line.spans.iter().map(|span| width(&span.content)).sum::<usize>();
            line.push_span(" ".repeat(pen.columns.saturating_sub(used)));
            line = line.style(Style::new().add_modifier(Modifier::REVERSED));
        }
        lines.push(line);
    }
    if state.order.is_empty() {
        lines.extend(nothing(state).into_iter().take(room.vms).map(|line| pen.cut(vec![Span::raw(line)])));
    }
    lines.resize(above + room.vms, Line::default());
    if room.events > 0 {
        events(state, pen, room.events, &mut lines);
    }
    if room.footer {
        lines.push(footer(state, pen));
    }
    lines
}

/// What is said where there is no VM to show.
fn nothing(state: &State) -> Vec<String> {
    if !state.looked {
        return vec!["  Looking …".to_owned()];
    }
    if !state.rows.is_empty() {
        return vec![format!("  No VM matches \"{}\".", clean(&state.filter)), "  Esc shows all.".to_owned()];
    }
    vec![
        "  No VMs yet.".to_owned(),
        "  Each manifest makes one; `stead plan` shows what would be started,".to_owned(),
        "  `stead run` starts it.".to_owned(),
    ]
}

fn title(state: &State, pen: Pen) -> Line<'static> {
    let vms = |count: usize| if count == 1 { "1 VM".to_owned() } else { format!("{count} VMs") };
    let mut spans = vec![Span::styled("stead top", bold()), Span::raw(format!("  {}", vms(state.rows.len())))];
    // From the best to the worst, and each by its name.
    let mut phases: BTreeMap<(u8, String), (usize, Style)> = BTreeMap::new();
    for row in state.rows.values() {
        let phase = row.view.live.phase;
        let tone = tone(phase);
        phases.entry((tone as u8, phase.to_string())).or_insert((0, pen.tone(tone))).0 += 1;
    }
    for ((_, phase), (count, style)) in phases {
        spans.push(Span::raw("  "));
        spans.push(Span::styled(format!("{count} {phase}"), style));
    }
    if !state.filter.is_empty() {
        spans.push(Span::raw(format!("  {} of them match \"{}\"", state.order.len(), clean(&state.filter))));
    }
    pen.edges(spans, daemon(state, pen))
}

fn daemon(state: &State, pen: Pen) -> Span<'static> {
    match &state.daemon {
        Daemon::Unasked => Span::raw(""),
        Daemon::Runs { version, pid } => Span::styled(format!("stead {} pid {pid}", clean(version)), pen.faint()),
        Daemon::None => Span::styled("no stead run at work", pen.tone(Tone::Careful)),
        Daemon::Silent(_) => Span::styled("stead run does not answer", pen.tone(Tone::Bad)),
    }
}

fn events(state: &State, pen: Pen, rows: usize, lines: &mut Vec<Line<'static>>) {
    let Some(now) = &state.now else {
        return lines.resize(lines.len() + rows, Line::default());
    };
    let end = lines.len() + rows;
    lines.push(Line::default());
    lines.push(pen.cut(vec![Span::styled("  LAST EVENTS", bold())]));
    let shown = state.recent.get(..rows.saturating_sub(2)).unwrap_or(&state.recent);
    let longest =
        |of: &dyn Fn(&super::recent::Recent) -> usize, most: usize| shown.iter().map(of).max().unwrap_or(0).min(most);
    let name = longest(&|recent| recent.vm.as_str().len(), (pen.columns / 4).max(8));
    let reason = longest(&|recent| width(&recent.event.reason), 20);
    for recent in shown {
        let event = &recent.event;
        let (mark, style) = match event.kind {
            EventType::Normal => (" ", Style::new()),
            EventType::Warning => ("!", pen.tone(Tone::Careful)),
        };
        let often = if event.count > 1 { format!(" (x{})", event.count) } else { String::new() };
        lines.push(pen.cut(vec![
            Span::styled(format!("{mark} {}  ", fit_right(&age(now.wall, event.last_seen), 6)), style),
            Span::raw(format!("{}  ", fit(recent.vm.as_str(), name))),
            Span::styled(format!("{}  ", fit(&clean(&event.reason), reason)), style),
            Span::raw(format!("{}{often}", clean(&event.message))),
        ]));
    }
    if shown.is_empty() {
        lines.push(pen.cut(vec![Span::styled("  None yet.", pen.faint())]));
    }
    lines.resize(end, Line::default());
}

fn footer(state: &State, pen: Pen) -> Line<'static> {
    if let Page::Filter { .. } = state.page {
        let typed = vec![
            Span::styled("Filter: ", bold()),
            Span::raw(clean(&state.filter)),
            Span::styled(" ", Style::new().add_modifier(Modifier::REVERSED)),
            Span::raw("  "),
        ];
        let keys = pen.keys(FILTER_KEYS);
        return pen.cut(typed.into_iter().chain(keys.spans).collect());
    }
    keys_or_news(state, pen, LIST_KEYS)
}

/// The keys; what there is to know instead, until the next one is pressed.
fn keys_or_news(state: &State, pen: Pen, keys: &[Hint]) -> Line<'static> {
    match &state.said {
        Some(said) => pen.cut(vec![Span::styled(clean(said), pen.tone(Tone::Careful))]),
        None => pen.keys(keys),
    }
}

/// A page of text, with where in it one is.
fn page(
    state: &State,
    pen: Pen,
    what: &str,
    body: Vec<Line<'static>>,
    scroll: usize,
    keys: &[Hint],
) -> Vec<Line<'static>> {
    let room = layout::page(state.size);
    let count = body.len();
    let scroll = scroll.min(count.saturating_sub(room.body));
    let place = if count > room.body {
        format!("lines {}-{} of {count}", scroll + 1, (scroll + room.body).min(count))
    } else {
        String::new()
    };
    let mut lines = Vec::new();
    if room.title {
        lines.push(pen.edges(heading(what), Span::styled(place, pen.faint())));
    }
    let above = lines.len();
    lines.extend(body.into_iter().skip(scroll).take(room.body));
    lines.resize(above + room.body, Line::default());
    if room.footer {
        lines.push(keys_or_news(state, pen, keys));
    }
    lines
}

fn heading(what: &str) -> Vec<Span<'static>> {
    vec![Span::styled("stead top", bold()), Span::raw(format!("  {what}"))]
}

fn console_page(state: &State, pen: Pen, vm: &VmName, console: &Console) -> Vec<Line<'static>> {
    let room = layout::page(state.size);
    let body = if console.read && console.is_empty() {
        vec![Line::from(format!("{vm} has printed nothing yet."))]
    } else {
        console.shown(pen.columns, room.body).into_iter().map(Line::from).collect()
    };
    let place = match console.back {
        0 => "following".to_owned(),
        1 => "1 line further on".to_owned(),
        lines => format!("{lines} lines further on"),
    };
    let mut lines = Vec::new();
    if room.title {
        lines.push(pen.edges(heading(&format!("{vm}: console")), Span::styled(place, pen.faint())));
    }
    let above = lines.len();
    lines.extend(body);
    lines.resize(above + room.body, Line::default());
    if room.footer {
        lines.push(keys_or_news(state, pen, PAGE_KEYS));
    }
    lines
}

fn approval_page(state: &State, pen: Pen, approval: &Approval) -> Vec<Line<'static>> {
    let (text, scroll, keys) = match approval {
        Approval::Looking => (vec!["Looking at what waits …".to_owned()], 0, CANCEL_KEYS),
        Approval::Failed(why) => (vec![format!("It cannot be told what waits: {}", clean(why))], 0, CANCEL_KEYS),
        Approval::Sent { digest } => (vec![format!("Asking the running stead to approve {digest} …")], 0, CANCEL_KEYS),
        Approval::Asked { held, scroll, .. } => {
            let keys = if held.digest.is_some() { APPROVE_KEYS } else { CANCEL_KEYS };
            (held.lines(pen.columns), *scroll, keys)
        }
    };
    let line = |line: String| {
        let style = if line.contains("DELETES") { bold().patch(pen.tone(Tone::Bad)) } else { Style::new() };
        pen.cut(vec![Span::styled(line, style)])
    };
    page(state, pen, "approve deletions", text.into_iter().map(line).collect(), scroll, keys)
}

/// What `--once` prints: the list with every VM, as plain text.
pub(super) fn text(state: &State) -> String {
    let pen = Pen { color: false, columns: state.size.columns };
    let mut text = String::new();
    let mut all = list(state, pen);
    all.pop();
    for line in all {
        let line: String = line.spans.iter().map(|span| span.content.as_ref()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}
