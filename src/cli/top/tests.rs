//! Whole screens, at several sizes, against texts in `golden/`. `UPDATE_GOLDEN=1` rewrites them; read the diff.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ratatui_core::backend::TestBackend;
use ratatui_core::style::{Color, Modifier};
use ratatui_core::terminal::Terminal;
use ratatui_crossterm::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::approval::{Approval, Held};
use super::draw;
use super::layout::Size;
use super::state::{Daemon, Effect, Event, Page, Sample, State};
use crate::cli::view::{View, Views};
use crate::desired::SourceName;
use crate::desired::load::validate_text;
use crate::host::Usage;
use crate::names::VmName;
use crate::observed::{Fact, ObservedVm};
use crate::plan::{Hold, VmPlan};
use crate::state::Accepted;
use crate::status::samples::{gone, now, plan, running};
use crate::status::{NewEvent, StatusInput, compute, live};
use crate::time::Deadline;

/// When everything is looked at.
const NOW: i64 = 4_000;

/// A VM that was told of at this second, with this plan, error and events.
fn view(name: &str, mut observed: ObservedVm, plan: &VmPlan, error: Option<&str>, told: (i64, Vec<NewEvent>)) -> View {
    let manifest = format!(
        "apiVersion: stead.dev/v1alpha1\nkind: VirtualMachine\nmetadata: {{name: {name}, labels: {{tier: front}}}}\n\
         spec: {{memory: 256Mi, boot: {{kernel: /k}}}}\n"
    );
    let read = validate_text(SourceName("m".into()), Path::new("m.yaml"), &manifest);
    let declared = read.desired.vms.into_values().next().unwrap().remove(0);
    observed.name = name.parse().unwrap();
    observed.ledger.accepted =
        Some(Accepted { vm: declared.vm.unwrap(), origin: declared.origin, root: None, generation: 1 });
    let input = StatusInput {
        observed: &observed,
        plan,
        generation: Some(1),
        last_error: error,
        under_way: None,
        advisories: &[],
    };
    let (second, events) = told;
    let status = compute(None, &input, events, &now(second));
    let live = live(Some(&status), &observed, &now(NOW));
    View { name: observed.name.clone(), live, status: Some(status), observed }
}

fn alive(name: &str, pid: i32, restarts: u32, second: i64) -> View {
    let mut observed = running();
    if let Fact::Present(vmm) = &mut observed.process {
        vmm.process.identity.pid = pid;
    }
    observed.ledger.restarts = restarts;
    let started = NewEvent::normal("Started", format!("firecracker, pid {pid}, incarnation 3"));
    view(name, observed, &plan(vec![], vec![]), None, (second, vec![started]))
}

/// A host with a bit of everything.
fn some() -> Views {
    let until = Deadline { boot_id: now(0).boot_id, boot_ms: 4_008_000 };
    let backing_off = plan(vec![], vec![Hold::BackingOff { failures: 3, until, last: None }]);
    let held = plan(vec![], vec![Hold::PruneCap { deletions: 3, of: 4 }]);
    let hostile = NewEvent::warning("StartFailed", "open /img/\x1b]0;pwned\x07\u{202e}日本語: no such file");
    let died = |number: u32| NewEvent::warning("Died", format!("exit status {number}"));
    let mut dead = gone();
    dead.ledger.restarts = 12;
    let vms = vec![
        view("api", dead, &backing_off, Some("firecracker ended: exit status 1"), (3_990, vec![died(1), hostile])),
        alive("database-of-the-accounting-department", 4711, 0, 100),
        view(
            "old",
            running(),
            &held,
            None,
            (3_000, vec![NewEvent::normal("Started", "qemu, pid 4711, incarnation 3")]),
        ),
        view("rest", gone(), &plan(vec![], vec![]), None, (50, vec![])),
        alive("web", 4713, 2, 3_700),
    ];
    Views { vms, now: Some(now(NOW)) }
}

fn state_of(views: Views, columns: usize, rows: usize) -> State {
    let mut state = State::new(Size { columns, rows });
    let samples = |cpu_ms: u64, at| {
        let of = |view: &View| {
            let process = view.observed.process.present()?.process.identity;
            let busy = if view.name.as_str() == "web" { 3 * cpu_ms } else { cpu_ms / 2 };
            let usage = Usage { cpu: Duration::from_millis(busy), resident: 34_000_000 + 1_000_000 * busy };
            Some((view.name.clone(), Sample { process, usage, at }))
        };
        views.vms.iter().filter_map(of).collect::<Vec<_>>()
    };
    let began = Instant::now();
    let (first, second) = (samples(0, began), samples(100, began + Duration::from_secs(2)));
    state.update(Event::All(views));
    state.update(Event::Usage(first, now(NOW - 2)));
    state.update(Event::Usage(second, now(NOW)));
    state.update(Event::Daemon(Daemon::Runs { version: "0.1.0".into(), pid: 812 }));
    state
}

