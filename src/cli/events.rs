//! `stead events`.

use clap::ValueEnum;
use notify::RecursiveMode;

use super::sanitize::Sanitizer;
use super::table::{align, one_line};
use super::term::Stream;
use super::watch::{Changes, until_interrupted};
use super::{CliError, Context, Exit};
use crate::audit::{self, Entry, News, Tail};
use crate::config::{Access, open_state};
use crate::names::{Layout, VmName};
use crate::status::EventType;

/// How many of the last ones are shown before those to come, if nobody says how many.
const BEFORE_FOLLOWING: usize = 10;

/// Arguments of `stead events`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead events                         what was done here, and what was held back, oldest first
  stead events -f --vm web             the last ten of VM web, and those to come
  stead events -n 100 -o json | jq .   one JSON object a line: with the plan, the source and its commit, and the time it took

What a VM that fails does again and again has a line the 1st, 2nd, 4th, 8th time and so on, with a count. See docs/events.md.")]
pub struct Args {
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,

    /// Only what is about this VM
    #[arg(long, value_name = "NAME")]
    vm: Option<VmName>,

    /// Only the last N [default: all that is kept; 10 with --follow]
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<usize>,

    /// How to show them
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Text,
    /// For programs: one JSON object a line
    Json,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let Args { follow, vm, tail, output } = args;
    let layout = open_state(&context.settings()?, Access::Reader)?;
    let usual = if *follow { BEFORE_FOLLOWING } else { usize::MAX };
    let failed = |source| CliError::io(format!("read {}", layout.audit_log().display()), source);
    // From here on nothing is missed: what is written while the last ones are read comes once more, and is left out then.
    let followed = Tail::new(&layout).map_err(failed)?;
    let before = audit::last(&layout, vm.as_ref(), tail.unwrap_or(usual)).map_err(failed)?;
    let mut printer = Printer::new(context.term.out, *output);
    printer.print(context, &before)?;
    if !*follow {
        if before.is_empty() {
            let whose = vm.as_ref().map_or_else(|| "anything".to_owned(), |vm| format!("VM {vm}"));
            context.term.note(&format!("nothing is on record of {whose} yet"));
        }
        return Ok(Exit::Converged);
    }
    until_interrupted(follow_on(context, &layout, followed, vm.as_ref(), before, printer))
}

async fn follow_on(
    context: &Context,
    layout: &Layout,
    mut tail: Tail,
    vm: Option<&VmName>,
    shown: Vec<Entry>,
    mut printer: Printer,
) -> Result<(), CliError> {
    let wanted = layout.audit_log();
    let mut changes = Changes::new(move |changed| changed == wanted)?;
    changes.add(&layout.state_dir, RecursiveMode::NonRecursive)?;
    let failed = |source| CliError::io(format!("read {}", layout.audit_log().display()), source);
    let mut shown = Some(shown);
    loop {
        let News { entries: mut new, may_lack } = tail.read_new().map_err(failed)?;
        if may_lack {
            context.term.note("the log began anew more than once before it was read, or was cut: entries may be lost");
        }
        let known = shown.take().unwrap_or_default();
        new.retain(|entry| vm.is_none_or(|vm| entry.vm.as_ref() == Some(vm)) && !known.contains(entry));
        printer.print(context, &new)?;
        changes.next().await;
    }
}

/// Shows entries as they come, in columns that stay.
struct Printer {
    out: Stream,
    output: Output,
    /// How wide the columns of the first ones were.
    widths: [usize; 4],
}

impl Printer {
    fn new(out: Stream, output: Output) -> Self {
        Self { out, output, widths: [0; 4] }
    }

    fn print(&mut self, context: &Context, entries: &[Entry]) -> Result<(), CliError> {
        if entries.is_empty() {
            return Ok(());
        }
        let mut text = match self.output {
            Output::Text => self.text(entries),
            Output::Json => json(entries)?,
        };
        if self.out.is_terminal && self.output == Output::Json {
            // What comes from a VMM, a repository or a manifest is in there. In the lines for people it is one line already.
            let mut sanitizer = Sanitizer::default();
            text = sanitizer.push(text.as_bytes()) + &sanitizer.finish();
        }
        Ok(context.term.print(text)?)
    }

    fn text(&mut self, entries: &[Entry]) -> String {
        let rows: Vec<[String; 5]> = entries.iter().map(row).collect();
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut text = String::new();
        for (entry, row) in entries.iter().zip(rows) {
            let mut cells: Vec<String> = row.into_iter().collect();
            for (cell, width) in cells.iter_mut().zip(self.widths) {
                *cell = format!("{cell:width$}");
            }
            if entry.kind == EventType::Warning {
                cells[1] = self.out.careful(&cells[1]);
            }
            text.extend(align(&[cells]));
            text.push('\n');
        }
        text
    }
}

/// Time, type, VM, reason, and what happened.
fn row(entry: &Entry) -> [String; 5] {
    let vm = entry.vm.as_ref().map(ToString::to_string);
    let about = vm.or_else(|| Some(format!("source {}", entry.source.as_ref()?.name)));
    let time = entry.time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let reason = clean(&entry.reason);
    let mut message = clean(&entry.message);
    if let (Some(count), Some(since)) = (entry.count, entry.since) {
        message += &format!(" ({count} times since {})", since.strftime("%Y-%m-%dT%H:%M:%SZ"));
    }
    [time, entry.kind.to_string(), clean(&about.unwrap_or_else(|| "-".to_owned())), reason, message]
}

/// Text from elsewhere as one line that commands no terminal.
fn clean(text: &str) -> String {
    let mut sanitizer = Sanitizer::default();
    let text = sanitizer.push(one_line(text).as_bytes());
    text + &sanitizer.finish()
}

fn json(entries: &[Entry]) -> Result<String, CliError> {
    let mut text = String::new();
    for entry in entries {
        text += &serde_json::to_string(entry).map_err(|error| CliError::Format(error.to_string()))?;
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reasons::Reason;
    use jiff::Timestamp;

    fn entry(vm: &str, kind: EventType, message: &str) -> Entry {
        let entry = Entry::new(Timestamp::from_second(1).unwrap(), kind, Reason::Failed, message);
        Entry { vm: Some(vm.parse().unwrap()), ..entry }
    }

    #[test]
    fn a_line_is_one_line_and_commands_no_terminal() {
        let mut printer = Printer::new(Stream::default(), Output::Text);
        let text = printer.text(&[
            entry("web", EventType::Warning, "git said:\n\x1b]0;pwned\x07 \u{202e}gpj"),
            entry("database", EventType::Normal, "fine"),
        ]);
        assert_eq!(
            text,
            "1970-01-01T00:00:01Z  Warning  web       Failed  git said:  ]0;pwned  \u{fffd}gpj\n\
             1970-01-01T00:00:01Z  Normal   database  Failed  fine\n"
        );
        // Those that come later stand under the first ones.
        let again =
            Entry { count: Some(4), since: Some(Timestamp::UNIX_EPOCH), ..entry("db", EventType::Normal, "up") };
        let later = printer.text(&[again]);
        let times = "(4 times since 1970-01-01T00:00:00Z)";
        assert_eq!(later, format!("1970-01-01T00:00:01Z  Normal   db        Failed  up {times}\n"));
    }
}
