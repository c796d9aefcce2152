//! `stead plan`: what would be done, and why.

use super::{CliError, Context, Exit, exit::Ending, table};
use crate::config::Access;
use crate::plan::{AllowPrune, show};
use crate::reconcile;

/// Show what would be done, and why
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status: 0 nothing to do, 3 changes pending, 4 a safety gate refuses some of them.

Examples:
  stead plan
  stead plan -o json | jq '.vms[] | select(.actions != [])'")]
pub struct Args {
    /// How to show it
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
    /// For programs that people read
    Yaml,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let preview = reconcile::preview(&context.stead(Access::Reader)?, AllowPrune::default())?;
    let plan = &preview.plan;
    let text = match args.output {
        Format::Text => {
            let problems = preview.desired.problems.iter();
            let problems: String = problems.map(|problem| super::render::problem(problem, context.term.out)).collect();
            problems + &show::text(plan, context.term.out.color)
        }
        Format::Json => table::json(&show::json(plan))?,
        Format::Yaml => table::yaml(&show::json(plan))?,
    };
    context.term.print(text)?;
    Ok(Exit::of(Ending::Shown(plan)))
}
