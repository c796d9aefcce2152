//! `stead restart NAME`.

use super::act::{ActArgs, act};
use super::{CliError, Context, Exit};
use crate::control::Request;
use crate::names::VmName;

/// Arguments of `stead restart`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead restart web                                     stop web's guest in order, and start it anew
  stead get -o name | xargs -n1 stead restart           every VM, one after the other

A running `stead run` is asked to do it; where none runs, this command does it and waits until it is done.
It also lets changes take effect that wait for a restart (updatePolicy: OnRestart).")]
pub struct Args {
    /// The VM
    name: VmName,
    #[command(flatten)]
    act: ActArgs,
}

pub(super) fn execute(context: &Context, args: Args) -> Result<Exit, CliError> {
    let Args { name, act: options } = args;
    act(context, &options, "restart", &Request::Restart { name: name.clone() }, Some(name))
}
