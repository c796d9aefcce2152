//! `stead delete`.

use super::{CliError, Context, Exit, ask::ask};
use crate::control::Request;
use crate::names::VmName;

/// Stop a VM that no manifest declares, and forget it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
For VMs that are Unclaimed, protected or held back. A VM that a manifest declares is deleted by removing the manifest.

Examples:
  stead delete web")]
pub struct Args {
    /// The VM
    name: VmName,
}

pub(super) fn execute(context: &Context, args: Args) -> Result<Exit, CliError> {
    ask(context, &Request::Delete { name: args.name.clone() }, Some(args.name))
}
