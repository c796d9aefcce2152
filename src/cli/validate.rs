//! `stead validate PATH…`.

use std::io::Write;
use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::json;

use super::{CliError, Context, Exit, parts, view};

/// Arguments of `stead validate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead validate web.yaml              one file
  stead validate manifests/            every manifest in a folder
  stead validate -o json *.yaml        problems for programs

Exit status: 0 all are valid; 1 something is wrong with one. The host is not touched.")]
pub struct Args {
    /// Files and folders; `-` is standard input
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,

    /// How to show problems
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people, on standard error
    #[default]
    Text,
    /// A list for programs, on standard output
    Json,
}

pub(super) fn execute(context: &Context, args: &Args) -> Result<Exit, CliError> {
    let (count, problems) = parts::validate(&args.paths)?;
    match args.output {
        Output::Json => {
            let list: Vec<_> = problems
                .iter()
                .map(|problem| {
                    json!({
                        "path": problem.path,
                        "line": problem.place.map(|(line, _)| line),
                        "column": problem.place.map(|(_, column)| column),
                        "message": problem.message,
                        "hint": problem.hint,
                    })
                })
                .collect();
            context.term.print(view::to_json(&list.into())?)?;
        }
        Output::Text => {
            let mut err = std::io::stderr().lock();
            for problem in &problems {
                let _ = writeln!(err, "{}", parts::problem_text(problem, context.term.err.color));
            }
            match problems.len() {
                0 => {
                    let vms = if count == 1 { "VM" } else { "VMs" };
                    context.term.print(format!("{count} {vms} declared, all valid\n"))?;
                }
                1 => drop(writeln!(err, "1 problem")),
                many => drop(writeln!(err, "{many} problems")),
            }
        }
    }
    Ok(if problems.is_empty() { Exit::Converged } else { Exit::Failed })
}
