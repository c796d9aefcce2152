//! `stead run`.

use tokio::signal::unix::{SignalKind, signal};

use super::{CliError, Context, Exit};

/// Arguments of `stead run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead run                                        as root: /etc/stead/manifests, /var/lib/stead, /run/stead
  stead run --manifests ./manifests                with another folder of manifests
  STEAD_LOG_FORMAT=json stead run                  with log lines for a collector
  kill -HUP $(pidof stead)                         look at everything again, now

SIGTERM and SIGINT end it. No VM is stopped by that: the next `stead run` takes them over as they are.")]
pub struct Args {}

pub(super) fn execute(context: &Context, Args {}: &Args) -> Result<Exit, CliError> {
    let stead = context.actor("run")?;
    // The loop's thread waits for events itself: of a second one it would only be woken. Turns have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::io("start the runtime", source))?;
    let ended = runtime.block_on(async {
        let listen = |kind| signal(kind).map_err(|source| CliError::io("listen to signals", source));
        let (mut terminated, mut interrupted) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        let shutdown = async move {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = interrupted.recv() => {}
            }
        };
        Ok(crate::reconcile::run(stead, shutdown).await?)
    });
    // A call to the host that hangs must not keep the process: what it was doing is recorded, and goes on next time.
    runtime.shutdown_background();
    ended.map(|()| Exit::Converged)
}
