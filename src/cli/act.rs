//! Acting commands: through the running stead, or, where none runs, by our own hand.

use std::time::Duration;

use super::{CliError, Context, Exit, once};
use crate::config::{Access, open_state, parse_duration};
use crate::control::{Reply, Request, ask};
use crate::names::VmName;
use crate::plan::AllowPrune;
use crate::reconcile::{OnceOptions, request};

/// How long the running stead may take to record a request durably.
pub(super) const ANSWER_BOUND: Duration = Duration::from_secs(10);

/// Arguments of every acting command.
#[derive(Debug, clap::Args)]
pub(super) struct ActArgs {
    /// How long it may take where no `stead run` is at work
    #[arg(long, env = "STEAD_TIMEOUT", hide_env_values = true, value_name = "TIME", value_parser = parse_duration, default_value = "60s")]
    timeout: Duration,
}

/// Has `what` done; for `only` this VM, if it is about one.
pub(super) fn act(
    context: &Context,
    args: &ActArgs,
    command: &str,
    what: &Request,
    only: Option<VmName>,
) -> Result<Exit, CliError> {
    let settings = context.settings()?;
    if let Some(reply) = ask(&open_state(&settings, Access::Reader)?, what, ANSWER_BOUND)? {
        return told(context, reply);
    }
    // Nobody was there to ask; if a `stead run` starts right now, the lock tells.
    let stead = context.actor(command)?;
    told(context, request(&stead, what)?)?;
    once::pass(
        context,
        &stead,
        &OnceOptions { timeout: args.timeout, allow_prune: AllowPrune::default(), only, sync: false },
        false,
    )
}

pub(super) fn told(context: &Context, reply: Reply) -> Result<Exit, CliError> {
    match reply {
        Reply::Accepted { message } => context.term.print(format!("{message}\n"))?,
        Reply::Pong { version, pid } => context.term.print(format!("stead {version} (pid {pid})\n"))?,
        Reply::Collected { lines, unfreed } => {
            let text = if lines.is_empty() { "Nothing is left over.".to_owned() } else { lines.join("\n") };
            context.term.print(format!("{text}\n"))?;
            return Ok(if unfreed == 0 { Exit::Converged } else { Exit::Unconverged });
        }
        Reply::Refused { message, hint } => return Err(CliError::Usage { message, hint }),
    }
    Ok(Exit::Converged)
}
