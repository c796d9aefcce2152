//! Where the commands meet the rooms they show: one call each, so that a change of theirs stays in here.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::{CliError, render};
use crate::config::Settings;
use crate::desired::load::{load_text, validate_paths};
use crate::desired::manifest::json_schema;
use crate::desired::{Problem, SourceName};
use crate::host::HostOps;
use crate::host::linux::{LinuxHost, LinuxHostConfig};
use crate::plan::{Plan, show};

/// The real host.
pub(super) fn host(settings: &Settings) -> Result<Arc<dyn HostOps>, CliError> {
    let config = LinuxHostConfig { firecracker: Some(settings.firecracker.clone()), qemu: Some(settings.qemu.clone()) };
    Ok(Arc::new(LinuxHost::new(config).map_err(|source| CliError::io("look at this host", source))?))
}

/// A plan for people.
pub(super) fn plan_text(plan: &Plan, color: bool) -> String {
    show::text(plan, color)
}

/// A plan for programs.
pub(super) fn plan_json(plan: &Plan) -> Value {
    show::json(plan)
}

/// How many VMs were found, and everything that is wrong with these files and folders; `-` is standard input.
pub(super) fn validate(paths: &[PathBuf]) -> Result<(usize, Vec<Problem>), CliError> {
    let (input, named): (Vec<&PathBuf>, Vec<&PathBuf>) = paths.iter().partition(|path| *path == Path::new("-"));
    let mut desired = validate_paths(&named.into_iter().cloned().collect::<Vec<_>>());
    if !input.is_empty() {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(|source| CliError::io("read standard input", source))?;
        let read = load_text(SourceName("standard input".to_owned()), Path::new("<stdin>"), &text);
        for (name, declarations) in read.vms {
            desired.vms.entry(name).or_default().extend(declarations);
        }
        desired.problems.extend(read.problems);
    }
    for (name, declarations) in desired.vms.iter().filter(|(_, declarations)| declarations.len() > 1) {
        let places: Vec<String> = declarations.iter().map(|declaration| declaration.origin.to_string()).collect();
        let origin = &declarations[0].origin;
        desired.problems.push(Problem {
            path: origin.path.clone(),
            place: Some((origin.line, 1)),
            message: format!("VM {name} is declared {} times: {}", places.len(), places.join(", ")),
            hint: Some("keep one; names are unique on the host".to_owned()),
            snippet: None,
        });
    }
    // A folder that cannot be listed is no manifest's fault, and no reason to call it valid.
    if desired.problems.is_empty() {
        for (source, state) in desired.sources.iter().filter(|(_, state)| !state.is_complete()) {
            desired.problems.extend(state.incomplete.iter().map(|why| Problem {
                path: source.0.clone().into(),
                place: None,
                message: why.clone(),
                hint: None,
                snippet: None,
            }));
        }
    }
    Ok((desired.vms.len(), desired.problems))
}

/// A problem for people, with its place and line.
pub(super) fn problem_text(problem: &Problem, color: bool) -> String {
    render::problem(problem, color)
}

/// The JSON Schema of manifests.
pub(super) fn schema() -> Value {
    json_schema()
}
