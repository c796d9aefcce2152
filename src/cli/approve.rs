//! `stead approve DIGEST`.

use super::act::{ActArgs, act};
use super::{CliError, Context, Exit};
use crate::control::Request;

/// Arguments of `stead approve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead plan                   shows the deletions that wait, and their digest
  stead approve 3f9a1c         lets exactly those through

Any change to what would be deleted voids an approval; so do a day and a reboot.")]
pub struct Args {
    /// The digest that `stead plan` shows
    digest: String,
    #[command(flatten)]
    act: ActArgs,
}

pub(super) fn execute(context: &Context, args: Args) -> Result<Exit, CliError> {
    let Args { digest, act: options } = args;
    act(context, &options, "approve", &Request::Approve { digest }, None)
}
