//! Where stead's own log lines go, and what they show.

use std::fmt;
use std::io;

use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::{MakeVisitor, VisitFmt, VisitOutput};
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};
use tracing_subscriber::prelude::*;

use super::{Cli, CliError, Command, Context, Flags, LogFormat};

/// What a line for people leaves out: its text says the same, or `stead events` does. The journal and JSON have all of it.
const FOR_PROGRAMS: [&str; 6] = ["reason", "outcome", "duration_micros", "plan_digest", "origin", "commit"];

/// Begins to log to standard error: one line a change for `run`, only bugs for the others, which tell of changes and failures
/// themselves. Where standard error leads to systemd's journal, that is told the fields of each line by themselves, also of a
/// pass that a timer makes.
///
/// The journal's socket blocks who writes while its queue is full, as every service's standard error and sd_journal_send(3) do.
/// That lasts until systemd has started it again: it has a watchdog of its own, and stead has one too.
///
/// # Errors
/// Where the level that was asked for is none.
pub fn start(cli: &Cli, context: &Context) -> Result<(), CliError> {
    let is_told = matches!(cli.command, Command::Run(_))
        || (matches!(cli.command, Command::Reconcile(_)) && is_for_journal(&cli.flags));
    let usual = if is_told { "info" } else { "error" };
    let level = cli.flags.log_level.as_deref().filter(|level| !level.is_empty()).unwrap_or(usual);
    let filter = EnvFilter::try_new(level).map_err(|error| CliError::Setting {
        message: format!("--log-level {level:?}: {error}"),
        hint: "one of error, warn, info, debug and trace, or a filter such as stead=debug".to_owned(),
    })?;
    if is_for_journal(&cli.flags)
        && let Ok(journal) = tracing_journald::layer()
    {
        // Without a prefix: VM=, REASON=, as journalctl is asked for them.
        let journal = journal.with_field_prefix(None).with_syslog_identifier("stead".to_owned());
        tracing_subscriber::registry().with(filter).with(journal).init();
        return Ok(());
    }
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(context.term.err.color);
    match cli.flags.log_format {
        LogFormat::Text => lines.fmt_fields(ForPeople).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Whether the journal is told what is done, with fields.
pub(super) fn is_for_journal(flags: &Flags) -> bool {
    flags.log_format == LogFormat::Text && leads_to_journal()
}

/// Whether standard error is the stream to the journal that systemd set up, and was not led elsewhere since (systemd.exec(5),
/// `$JOURNAL_STREAM`).
fn leads_to_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(io::stderr()).is_ok_and(|stat| stream == *format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Fields as they are usually shown, without those that are for programs.
struct ForPeople;

struct Shown<'a>(DefaultVisitor<'a>);

impl<'a> MakeVisitor<Writer<'a>> for ForPeople {
    type Visitor = Shown<'a>;

    fn make_visitor(&self, target: Writer<'a>) -> Self::Visitor {
        Shown(DefaultVisitor::new(target, true))
    }
}

impl Visit for Shown<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if !FOR_PROGRAMS.contains(&field.name()) {
            self.0.record_str(field, value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.0.record_error(field, value);
    }

    // All other kinds of values come here.
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if !FOR_PROGRAMS.contains(&field.name()) {
            self.0.record_debug(field, value);
        }
    }
}

impl VisitOutput<fmt::Result> for Shown<'_> {
    fn finish(self) -> fmt::Result {
        self.0.finish()
    }
}

impl VisitFmt for Shown<'_> {
    fn writer(&mut self) -> &mut dyn fmt::Write {
        self.0.writer()
    }
}
