//! `stead schema`: the JSON Schema of manifests.

use super::{CliError, Context, Exit, table};
use crate::desired::manifest::json_schema;

/// Print the JSON Schema of manifests, for editors
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead schema > stead.schema.json
  # then, as the first line of a manifest:
  # yaml-language-server: $schema=./stead.schema.json")]
pub struct Args {}

pub(super) fn execute(context: &Context) -> Result<Exit, CliError> {
    context.term.print(table::json(&json_schema())?)?;
    Ok(Exit::Converged)
}
