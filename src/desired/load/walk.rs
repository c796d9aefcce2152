//! One listing of a folder: which manifests there are, and why there may be more.

use std::io;
use std::path::{Path, PathBuf};

use super::super::FileId;
use super::file::{Found, whole_file};

/// How deep sub-folders are read.
pub(super) const DEPTH_MAX: usize = 16;
/// How many files a source may have.
pub(super) const FILES_MAX: usize = 100_000;

/// One listing of a folder and its sub-folders.
#[derive(Default)]
pub(super) struct Walk {
    pub(super) files: Vec<(PathBuf, Found)>,
    /// Why files may be missing from the listing.
    pub(super) hidden: Vec<String>,
}

impl Walk {
    pub(super) fn folder(&mut self, folder: &Path, canonical_root: &Path, below: &Path, depth: usize) {
        let entries = std::fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = match entries {
            Ok(entries) => entries,
            // It went away between being listed and being opened: its absence is an event of its own.
            Err(error) if error.kind() == io::ErrorKind::NotFound && depth > 0 => return,
            Err(error) => {
                return self.hidden.push(format!("the folder {} cannot be listed: {error}", folder.display()));
            }
        };
        entries.sort_by_cached_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            let below = below.join(&name);
            let Ok(kind) = entry.file_type() else { continue };
            // Dot names: editors' swap files, version control, and the versions behind a `..data` link.
            if is_hidden(&name) {
                continue;
            }
            if kind.is_dir() {
                if depth == DEPTH_MAX {
                    self.hidden.push(format!("{}: folders deeper than {DEPTH_MAX} are not read", below.display()));
                } else {
                    self.folder(&entry.path(), canonical_root, &below, depth + 1);
                }
            } else if is_manifest_name(&below) {
                if self.files.len() == FILES_MAX {
                    self.hidden.push(format!("more than {FILES_MAX} manifests; {} and all after it", below.display()));
                    return;
                }
                if let Some(found) = find(&entry.path(), kind, canonical_root, &below) {
                    self.files.push((below, found));
                }
            }
        }
    }
}

/// Where the content of an entry lies; `None` when it went away.
fn find(path: &Path, kind: std::fs::FileType, canonical_root: &Path, below: &Path) -> Option<Found> {
    let refuse = |message: &str, hint: &str| Some(Found::Unreadable(whole_file(below, message, Some(hint))));
    if kind.is_file() {
        return Some(Found::Content(path.to_owned()));
    }
    if !kind.is_symlink() {
        return refuse(
            "this is no regular file",
            "remove it, or give it a name that does not end in .yaml, .yml or .json",
        );
    }
    match path.canonicalize() {
        Ok(target) if target.starts_with(canonical_root) => Some(Found::Linked(target)),
        Ok(target) => {
            let message = format!("this link leads out of the folder, to {}", target.display());
            refuse(&message, "links are followed inside the manifest folder only; put the file itself here")
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() => None,
        Err(error) => refuse(&format!("this link leads nowhere: {error}"), "remove it, or mend its target"),
    }
}

/// Whether a file or folder of this name is never looked into.
pub(super) fn is_hidden(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

pub(super) fn is_manifest_name(path: &Path) -> bool {
    path.extension().and_then(|extension| extension.to_str()).is_some_and(|e| matches!(e, "yaml" | "yml" | "json"))
}

pub(super) fn root_of(root: &Path) -> Result<(PathBuf, FileId), String> {
    let look = || {
        let canonical = root.canonicalize()?;
        Ok((canonical.clone(), canonical.metadata()?))
    };
    match look() {
        Ok((canonical, meta)) if meta.is_dir() => Ok((canonical, FileId::of(&meta))),
        Ok(_) => Err(format!("{} is no folder", root.display())),
        Err(error @ io::Error { .. }) => Err(format!("the folder {} cannot be read: {error}", root.display())),
    }
}
