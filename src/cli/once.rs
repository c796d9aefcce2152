//! One pass with its progress, as `reconcile --once` and the acting commands make it.

use super::exit::Ending;
use super::progress::Reporter;
use super::{CliError, Context, Exit, parts};
use crate::reconcile::{OnceOptions, Stead, once};

/// Makes a pass and tells of it, but for what the log tells. The caller holds the state's lock.
pub(super) fn pass(context: &Context, stead: &Stead, options: &OnceOptions, is_logged: bool) -> Result<Exit, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::io("start the runtime", source))?;
    let mut reporter = Reporter::new(context.term, is_logged);
    let ended = runtime.block_on(async {
        let mut progress = |event| reporter.tell(event);
        tokio::select! {
            outcome = once(stead, options, &mut progress) => Ok(outcome?),
            _ = tokio::signal::ctrl_c() => Err(CliError::Usage {
                message: "interrupted".to_owned(),
                hint: Some("what was begun is recorded; the next pass goes on from there".to_owned()),
            }),
        }
    });
    // A call to the host that hangs must not keep the process: what it was doing is recorded, and goes on next time.
    runtime.shutdown_background();
    reporter.clear();
    let outcome = ended?;
    for (source, why) in &outcome.unsynced {
        reporter.complain(&format!("{source}: not followed, what was in force stays in force: {why}"));
    }
    for problem in &outcome.problems {
        reporter.complain(&parts::problem_text(problem, context.term.err.color));
    }
    reporter.finish(&outcome)?;
    Ok(Exit::of(Ending::Passed(&outcome)))
}
