//! `stead completions SHELL`.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, CliError, Context, Exit};

/// Arguments of `stead completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead completions bash > /etc/bash_completion.d/stead
  stead completions zsh > ~/.zfunc/_stead
  stead completions fish > ~/.config/fish/completions/stead.fish")]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "stead", &mut text);
    context.term.print(String::from_utf8_lossy(&text))?;
    Ok(Exit::Converged)
}
