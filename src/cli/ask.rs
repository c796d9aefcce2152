//! How `restart`, `delete`, `approve` and `adopt` reach whoever acts on this state: the running stead if there is one, else
//! this process, which takes the lock and makes a pass itself.

use std::time::Duration;

use super::{CliError, Context, Exit, reconcile};
use crate::config::{Access, StateLock};
use crate::control::{self, Reply, Request};
use crate::names::VmName;
use crate::plan::AllowPrune;

/// How long the running stead may take to answer: a worker may be at the VM, and each call of its is bounded.
const ANSWER_BOUND: Duration = Duration::from_secs(30);
/// How long a pass made here may take.
const PASS_BOUND: Duration = Duration::from_secs(60);

/// Asks, and says what came of it. Where no stead runs, a pass over `only`, or over all VMs, follows.
pub(super) fn ask(context: &Context, request: &Request, only: Option<VmName>) -> Result<Exit, CliError> {
    let stead = context.stead(Access::Actor)?;
    if let Some(reply) = control::ask(&stead.layout, request, ANSWER_BOUND)? {
        return tell(context, reply);
    }
    let _lock = StateLock::take(&stead.layout, "an acting command")?;
    tell(context, crate::reconcile::request(&stead, request)?)?;
    reconcile::pass(context, &stead, AllowPrune::default(), only, PASS_BOUND)
}

fn tell(context: &Context, reply: Reply) -> Result<Exit, CliError> {
    match reply {
        Reply::Accepted { message } => {
            context.term.print(format!("{message}\n"))?;
            Ok(Exit::Converged)
        }
        Reply::Refused { message, hint } => Err(CliError::Usage { message, hint }),
        Reply::Pong { version, pid } => {
            context.term.print(format!("stead {version}, pid {pid}\n"))?;
            Ok(Exit::Converged)
        }
    }
}
