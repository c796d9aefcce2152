//! `stead schema [KIND]`.

use clap::ValueEnum;

use super::{CliError, Context, Exit, view};
use crate::config::configuration_schema;
use crate::desired::manifest::{host_schema, json_schema};

/// Arguments of `stead schema`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead schema > ~/.config/stead/schema.json
  stead schema configuration       of /etc/stead/config.yaml
  # yaml-language-server: $schema=/home/me/.config/stead/schema.json      as a manifest's first line")]
pub struct Args {
    /// Of which kind of document
    #[arg(value_enum, default_value_t, value_name = "KIND")]
    kind: Kind,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A VM's manifest
    #[default]
    VirtualMachine,
    /// A document that lists a host
    Host,
    /// The configuration file
    Configuration,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let schema = match args.kind {
        Kind::VirtualMachine => json_schema(),
        Kind::Host => host_schema(),
        Kind::Configuration => configuration_schema(),
    };
    context.term.print(view::to_json(&schema)?)?;
    Ok(Exit::Converged)
}
