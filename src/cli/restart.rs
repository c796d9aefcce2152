//! `stead restart`.

use super::{CliError, Context, Exit, ask::ask};
use crate::control::Request;
use crate::names::VmName;

/// Restart a VM once
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The guest is asked to stop, given its terminationGracePeriodSeconds, and started anew from its manifest. A VM that backs
off or has finished is started at once.

Examples:
  stead restart web")]
pub struct Args {
    /// The VM
    name: VmName,
}

pub(super) fn execute(context: &Context, args: Args) -> Result<Exit, CliError> {
    ask(context, &Request::Restart { name: args.name.clone() }, Some(args.name))
}
