//! Where the commands meet the rooms they show: one call each, so that a change of theirs stays in here.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::{CliError, render};
use crate::config::Settings;
use crate::desired::load::{Together, validate_paths, validate_text};
use crate::desired::{Declaration, Desired, Origin, Problem, SourceName};
use crate::host::HostOps;
use crate::host::linux::{LinuxHost, LinuxHostConfig};
use crate::names::VmName;
use crate::plan::claims::Claims;
use crate::plan::disks::no_device_mapper;
use crate::plan::{Plan, show};
use crate::spec::{Disk, Vm, VmmChoice};

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

/// What is to be said of manifests.
pub(super) struct Validation {
    /// VMs declared.
    pub(super) vms: usize,
    /// What is wrong with them.
    pub(super) problems: Vec<Problem>,
    /// What is sound, and could not run on this very host as it is declared.
    pub(super) warnings: Vec<Problem>,
}

/// Everything that is wrong with these files and folders; `-` is standard input.
pub(super) fn validate(paths: &[PathBuf], settings: &Settings) -> Result<Validation, CliError> {
    let (input, named): (Vec<&PathBuf>, Vec<&PathBuf>) = paths.iter().partition(|path| *path == Path::new("-"));
    let Together { mut desired, mut clashes, mut views, gap: _ } =
        validate_paths(&named.into_iter().cloned().collect::<Vec<_>>());
    if !input.is_empty() {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(|source| CliError::io("read standard input", source))?;
        let read = validate_text(SourceName("standard input".to_owned()), Path::new("<stdin>"), &text);
        clashes.extend(read.clashes);
        views.extend(read.views);
        desired = desired.and(read.desired);
    }
    // What stands in two folders is read by one host together.
    for (name, all) in &desired.vms {
        if all.iter().any(|declaration| declaration.origin.source != all[0].origin.source) {
            clashes.insert(name.clone(), all.iter().map(|declaration| declaration.origin.clone()).collect());
        }
    }
    for (name, origins) in &clashes {
        let places: Vec<String> = origins.iter().map(Origin::to_string).collect();
        let message = format!("VM {name} is declared {} times: {}", places.len(), places.join(", "));
        let hint = Some("keep one; names are unique on the host".to_owned());
        desired.problems.extend(origins.first().map(|origin| Problem { hint, ..at(origin, message) }));
    }
    for problem in views.iter().flat_map(image_clashes) {
        if !desired.problems.contains(&problem) {
            desired.problems.push(problem);
        }
    }
    // A folder that cannot be listed is no manifest's fault, and no reason to call it valid.
    if desired.problems.is_empty() {
        for (source, state) in desired.sources.iter().filter(|(_, state)| !state.is_complete()) {
            desired.problems.extend(state.incomplete.iter().map(|why| Problem {
                path: source.0.clone().into(),
                place: None,
                message: why.clone(),
                hint: Some("name what is there and can be read".to_owned()),
                snippet: None,
            }));
        }
    }
    let warnings = host_lacks(&desired, settings)?;
    Ok(Validation { vms: desired.vms.len(), problems: desired.problems, warnings })
}

/// Images that one VM would write to while another one uses them.
fn image_clashes(desired: &Desired) -> Vec<Problem> {
    let claims = Claims::of(desired, std::iter::empty());
    let clash = |(name, declaration): (&VmName, &Declaration)| {
        let message = claims.conflict(desired, name, &declaration.vm.as_ref().ok()?.spec, None)?;
        Some(at(&declaration.origin, format!("VM {name}: {message}")))
    };
    declarations(desired).filter_map(clash).collect()
}

/// Snapshot disks on a host that has no device-mapper. The host is asked only if there are any.
fn host_lacks(desired: &Desired, settings: &Settings) -> Result<Vec<Problem>, CliError> {
    let snapshot = |vm: &Vm| vm.spec.disks.iter().find(|disk| disk.is_written_snapshot()).cloned();
    let with_snapshot: Vec<_> = declarations(desired)
        .filter_map(|(name, declaration)| {
            let vm = declaration.vm.as_ref().ok().filter(|vm| vm.spec.vmm != VmmChoice::Qemu)?;
            Some((name, declaration, vm.spec.vmm, snapshot(vm)?))
        })
        .collect();
    if with_snapshot.is_empty() {
        return Ok(Vec::new());
    }
    let Err(why) = host(settings)?.device_mapper() else { return Ok(Vec::new()) };
    let warning = |(name, declaration, vmm, disk): (&VmName, &Declaration, VmmChoice, Disk)| {
        let message = match vmm {
            VmmChoice::Auto => format!(
                "on this host VM {name} would run on QEMU, with a qcow2 overlay for disk {}: Firecracker needs device-mapper \
                 for snapshots ({why})",
                disk.name
            ),
            _ => format!("on this host VM {name} could not start: {}", no_device_mapper(&disk, &why)),
        };
        at(&declaration.origin, message)
    };
    Ok(with_snapshot.into_iter().map(warning).collect())
}

fn declarations(desired: &Desired) -> impl Iterator<Item = (&VmName, &Declaration)> {
    desired.vms.iter().flat_map(|(name, declarations)| declarations.iter().map(move |declaration| (name, declaration)))
}

fn at(origin: &Origin, message: String) -> Problem {
    let root = Path::new(&origin.source.0);
    let path = if root.is_dir() { root.join(&origin.path) } else { origin.path.clone() };
    Problem { path, place: Some((origin.line, 1)), message, hint: None, snippet: None }
}

/// A problem for people, with its place and line.
pub(super) fn problem_text(problem: &Problem, color: bool) -> String {
    render::problem(problem, false, color)
}

/// The same for what fails nothing.
pub(super) fn warning_text(problem: &Problem, color: bool) -> String {
    render::problem(problem, true, color)
}
