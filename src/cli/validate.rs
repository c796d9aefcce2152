//! `stead validate PATH…`.

use std::io::Write;
use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::{Value, json};

use super::parts::Validation;
use super::{CliError, Context, Exit, parts, view};
use crate::desired::Problem;

/// Arguments of `stead validate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  stead validate web.yaml              one file
  stead validate manifests/            every manifest in a folder
  stead validate -o json *.yaml        problems for programs

Exit status: 0 all are valid; 1 something is wrong with one. A warning tells what could not run on this very host as it is
declared, and fails nothing. The host is not touched.")]
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
    let Validation { vms, problems, warnings } = parts::validate(&args.paths, &context.settings()?)?;
    match args.output {
        Output::Json => {
            let list: Vec<_> = problems.iter().map(|problem| object(problem, "error")).collect();
            let warnings = warnings.iter().map(|problem| object(problem, "warning"));
            context.term.print(view::to_json(&list.into_iter().chain(warnings).collect())?)?;
        }
        Output::Text => {
            let mut err = std::io::stderr().lock();
            for problem in &problems {
                let _ = writeln!(err, "{}", parts::problem_text(problem, context.term.err.color));
            }
            for warning in &warnings {
                let _ = writeln!(err, "{}", parts::warning_text(warning, context.term.err.color));
            }
            match problems.len() {
                0 => {
                    let word = if vms == 1 { "VM" } else { "VMs" };
                    context.term.print(format!("{vms} {word} declared, all valid\n"))?;
                }
                1 => drop(writeln!(err, "1 problem")),
                many => drop(writeln!(err, "{many} problems")),
            }
        }
    }
    Ok(if problems.is_empty() { Exit::Converged } else { Exit::Failed })
}

fn object(problem: &Problem, severity: &str) -> Value {
    json!({
        "severity": severity,
        "path": problem.path,
        "line": problem.place.map(|(line, _)| line),
        "column": problem.place.map(|(_, column)| column),
        "message": problem.message,
        "hint": problem.hint,
    })
}
