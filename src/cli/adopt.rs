//! `stead adopt DIR`.

use std::path::PathBuf;

use super::act::{ActArgs, act};
use super::{CliError, Context, Exit};
use crate::control::Request;

/// Arguments of `stead adopt`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead adopt /var/lib/old-manager/vms/web     take over one VM
  stead adopt /var/lib/old-manager/vms         take over every VM below

Each VM's folder holds a handles.json with at least its pid and its API socket. A VM is taken over only if that pid is
the process that listens on that socket; nothing is done to the VM itself.")]
pub struct Args {
    /// The folder
    dir: PathBuf,
    #[command(flatten)]
    act: ActArgs,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    // The running stead has another working directory.
    let dir = args.dir.canonicalize().map_err(|source| CliError::io(format!("find {}", args.dir.display()), source))?;
    if !dir.is_dir() {
        return Err(CliError::Usage {
            message: format!("{} is not a folder", dir.display()),
            hint: Some("name the folder in which the other manager keeps its VMs".to_owned()),
        });
    }
    act(context, &args.act, "adopt", &Request::Adopt { dir }, None)
}
