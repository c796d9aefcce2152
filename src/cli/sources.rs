//! `stead sources [NAME]`.

use clap::ValueEnum;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::table::{age, align, one_line};
use super::{CliError, Context, Exit, view};
use crate::config::{Source, SourceKind};
use crate::reasons::Reason;
use crate::reconcile::{Stead, sync_state};
use crate::state::{AppliedCommit, SyncState};
use crate::sync::GitSource;

/// Arguments of `stead sources`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead sources                    where manifests come from, and which commit is in force
  stead sources fleet              the commits that were in force, with author and time
  stead sources -o json            for programs

Exit status: 0 every git source is followed; 2 one could not be, and what was in force stays in force.")]
pub struct Args {
    /// Only this one, with the commits that were in force
    name: Option<String>,

    /// How to show them
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table
    #[default]
    Table,
    /// A list for programs
    Json,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let stead = context.reader()?;
    let wanted = |source: &&Source| args.name.as_ref().is_none_or(|name| source.name.0 == *name);
    let sources: Vec<&Source> = stead.settings.sources.iter().filter(wanted).collect();
    if let (Some(name), []) = (&args.name, sources.as_slice()) {
        let known: Vec<&str> = stead.settings.sources.iter().map(|source| source.name.0.as_str()).collect();
        return Err(CliError::Usage {
            message: format!("there is no source {name:?}"),
            hint: Some(format!("there is {}", known.join(", "))),
        });
    }
    let shown: Vec<_> = sources.into_iter().map(|source| (source, state_of(&stead, source))).collect();
    let now = stead.host.now().wall;
    match args.output {
        Output::Json => {
            let list: Vec<Value> = shown.iter().map(|(source, state)| object(source, state.as_ref())).collect();
            context.term.print(view::to_json(&Value::from(list))?)?;
        }
        Output::Table => {
            let mut text = lines(&shown, now).join("\n") + "\n";
            if let (Some(_), [(source, Some(state))]) = (&args.name, shown.as_slice()) {
                text += &details(state, now);
                text += &warning_of(source).map_or_else(String::new, |warning| format!("\n{}\n", one_line(&warning)));
            }
            context.term.print(text)?;
        }
    }
    let is_failing = shown.iter().any(|(_, state)| state.as_ref().is_some_and(|state| state.failure.is_some()));
    Ok(if is_failing { Exit::Unconverged } else { Exit::Converged })
}

/// What is remembered of a git source.
fn state_of(stead: &Stead, source: &Source) -> Option<SyncState> {
    let SourceKind::Git(git) = &source.kind else { return None };
    let state = sync_state(stead, &source.name, git).unwrap_or_else(|error| {
        let mut unknown = SyncState::default();
        unknown.fail(error.reason(), error.one_line(), stead.host.now().wall);
        unknown
    });
    // What it could not do before it was told to do nothing is no news.
    let is_followed = !git.suspend && !state.pinned;
    Some(SyncState { failure: state.failure.filter(|_| is_followed), ..state })
}

fn lines(shown: &[(&Source, Option<SyncState>)], now: Timestamp) -> Vec<String> {
    let head = ["NAME", "FROM", "COMMIT", "AGE", "STATUS"].map(str::to_owned).to_vec();
    let row = |(source, state): &(&Source, Option<SyncState>)| {
        let none = || "-".to_owned();
        let (from, applied, status) = match (&source.kind, state) {
            (SourceKind::Git(git), Some(state)) => (git.url.to_string(), state.applied.as_ref(), status(git, state)),
            (SourceKind::Git(git), None) => (git.url.to_string(), None, none()),
            (SourceKind::Folder(path), _) => (path.display().to_string(), None, none()),
        };
        vec![
            source.name.to_string(),
            one_line(&from),
            applied.map_or_else(none, |applied| short(&applied.commit)),
            applied.map_or_else(none, |applied| age(now, applied.applied_at)),
            status,
        ]
    };
    align(&std::iter::once(head).chain(shown.iter().map(row)).collect::<Vec<_>>())
}

/// How following it goes, in a word.
fn status(git: &GitSource, state: &SyncState) -> String {
    match (&state.failure, &state.applied) {
        _ if git.suspend => Reason::Suspended.to_string(),
        _ if state.pinned => Reason::RolledBack.to_string(),
        (Some(failure), _) => failure.reason.clone(),
        (None, Some(_)) => Reason::Followed.to_string(),
        (None, None) => Reason::NeverSynced.to_string(),
    }
}

fn details(state: &SyncState, now: Timestamp) -> String {
    let mut text = String::new();
    if let Some(failure) = &state.failure {
        text +=
            &format!("\nFor {} it cannot be followed:\n  {}\n", age(now, failure.since), one_line(&failure.message));
    }
    let row = |mark: &str, commit: &AppliedCommit| {
        let of = |text: &str| one_line(text);
        vec![
            format!("{mark}{}", short(&commit.commit)),
            age(now, commit.applied_at),
            of(&commit.author),
            of(&commit.subject),
        ]
    };
    let head = ["  COMMIT", "IN FORCE SINCE", "AUTHOR", "SUBJECT"].map(str::to_owned).to_vec();
    let now_in_force = state.applied.iter().map(|commit| row("* ", commit));
    let before = state.history.iter().map(|commit| row("  ", commit));
    let rows: Vec<_> = std::iter::once(head).chain(now_in_force).chain(before).collect();
    text + "\n" + &align(&rows).join("\n") + "\n"
}

fn warning_of(source: &Source) -> Option<String> {
    match &source.kind {
        SourceKind::Git(git) => git.warning(),
        SourceKind::Folder(_) => None,
    }
}

fn short(commit: &str) -> String {
    commit.chars().take(12).collect()
}

fn object(source: &Source, state: Option<&SyncState>) -> Value {
    let (kind, from) = match &source.kind {
        SourceKind::Folder(path) => ("folder", path.display().to_string()),
        SourceKind::Git(git) => ("git", git.url.to_string()),
    };
    let status = match (&source.kind, state) {
        (SourceKind::Git(git), Some(state)) => Some(status(git, state)),
        _ => None,
    };
    json!({
        "name": source.name.0,
        "kind": kind,
        "from": from,
        "status": status,
        "applied": state.and_then(|state| state.applied.as_ref()),
        "history": state.map(|state| &state.history),
        "pinned": state.map(|state| state.pinned),
        "failure": state.and_then(|state| state.failure.as_ref()),
        "warning": warning_of(source),
        "triedAt": state.and_then(|state| state.tried_at),
    })
}
