//! What should exist: the validated manifests of all sources, each source complete or not.
//!
//! A source that is not complete never lets a VM count as absent: an unreadable folder, a file whose VM names cannot be
//! read or a first listing still under way may hide any VM of its source.

pub mod delta;
pub mod hosts;
pub mod load;
pub mod manifest;
pub mod sources;
pub mod structure;
pub mod validate;
pub mod watch;
pub mod yaml;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::names::VmName;
use crate::spec::Vm;

/// The manifests of all sources.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Every source by its name.
    pub sources: BTreeMap<SourceName, SourceState>,
    /// Every declaration of each VM, ordered by origin. More than one is a conflict, which `plan` settles since it knows
    /// which of them is in force.
    pub vms: BTreeMap<VmName, Vec<Declaration>>,
    /// Device and inode of each image named by a valid declaration, where it could be read: two paths may lead to one file.
    pub images: BTreeMap<PathBuf, FileId>,
    /// Everything wrong with any manifest, ordered by place.
    pub problems: Vec<Problem>,
}

impl Desired {
    /// The images that valid declarations name.
    fn valid_images(&self) -> impl Iterator<Item = &PathBuf> {
        let valid = self.vms.values().flatten().filter_map(|declaration| declaration.vm.as_ref().ok());
        valid.flat_map(|vm| vm.spec.disks.iter().map(|disk| &disk.image))
    }

    /// Whether every source was read whole.
    pub fn is_complete(&self) -> bool {
        self.sources.values().all(SourceState::is_complete)
    }

    /// Whether a source declares a VM of this name, for other hosts alone.
    pub fn is_elsewhere(&self, source: &SourceName, name: &VmName) -> bool {
        self.sources.get(source).is_some_and(|source| source.elsewhere.contains(name))
    }

    /// What this and another source declare, together.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        let Self { sources, vms, images, problems } = other;
        self.sources.extend(sources);
        for (name, declarations) in vms {
            let all = self.vms.entry(name).or_default();
            all.extend(declarations);
            all.sort_by(|a, b| a.origin.cmp(&b.origin));
        }
        self.images.extend(images);
        self.problems.extend(problems);
        self.problems.sort();
        self
    }
}

/// The name of a source of manifests.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SourceName(pub String);

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What is known of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceState {
    /// Why something of it may be missing from [`Desired::vms`]; empty: it is complete.
    pub incomplete: Vec<String>,
    /// The folder that was listed; `None` when there is none.
    pub root: Option<FileId>,
    /// Whether it declares no VM at all, validly or not, for any host.
    pub empty: bool,
    /// VMs that it declares for other hosts, and not for this one.
    pub elsewhere: Arc<BTreeSet<VmName>>,
}

impl SourceState {
    /// Whether a VM that it does not declare is truly absent from it.
    pub fn is_complete(&self) -> bool {
        self.incomplete.is_empty()
    }
}

/// A file or folder by what the kernel calls it, which survives renames and sees through links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
}

impl FileId {
    /// That of the file that this was asked of.
    pub fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// Where a declaration stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Origin {
    /// The source it belongs to.
    pub source: SourceName,
    /// The file, relative to the source's root.
    pub path: PathBuf,
    /// Line of the document's start, from 1.
    pub line: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// One document that declares a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    /// Where it stands.
    pub origin: Origin,
    /// The VM, or everything that is wrong with its document. Then the VM keeps its last good spec.
    pub vm: Result<Arc<Vm>, Vec<Problem>>,
}

/// One thing that is wrong with a manifest: what, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file, relative to its source's root; for `stead validate` as the user named it.
    pub path: PathBuf,
    /// Line and column from 1; `None` when the file as a whole is meant.
    pub place: Option<(u64, u64)>,
    /// What was found and what was expected.
    pub message: String,
    /// What to do, such as the nearest known field name.
    pub hint: Option<String>,
    /// The line it stands on.
    pub snippet: Option<String>,
}

impl Problem {
    /// `FILE:LINE:COLUMN: message (hint)` in one line, for logs and conditions.
    pub fn one_line(&self) -> String {
        let place = self.place.map_or_else(String::new, |(row, column)| format!(":{row}:{column}"));
        let hint = self.hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"));
        format!("{}{place}: {}{hint}", self.path.display(), self.message)
    }
}
