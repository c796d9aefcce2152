//! `stead delete NAME`.

use super::act::{ActArgs, act};
use super::{CliError, Context, Exit};
use crate::control::Request;
use crate::names::VmName;

/// Arguments of `stead delete`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead delete old-web         stop old-web and free everything it holds

This is for VMs that no manifest declares: unclaimed ones, and those that `stead.dev/prune: disabled` protects.
To delete a VM that a manifest declares, remove the manifest.")]
pub struct Args {
    /// The VM
    name: VmName,
    #[command(flatten)]
    act: ActArgs,
}

pub(super) fn execute(context: &Context, args: Args) -> Result<Exit, CliError> {
    let Args { name, act: options } = args;
    act(context, &options, "delete", &Request::Delete { name: name.clone() }, Some(name))
}
