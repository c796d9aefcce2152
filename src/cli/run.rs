//! `stead run`: the daemon.

use super::{CliError, Context, Exit};
use crate::config::{Access, StateLock};
use crate::reconcile;

/// Keep the host as declared, until stopped
#[derive(Debug, clap::Args)]
#[command(after_help = "\
SIGTERM and SIGINT end it; no VM is touched by that. SIGHUP looks at everything again.

Examples:
  stead run
  stead --manifests ./vms --state-dir ./state --run-dir /tmp/stead run
  STEAD_LOG_FORMAT=json stead run")]
pub struct Args {}

pub(super) fn execute(context: &Context, _: &Args) -> Result<Exit, CliError> {
    let stead = context.stead(Access::Actor)?;
    let _lock = StateLock::take(&stead.layout, "run")?;
    super::runtime()?.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| signal(kind).map_err(|error| CliError::io("listen for signals", error));
        let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        reconcile::run(stead, shutdown).await?;
        Ok(Exit::Converged)
    })
}
