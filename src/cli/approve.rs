//! `stead approve`.

use super::{CliError, Context, Exit, ask::ask};
use crate::control::Request;

/// Let deletions through that a safety gate holds back
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The digest is that of the plan that `stead plan` showed. Any change of what would be deleted voids it.

Examples:
  stead plan
  stead approve a4e9c5ef12f6")]
pub struct Args {
    /// The digest that `stead plan` shows
    digest: String,
}

pub(super) fn execute(context: &Context, args: Args) -> Result<Exit, CliError> {
    ask(context, &Request::Approve { digest: args.digest }, None)
}
