//! `stead reconcile --once`: one pass to convergence.

use std::time::Duration;

use super::{CliError, Context, Exit, exit::Ending, progress::Progress};
use crate::config::{Access, StateLock, parse_duration};
use crate::names::VmName;
use crate::plan::{AllowPrune, show};
use crate::reconcile::{self, OnceOptions, Stead};

/// Make one pass to convergence, for cron
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Says nothing when nothing changed, and one line a change otherwise, so that cron mails only what matters.

Examples:
  stead reconcile --once
  stead reconcile --once --dry-run          show what would be done; exits 3 if there is anything
  stead reconcile --once --timeout 5m
  stead reconcile --once --allow-prune 10   let up to 10 deletions through, whatever their share")]
pub struct Args {
    /// Make one pass and exit; `stead run` is what keeps on
    #[arg(long, required = true)]
    once: bool,
    /// Show what would be done, and do none of it
    #[arg(long, env = "STEAD_DRY_RUN")]
    dry_run: bool,
    /// How long it may wait for guests to stop and start
    #[arg(long, env = "STEAD_TIMEOUT", value_name = "TIME", value_parser = parse_duration, default_value = "60s")]
    timeout: Duration,
    /// Deletions to let through beyond the prune cap
    #[arg(long, env = "STEAD_ALLOW_PRUNE", value_name = "N", default_value_t = 0)]
    allow_prune: usize,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let allow_prune = AllowPrune(args.allow_prune);
    if args.dry_run {
        let preview = reconcile::preview(&context.stead(Access::Reader)?, allow_prune)?;
        context.term.print(show::text(&preview.plan, context.term.out.color))?;
        return Ok(Exit::of(Ending::Shown(&preview.plan)));
    }
    let stead = context.stead(Access::Actor)?;
    let _lock = StateLock::take(&stead.layout, "reconcile --once")?;
    pass(context, &stead, allow_prune, None, args.timeout)
}

/// One pass, told as it goes.
pub(super) fn pass(
    context: &Context,
    stead: &Stead,
    allow_prune: AllowPrune,
    only: Option<VmName>,
    timeout: Duration,
) -> Result<Exit, CliError> {
    let mut progress = Progress::new(&context.term);
    let options = OnceOptions { timeout, allow_prune, only };
    let outcome = super::runtime()?.block_on(reconcile::once(stead, &options, &mut |step| progress.take_in(&step)))?;
    progress.end(&outcome)?;
    Ok(Exit::of(Ending::Passed(&outcome)))
}
