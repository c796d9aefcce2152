//! `stead sync SOURCE`.

use std::time::Duration;

use super::act::told;
use super::{CliError, Context, Exit, once};
use crate::config::{Access, SourceKind, open_state, parse_duration};
use crate::control::{Reply, Request, ask};
use crate::plan::AllowPrune;
use crate::reconcile::{OnceOptions, request};

/// How long the running stead may take beyond what the source's own time limit gives: what was under way comes first.
const MORE: Duration = Duration::from_secs(120);

/// Arguments of `stead sync`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead sync                       fetch every git source now, and put in force what is new
  stead sync fleet                 only this one, as a hook of the git server would

A running `stead run` is asked to do it; where none runs, this command does it, and then what follows from it.

Exit status: 0 all are followed; 1 one could not be, and what was in force stays in force; else as for reconcile --once.")]
pub struct Args {
    /// The source; all git sources if none is named
    source: Option<String>,

    /// How long what follows may take where no `stead run` is at work
    #[arg(long, env = "STEAD_TIMEOUT", hide_env_values = true, value_name = "TIME", value_parser = parse_duration, default_value = "60s")]
    timeout: Duration,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let settings = context.settings()?;
    let layout = open_state(&settings, Access::Reader)?;
    let repositories = settings.sources.iter().filter_map(|source| match &source.kind {
        SourceKind::Git(git) => Some((source.name.0.clone(), git.timeout)),
        SourceKind::Folder(_) => None,
    });
    let mut wanted: Vec<(String, Duration)> = repositories.collect();
    if let Some(name) = &args.source {
        // One that there is not is refused by whoever is asked.
        wanted = vec![wanted.into_iter().find(|(known, _)| known == name).unwrap_or((name.clone(), Duration::ZERO))];
    }
    if wanted.is_empty() {
        return Err(CliError::Usage {
            message: "there is no git source to follow".to_owned(),
            hint: Some("sources are named in the configuration; `stead sources` lists them".to_owned()),
        });
    }
    let mut own = None;
    let mut exit = Exit::Converged;
    for (source, timeout) in wanted {
        let what = Request::Sync { source };
        let reply = if let Some(reply) = ask(&layout, &what, timeout + MORE)? {
            reply
        } else {
            // Nobody was there to ask; if a `stead run` starts right now, the lock tells.
            let stead = match own.take() {
                Some(stead) => stead,
                None => context.actor("sync")?,
            };
            let reply = request(&stead, &what)?;
            own = Some(stead);
            reply
        };
        match reply {
            Reply::Refused { message, hint } => {
                super::report(&CliError::Usage { message, hint }, context.term);
                exit = Exit::Failed;
            }
            other => drop(told(context, other)?),
        }
    }
    let Some(stead) = own else { return Ok(exit) };
    let options = OnceOptions { timeout: args.timeout, allow_prune: AllowPrune::default(), only: None, sync: false };
    let passed = once::pass(context, &stead, &options, false)?;
    Ok(if exit == Exit::Converged { passed } else { exit })
}
