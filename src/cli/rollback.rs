//! `stead rollback SOURCE [COMMIT]`.

use super::act::{ActArgs, act};
use super::{CliError, Context, Exit};
use crate::control::Request;

/// Arguments of `stead rollback`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead rollback fleet                 put the commit before the present one in force, and stay there
  stead rollback fleet 3f9a1c2         put this one in force, one of those that `stead sources fleet` lists
  stead rollback fleet --release       follow the repository again

The gates hold for what a rollback deletes as for any other change.")]
pub struct Args {
    /// The git source
    source: String,

    /// How the commit's id begins
    #[arg(conflicts_with = "release")]
    commit: Option<String>,

    /// Follow the repository again
    #[arg(long)]
    release: bool,

    #[command(flatten)]
    act: ActArgs,
}

pub(super) fn execute(context: &Context, args: Args) -> Result<Exit, CliError> {
    let Args { source, commit, release, act: options } = args;
    act(context, &options, "rollback", &Request::RollBack { source, commit, release }, None)
}
