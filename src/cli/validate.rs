//! `stead validate`: manifests checked without touching the host.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::{CliError, Context, Exit, render};
use crate::desired::load::{load_text, validate_paths};
use crate::desired::{Desired, SourceName};

/// Check manifests without touching the host
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 all are sound, 1 something is wrong.

Examples:
  stead validate web.yaml
  stead validate /etc/stead/manifests
  generate-manifests | stead validate -")]
pub struct Args {
    /// Files and folders; `-` is standard input
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let (input, paths): (Vec<_>, Vec<_>) = args.paths.iter().cloned().partition(|path| path == Path::new("-"));
    let mut desired = validate_paths(&paths);
    if !input.is_empty() {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(|error| CliError::io("read standard input", error))?;
        let Desired { vms, mut problems, .. } =
            load_text(SourceName("standard input".to_owned()), Path::new("<stdin>"), &text);
        for (name, declarations) in vms {
            desired.vms.entry(name).or_default().extend(declarations);
        }
        desired.problems.append(&mut problems);
    }
    let mut text: String = desired.problems.iter().map(|problem| render::problem(problem, context.term.err)).collect();
    let mut wrong = desired.problems.len();
    for (name, declarations) in desired.vms.iter().filter(|(_, declarations)| declarations.len() > 1) {
        let places: Vec<String> = declarations.iter().map(|declaration| declaration.origin.to_string()).collect();
        text += &format!(
            "{} VM {name} is declared {} times: {}\n\n",
            context.term.err.bad("error:"),
            places.len(),
            places.join(", ")
        );
        wrong += 1;
    }
    // What cannot be listed at all is no problem of a manifest, and no reason to call it sound.
    for why in desired.sources.values().filter(|source| source.root.is_none()).flat_map(|source| &source.incomplete) {
        if wrong == 0 {
            text += &format!("{} {why}\n\n", context.term.err.bad("error:"));
            wrong += 1;
        }
    }
    eprint!("{text}");
    if wrong > 0 {
        eprintln!("{wrong} problem{} found.", if wrong == 1 { "" } else { "s" });
        return Ok(Exit::Failed);
    }
    let count = desired.vms.len();
    context.term.print(format!("{count} VM{} declared, all sound.\n", if count == 1 { "" } else { "s" }))?;
    Ok(Exit::Converged)
}
