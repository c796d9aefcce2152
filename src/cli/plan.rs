//! `stead plan`.

use std::io::Write;

use clap::ValueEnum;

use super::exit::Ending;
use super::{CliError, Context, Exit, parts, view};
use crate::plan::AllowPrune;
use crate::reconcile::{Stead, preview};

/// Arguments of `stead plan`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead plan                             what would be done, and why
  stead plan -o json | jq .              the same for programs
  stead plan --manifests ./new           what another folder of manifests would change

Exit status: 0 nothing to do; 3 changes pending; 4 a safety gate refuses some; 1 could not look.")]
pub struct Args {
    /// How to show it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,
}

/// How a plan is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
    /// For both
    Yaml,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let stead = context.reader()?;
    show(context, &stead, AllowPrune::default(), args.output)
}

/// Shows what would be done, and what is wrong with the manifests it follows from.
pub(super) fn show(context: &Context, stead: &Stead, allow: AllowPrune, output: Output) -> Result<Exit, CliError> {
    let preview = preview(stead, allow)?;
    for problem in &preview.desired.problems {
        let _ = writeln!(std::io::stderr(), "{}", parts::problem_text(problem, context.term.err.color));
    }
    let text = match output {
        Output::Text => parts::plan_text(&preview.plan, context.term.out.color),
        Output::Json => view::to_json(&parts::plan_json(&preview.plan))?,
        Output::Yaml => view::to_yaml(&parts::plan_json(&preview.plan))?,
    };
    context.term.print(text)?;
    Ok(Exit::of(Ending::Shown(&preview.plan)))
}