/// What a terminal of this size shows.
fn shown(state: &State) -> String {
    let columns = u16::try_from(state.size.columns).unwrap();
    let mut terminal = Terminal::new(TestBackend::new(columns, u16::try_from(state.size.rows).unwrap())).unwrap();
    terminal.draw(|frame| draw::draw(frame, state, true)).unwrap();
    let cells = terminal.backend().buffer().content();
    let mut text = String::new();
    for row in cells.chunks(usize::from(columns).max(1)) {
        // The second cell of a wide character is not printed.
        let mut skip = 0;
        let mut line = String::new();
        for cell in row {
            if skip == 0 {
                line.push_str(cell.symbol());
                skip = super::text::width(cell.symbol()).max(1);
            }
            skip -= 1;
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[track_caller]
fn golden(name: &str, got: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cli/top/golden").join(name).with_extension("txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, got).unwrap();
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(got, expected, "\n{}\nexpected:\n{expected}\ngot:\n{got}", file.display());
}

fn press(state: &mut State, keys: &str) -> Option<Effect> {
    let codes = keys.chars().map(|c| match c {
        '\n' => KeyCode::Enter,
        '\x1b' => KeyCode::Esc,
        '\x08' => KeyCode::Backspace,
        '↓' => KeyCode::Down,
        '↑' => KeyCode::Up,
        '⇓' => KeyCode::PageDown,
        other => KeyCode::Char(other),
    });
    let mut last = None;
    for code in codes {
        last = state.update(Event::Key(KeyEvent::new(code, KeyModifiers::NONE)));
    }
    last
}

fn names(state: &State) -> Vec<&str> {
    state.order.iter().map(VmName::as_str).collect()
}

fn held(count: usize) -> Held {
    let deletion =
        |number| (format!("vm-{number}").parse().unwrap(), "stops firecracker (pid 4711), its disks stay".into());
    Held {
        digest: Some("3f9a1c".into()),
        deletions: (0..count).map(deletion).collect(),
        why: Hold::PruneCap { deletions: count, of: count + 1 }.to_string(),
        others: vec![],
    }
}

#[test]
fn the_list_is_readable_at_every_size() {
    for (columns, rows) in [(80, 24), (120, 40), (160, 20), (40, 12), (20, 5)] {
        golden(&format!("list-{columns}x{rows}"), &shown(&state_of(some(), columns, rows)));
    }
}

#[test]
fn pages_are_readable() {
    let mut state = state_of(some(), 80, 24);
    press(&mut state, "?");
    golden("help-80x24", &shown(&state));
    press(&mut state, "\x1b\n");
    golden("describe-80x24", &shown(&state));
    press(&mut state, "\x1bl");
    state.update(Event::Printed(b"Linux 6.1\r\n\x1b[32m[ OK ]\x1b[0m ready\x07\r\nlogin: ".to_vec()));
    golden("console-80x24", &shown(&state));
    press(&mut state, "\x1ba");
    state.update(Event::Held(1, Ok(held(3))));
    golden("approve-80x24", &shown(&state));
    let mut empty = state_of(Views { vms: vec![], now: None }, 80, 24);
    golden("empty-80x24", &shown(&empty));
    empty.update(Event::All(some()));
    press(&mut empty, "/nothing");
    golden("no-match-80x24", &shown(&empty));
}

#[test]
fn nothing_breaks_at_any_size_on_any_page() {
    for columns in [0, 1, 2, 3, 5, 10, 19, 20, 33, 80, 200] {
        for rows in [0, 1, 2, 3, 4, 5, 6, 13, 14, 16, 20, 50] {
            let mut state = state_of(some(), columns, rows);
            for keys in ["", "/w", "\n?", "↓⇓↑\x1b", "\n", "⇓G", "\x1bl", "⇓↑", "\x1ba"] {
                press(&mut state, keys);
                state.update(Event::Printed("日本語\ttext\n".repeat(30).into_bytes()));
                shown(&state);
            }
            state.update(Event::Held(1, Ok(held(9))));
            press(&mut state, "⇓⇓⇓G");
            shown(&state);
            state.update(Event::Resized(Size { columns: 7, rows: 3 }));
            shown(&state);
        }
    }
}

#[test]
fn text_from_elsewhere_reaches_no_terminal_as_it_is() {
    let mut state = state_of(some(), 160, 40);
    for keys in ["", "\n", "\x1bl"] {
        press(&mut state, keys);
        state.update(Event::Printed(b"\x1b]0;pwned\x07\x1b[2J".to_vec()));
        let text = shown(&state);
        assert!(!text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
    }
    assert!(shown(&state).contains("^[]0;pwned^G^[[2J"));
}

#[test]
fn colours_only_repeat_what_is_said() {
    let state = state_of(some(), 80, 24);
    for color in [true, false] {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw::draw(frame, &state, color)).unwrap();
        let cells = terminal.backend().buffer().content();
        assert_eq!(cells.iter().any(|cell| cell.fg != Color::Reset), color);
        assert!(cells.iter().all(|cell| cell.bg == Color::Reset));
        assert!(cells.iter().any(|cell| cell.modifier.contains(Modifier::REVERSED)), "the selected VM");
    }
}

#[test]
fn vms_are_sorted_and_filtered_and_the_selected_one_stays_selected() {
    let mut state = state_of(some(), 80, 24);
    let database = "database-of-the-accounting-department";
    assert_eq!(names(&state), ["api", database, "old", "rest", "web"]);
    press(&mut state, "↓↓");
    assert_eq!(state.selected.as_ref().unwrap().as_str(), "old");
    press(&mut state, "s");
    assert_eq!(names(&state), ["api", "rest", "old", database, "web"], "by status");
    press(&mut state, "s");
    assert_eq!(names(&state)[0], "web", "by CPU");
    assert_eq!(state.watched().len(), 5, "an order by CPU needs that of all");
    press(&mut state, "ss");
    assert_eq!(names(&state)[..2], ["api", "web"], "by restarts");
    press(&mut state, "r");
    assert_eq!(names(&state)[4], "api");
    assert_eq!(state.selected.as_ref().unwrap().as_str(), "old");
    press(&mut state, "/WEB");
    assert_eq!(names(&state), ["web"]);
    press(&mut state, "\x08\x08\x08tier=f");
    assert_eq!(state.order.len(), 5, "by label");
    press(&mut state, "\x1b/backing\n");
    assert_eq!(names(&state), ["api"]);
    assert_eq!(press(&mut state, "\x1b"), None, "Esc first gives the filter up");
    assert_eq!(press(&mut state, "\x1b"), Some(Effect::Quit));
}

#[test]
fn only_what_is_on_the_screen_is_measured() {
    let vms = (0..1000).map(|number| alive(&format!("vm-{number:04}"), 1000 + number, 0, 100)).collect();
    let mut state = state_of(Views { vms, now: Some(now(NOW)) }, 80, 24);
    let visible = state.watched();
    assert!((5..20).contains(&visible.len()), "{}", visible.len());
    press(&mut state, "G");
    assert_eq!(state.watched().last().unwrap().as_str(), "vm-0999");
    assert_eq!(state.watched().len(), visible.len());
    press(&mut state, "\n");
    assert_eq!(state.watched(), []);
}

#[test]
fn a_share_of_the_cpu_is_of_one_process_and_of_now() {
    let mut state = state_of(some(), 80, 24);
    let web: VmName = "web".parse().unwrap();
    assert_eq!(state.rows[&web].cpu(), Some(150), "300 ms in 2 s");
    let mut views = some();
    let Fact::Present(vmm) = &mut views.vms[4].observed.process else { unreachable!() };
    vmm.process.identity.start_time += 1;
    let process = vmm.process.identity;
    state.update(Event::All(views));
    assert_eq!((state.rows[&web].cpu(), state.rows[&web].memory()), (None, None), "another process by the same number");
    let began = Instant::now();
    let mut take = |cpu_ms: u64, after_ms: u64| {
        let usage = Usage { cpu: Duration::from_millis(cpu_ms), resident: 1 };
        let sample = Sample { process, usage, at: began + Duration::from_millis(after_ms) };
        state.update(Event::Usage(vec![(web.clone(), sample)], now(NOW)));
        state.rows[&web].cpu()
    };
    assert_eq!(take(9_000, 0), None);
    assert_eq!(take(10_000, 2_000), Some(500));
    assert_eq!(take(10_010, 2_010), Some(500), "one tick of the kernel's in 10 ms is not 100 %");
    assert_eq!(take(10_200, 4_000), Some(100), "and counts all the same");
    assert_eq!(take(10_200, 300_000), None, "what it did over minutes is no news");
}

#[test]
fn an_approval_needs_all_of_it_to_be_seen_and_a_y() {
    let mut state = state_of(some(), 80, 24);
    assert_eq!(press(&mut state, "a"), Some(Effect::Preview(1)));
    assert_eq!(press(&mut state, "y"), None, "nothing is known yet");
    state.update(Event::Held(1, Ok(held(40))));
    assert_eq!(press(&mut state, "y"), None, "its end was not on the screen");
    assert!(shown(&state).contains("Scroll to the end first"));
    for key in ["\n", " ", "\n", "d", "a"] {
        assert_eq!(press(&mut state, key), None);
    }
    press(&mut state, "⇓⇓⇓");
    assert!(shown(&state).contains("Digest: 3f9a1c"));
    assert_eq!(press(&mut state, "y"), Some(Effect::Approve("3f9a1c".into())));
    assert_eq!(press(&mut state, "y"), None, "once");
    state.update(Event::Answered("3f9a1c".into(), Ok("approved".into())));
    assert!(matches!(state.page, Page::List));
    assert!(shown(&state).contains("approved"));
    // No is no, and an answer that comes late is not shown to whoever left.
    press(&mut state, "a");
    press(&mut state, "n");
    state.update(Event::Held(2, Ok(held(1))));
    assert!(matches!(state.page, Page::List));
    press(&mut state, "a");
    state.update(Event::Held(3, Ok(Held { digest: None, ..held(0) })));
    assert_eq!(press(&mut state, "y"), None, "nothing waits");
    assert!(matches!(state.page, Page::Approval(Approval::Asked { .. })));
}

#[test]
fn an_earlier_preview_answers_no_later_question_and_there_is_one_at_a_time() {
    let mut state = state_of(some(), 80, 24);
    assert_eq!(press(&mut state, "a"), Some(Effect::Preview(1)));
    for _ in 0..3 {
        assert_eq!(press(&mut state, "\x1ba"), None, "it is being looked at");
    }
    let old = Held { digest: Some("old".into()), ..held(1) };
    assert_eq!(state.update(Event::Held(1, Ok(old))), Some(Effect::Preview(4)), "what was asked last is looked at");
    assert_eq!(press(&mut state, "y"), None);
    state.update(Event::Held(4, Ok(held(1))));
    assert!(shown(&state).contains("Digest: 3f9a1c"));
    assert_eq!(press(&mut state, "y"), Some(Effect::Approve("3f9a1c".into())));
    // Nor does the answer to an earlier approval end this one.
    state.update(Event::Answered("old".into(), Ok("approved old".into())));
    assert!(matches!(&state.page, Page::Approval(Approval::Sent { digest }) if digest == "3f9a1c"));
}

#[test]
fn one_vm_comes_changes_and_goes() {
    let mut state = state_of(some(), 80, 24);
    press(&mut state, "G");
    state.update(Event::Some(vec![("web".parse().unwrap(), None)], Some(now(NOW))));
    assert_eq!(state.order.len(), 4);
    assert_eq!(state.selected.as_ref().unwrap().as_str(), "rest", "whoever took its place");
    let new = alive("zebra", 9, 0, NOW);
    state.update(Event::Some(vec![(new.name.clone(), Some(new))], Some(now(NOW))));
    assert_eq!(names(&state).last(), Some(&"zebra"));
    assert_eq!(state.recent[0].vm.as_str(), "zebra");
}

#[test]
fn every_key_that_ends_it_does() {
    for (code, modifiers) in [(KeyCode::Char('q'), KeyModifiers::NONE), (KeyCode::Char('c'), KeyModifiers::CONTROL)] {
        for page in ["", "\n", "l", "?"] {
            let mut state = state_of(some(), 80, 24);
            press(&mut state, page);
            assert_eq!(state.update(Event::Key(KeyEvent::new(code, modifiers))), Some(Effect::Quit), "{page:?}");
        }
    }
    let mut state = state_of(some(), 80, 24);
    press(&mut state, "/q");
    assert_eq!(state.filter, "q", "it can be typed");
}

#[test]
fn once_prints_every_vm_and_no_keys() {
    let vms = (0..100).map(|number| alive(&format!("vm-{number:02}"), 1000 + number, 0, 100)).collect();
    let text = draw::text(&state_of(Views { vms, now: Some(now(NOW)) }, 100, 116));
    assert!((0..100).all(|number| text.contains(&format!("vm-{number:02} "))), "{text}");
    assert!(!text.contains("help") && !text.contains('\x1b'));
}
