//! What differs between two readings of the sources, so that an event costs what it is about.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::{Declaration, Desired, FileId, Problem, SourceName, SourceState};
use crate::names::VmName;
use crate::spec::Vm;

/// What differs from the reading before.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Delta {
    /// All declarations of each VM of which any changed; none: it is not declared any more.
    pub vms: BTreeMap<VmName, Vec<Declaration>>,
    /// The sources that changed; `None`: one is not read any more.
    pub sources: BTreeMap<SourceName, Option<SourceState>>,
    /// Images that are others than before; `None`: not named any more, or it cannot be looked at.
    pub images: BTreeMap<PathBuf, Option<FileId>>,
    /// Problems that were there before, in order.
    pub solved: Vec<Problem>,
    /// Problems that are new, in order.
    pub problems: Vec<Problem>,
}

/// One file that says something else than before.
pub(super) struct Rewritten {
    pub(super) path: PathBuf,
    pub(super) was: Vec<(VmName, Declaration)>,
    pub(super) is: Vec<(VmName, Declaration)>,
    pub(super) problems_were: Vec<Problem>,
    pub(super) problems_are: Vec<Problem>,
}

impl Delta {
    /// What makes `after` of `before`.
    pub fn between(before: &Desired, after: Desired) -> Self {
        let Desired { sources, vms, images, problems } = after;
        let (solved, problems) = differ(&before.problems, problems);
        Self {
            vms: changes(&before.vms, vms).map(|(name, now)| (name, now.unwrap_or_default())).collect(),
            sources: changes(&before.sources, sources).collect(),
            images: changes(&before.images, images).collect(),
            solved,
            problems,
        }
    }

    /// What makes of `before` what it is with these files rewritten. `images` are all that they name, or named.
    pub(super) fn of_files(
        before: &Desired,
        source: (SourceName, SourceState),
        rewritten: Vec<Rewritten>,
        mut images: BTreeMap<PathBuf, Option<FileId>>,
    ) -> Self {
        let mut delta = Self::default();
        let (source, state) = source;
        for file in rewritten {
            let names: BTreeSet<&VmName> = file.was.iter().chain(&file.is).map(|(name, _)| name).collect();
            for name in names {
                let of = |all: &[(VmName, Declaration)]| -> Vec<Declaration> {
                    all.iter().filter(|(other, _)| other == name).map(|(_, declaration)| declaration.clone()).collect()
                };
                let is = of(&file.is);
                if is == of(&file.was) {
                    continue;
                }
                let known = || before.vms.get(name).cloned().unwrap_or_default();
                let all = delta.vms.entry(name.clone()).or_insert_with(known);
                all.retain(|declaration| declaration.origin.source != source || declaration.origin.path != file.path);
                all.extend(is);
                all.sort_by(|a, b| a.origin.cmp(&b.origin));
            }
            let (mut were, mut are) = (file.problems_were, file.problems_are);
            were.sort();
            are.sort();
            let (solved, problems) = differ(&were, are);
            delta.solved.extend(solved);
            delta.problems.extend(problems);
        }
        delta.solved.sort();
        delta.problems.sort();
        if before.sources.get(&source) != Some(&state) {
            delta.sources.insert(source, Some(state));
        }
        images.retain(|path, id| before.images.get(path) != id.as_ref());
        delta.images = images;
        delta
    }

    /// What is new of why sources may have more than was read.
    pub fn new_gaps<'a>(&'a self, before: &'a Desired) -> impl Iterator<Item = (&'a SourceName, &'a str)> {
        self.sources.iter().flat_map(|(name, state)| {
            let known = before.sources.get(name).map(|state| state.incomplete.as_slice()).unwrap_or_default();
            let gaps = state.iter().flat_map(|state| &state.incomplete).filter(|why| !known.contains(why));
            gaps.map(move |why| (name, why.as_str()))
        })
    }
}

impl Desired {
    /// Takes in what changed.
    pub fn apply(&mut self, delta: Delta) {
        let Delta { vms, sources, images, solved, problems } = delta;
        for (name, declarations) in vms {
            put(&mut self.vms, name, Some(declarations).filter(|declarations| !declarations.is_empty()));
        }
        for (source, state) in sources {
            put(&mut self.sources, source, state);
        }
        for (path, id) in images {
            put(&mut self.images, path, id);
        }
        if !solved.is_empty() {
            let mut solved = solved.into_iter().peekable();
            // Both are in order, and each that was solved goes once.
            self.problems.retain(|problem| solved.next_if_eq(problem).is_none());
        }
        if !problems.is_empty() {
            self.problems.extend(problems);
            self.problems.sort();
        }
    }

    /// What the valid declarations of a VM say.
    pub fn valid(&self, name: &VmName) -> impl Iterator<Item = &Arc<Vm>> {
        self.vms.get(name).into_iter().flatten().filter_map(|declaration| declaration.vm.as_ref().ok())
    }

    /// The part of it that decisions about one VM go by, for whoever is given only that: its declarations, all sources and,
    /// of the images, these.
    #[must_use]
    pub fn about<'a>(&self, name: &VmName, images: impl Iterator<Item = &'a PathBuf>) -> Self {
        let declared = self.vms.get_key_value(name).map(|(name, declarations)| (name.clone(), declarations.clone()));
        let known = images.filter_map(|path| Some((path.clone(), *self.images.get(path)?)));
        Self {
            sources: self.sources.clone(),
            vms: declared.into_iter().collect(),
            images: known.collect(),
            problems: Vec::new(),
        }
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

/// What has to be put into `before`, or with `None` taken out of it, for it to be `after`.
fn changes<K: Ord + Clone, V: PartialEq>(
    before: &BTreeMap<K, V>,
    after: BTreeMap<K, V>,
) -> impl Iterator<Item = (K, Option<V>)> {
    let gone: Vec<(K, Option<V>)> =
        before.keys().filter(|key| !after.contains_key(key)).map(|key| (key.clone(), None)).collect();
    let changed = after.into_iter().filter(|(key, value)| before.get(key) != Some(value));
    gone.into_iter().chain(changed.map(|(key, value)| (key, Some(value))))
}

/// What was there before and is not now, and the other way round, of what is in order.
fn differ(before: &[Problem], after: Vec<Problem>) -> (Vec<Problem>, Vec<Problem>) {
    let (mut gone, mut new) = (Vec::new(), Vec::new());
    let mut before = before.iter().peekable();
    for problem in after {
        while let Some(other) = before.next_if(|other| **other < problem) {
            gone.push(other.clone());
        }
        if before.next_if(|other| **other == problem).is_none() {
            new.push(problem);
        }
    }
    gone.extend(before.cloned());
    (gone, new)
}
