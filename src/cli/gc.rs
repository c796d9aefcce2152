//! `stead gc`.

use std::time::Duration;

use super::act::told;
use super::{CliError, Context, Exit};
use crate::config::{Access, open_state};
use crate::control::{Request, ask};
use crate::reconcile::{orphans, request};

/// How long the running stead may take: it waits for a moment in which it works on no VM.
const ANSWER_BOUND: Duration = Duration::from_secs(60);

/// Arguments of `stead gc`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead gc --dry-run               list what nothing accounts for, and what would become of it
  stead gc                         free what is old enough and in nobody's use

Every object that stead makes carries the id of its state folder: objects of another stead, or of anybody else, are never
looked at twice. `stead run` and `stead reconcile --once` do the same in each full pass. How old an orphan must be is set
by --orphan-age.

Exit status: 0 all that was due is freed; 2 something could not be freed; 3 there is something to free (--dry-run).")]
pub struct Args {
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    if args.dry_run {
        return list(context);
    }
    let settings = context.settings()?;
    if let Some(reply) = ask(&open_state(&settings, Access::Reader)?, &Request::Gc, ANSWER_BOUND)? {
        return told(context, reply);
    }
    // Nobody was there to ask; if a `stead run` starts right now, the lock tells.
    let stead = context.actor("gc")?;
    told(context, request(&stead, &Request::Gc)?)
}

fn list(context: &Context) -> Result<Exit, CliError> {
    let stead = context.reader()?;
    let orphans = orphans(&stead).map_err(|source| CliError::io("look for orphans", source))?;
    let now = stead.host.now();
    let lines: Vec<String> = orphans.iter().map(|orphan| orphan.line(&now)).collect();
    let text = if lines.is_empty() { "Nothing is left over.".to_owned() } else { lines.join("\n") };
    context.term.print(format!("{text}\n"))?;
    Ok(if orphans.iter().any(crate::plan::orphans::Orphan::is_due) { Exit::Pending } else { Exit::Converged })
}
