//! `stead adopt`.

use std::path::PathBuf;

use super::{CliError, Context, Exit, ask::ask};
use crate::control::Request;

/// Take over VMs that another manager left
#[derive(Debug, clap::Args)]
#[command(after_help = "\
DIR holds a handles.json, or a folder with one for each VM: an object with at least `pid` and `api_socket`, and the names of
its devices. The pid must be the process that listens on the socket. No VM is touched; each is Unclaimed until a manifest
of its name claims it.

Examples:
  stead adopt /var/lib/old-manager/vms")]
pub struct Args {
    /// The other manager's folder
    dir: PathBuf,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let what = || format!("find {}", args.dir.display());
    let dir = args.dir.canonicalize().map_err(|error| CliError::io(what(), error))?;
    ask(context, &Request::Adopt { dir }, None)
}
