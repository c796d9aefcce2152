//! `stead completions`: for shells.

use clap::CommandFactory;

use super::{Cli, CliError, Context, Exit};

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead completions bash > /etc/bash_completion.d/stead
  stead completions zsh > \"${fpath[1]}/_stead\"
  stead completions fish > ~/.config/fish/completions/stead.fish")]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "stead", &mut script);
    context.term.print(String::from_utf8_lossy(&script))?;
    Ok(Exit::Converged)
}
