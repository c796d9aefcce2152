//! `stead schema`.

use super::{CliError, Context, Exit, parts, view};

/// Arguments of `stead schema`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead schema > ~/.config/stead/schema.json
  # yaml-language-server: $schema=/home/me/.config/stead/schema.json      as a manifest's first line")]
pub struct Args {}

pub(super) fn execute(context: &Context) -> Result<Exit, CliError> {
    context.term.print(view::to_json(&parts::schema())?)?;
    Ok(Exit::Converged)
}
