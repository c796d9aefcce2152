//! `stead man DIR`: manual pages, for who packages stead.

use std::path::PathBuf;

use clap::CommandFactory;

use super::{Cli, CliError, Context, Exit};

/// Arguments of `stead man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead man target/man && man -l target/man/stead-run.1")]
pub struct Args {
    /// The folder to write them to
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// A page for stead, and one for each of its commands: `stead.1`, `stead-run.1`.
pub(super) fn execute(_: &Context, args: &Args) -> Result<Exit, CliError> {
    let folder = &args.folder;
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), folder))
        .map_err(|source| CliError::io(format!("write manual pages to {}", folder.display()), source))?;
    Ok(Exit::Converged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn each_command_has_a_page_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let context = Context::new(Cli::try_parse_from(["stead", "get"]).unwrap().flags);
        execute(&context, &Args { folder: folder.path().join("man") }).unwrap();
        let page = |name: &str| std::fs::read_to_string(folder.path().join(format!("man/{name}.1")));
        for command in Cli::command().get_subcommands() {
            let found = page(&format!("stead-{}", command.get_name()));
            assert_eq!(found.is_ok(), !command.is_hide_set(), "{}", command.get_name());
        }
        assert!(page("stead").unwrap().contains("stead\\-run(1)"), "the first page leads to the others");
        assert!(page("stead-run").unwrap().contains("kill \\-HUP"), "examples are in it");
    }
}
