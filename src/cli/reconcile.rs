//! `stead reconcile --once`.

use std::time::Duration;

use super::logging::is_for_journal;
use super::{CliError, Context, Exit, once, plan};
use crate::config::parse_duration;
use crate::plan::AllowPrune;
use crate::reconcile::OnceOptions;

/// Arguments of `stead reconcile`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead reconcile --once                      make the host as declared, then exit
  stead reconcile --once --dry-run            only show what would be done; exit status 3 if anything
  stead reconcile --once --timeout 5m         give slow guests more time
  stead reconcile --once --allow-prune 10     let up to 10 deletions through that the prune cap holds back
  * * * * * stead reconcile --once            as a line of crontab: silent where nothing changed

Exit status: 0 converged; 1 could not run; 2 finished, but a VM failed, is held or is backing off, a manifest is
broken, or the time was up; 3 changes pending (--dry-run); 4 a safety gate refused; 75 another stead holds the lock.")]
pub struct Args {
    /// Make one pass to convergence, then exit (to keep going there is `stead run`)
    #[arg(long, required = true)]
    once: bool,

    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,

    /// How long the pass may take
    #[arg(long, env = "STEAD_TIMEOUT", hide_env_values = true, value_name = "TIME", value_parser = parse_duration, default_value = "60s")]
    timeout: Duration,

    /// Let up to N deletions through beyond the prune cap
    #[arg(long, env = "STEAD_ALLOW_PRUNE", hide_env_values = true, value_name = "N", default_value_t = 0)]
    allow_prune: usize,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let Args { once: true, dry_run, timeout, allow_prune } = *args else {
        return Err(CliError::Setting {
            message: "`stead reconcile` needs --once".to_owned(),
            hint: "`stead reconcile --once` makes one pass; `stead run` keeps the host as declared".to_owned(),
        });
    };
    let allow_prune = AllowPrune(allow_prune);
    if dry_run {
        let stead = context.reader()?;
        return plan::show(context, &stead, allow_prune, plan::Output::Text);
    }
    let stead = context.actor("reconcile")?;
    let options = OnceOptions { timeout, allow_prune, only: None, sync: true };
    once::pass(context, &stead, &options, is_for_journal(&context.flags))
}
