//! Reading only the files that somebody says have changed.
//!
//! Whatever is not exactly understood leads to a full listing, which is always right: a folder, a link, a file with several
//! names, a source that could not be listed whole.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::super::delta::{Delta, Rewritten};
use super::file::{self, Found, Parsed, Unsettled};
use super::walk::{self, DEPTH_MAX, FILES_MAX};
use super::{Loader, look_at};
use crate::desired::Desired;

/// What reading only some files came to.
#[derive(Debug, PartialEq)]
pub enum Reload {
    /// Nothing that was named is a manifest, or ever was one.
    Nothing,
    /// What differs from what was read before.
    Changed(Delta),
    /// What changed is not told by these files: the folder has to be listed.
    ListAll,
}

/// What a path that was named is.
enum Named {
    /// No manifest, whatever became of it.
    Other,
    /// A manifest, or what was one.
    Manifest(Option<Found>),
    /// Something by which more than it may have changed.
    Unclear,
}

impl Loader {
    /// Reads these files again, by their paths below the folder. `before` is what was read last. Of those in `unsettled`
    /// somebody is writing; one that is not known yet may declare anything, so it counts whether it was named or not.
    pub fn reload(&mut self, named: &BTreeSet<PathBuf>, unsettled: &BTreeSet<PathBuf>, before: &Desired) -> Reload {
        let Some((canonical, id)) = &self.listed.root else { return Reload::ListAll };
        let is_same_folder = walk::root_of(&self.root).is_ok_and(|(path, now)| path == *canonical && now == *id);
        if !is_same_folder || !self.listed.hidden.is_empty() || self.totals.aliases > 0 {
            return Reload::ListAll;
        }
        let canonical = canonical.clone();
        let is_new = |path: &&PathBuf| !self.files.contains_key(*path);
        let mut found = Vec::new();
        for path in named.union(&unsettled.iter().filter(is_new).cloned().collect()) {
            match self.judge(&canonical, path) {
                Named::Other => {}
                Named::Manifest(content) => found.push((path.clone(), content)),
                Named::Unclear => return Reload::ListAll,
            }
        }
        if !found.iter().any(|(path, _)| named.contains(path)) {
            return Reload::Nothing;
        }
        if self.files.len() + found.len() > FILES_MAX {
            return Reload::ListAll;
        }
        self.young.clear();
        let unsettled = Unsettled::new(&canonical, unsettled, false);
        let (mut rewritten, mut images) = (Vec::new(), BTreeSet::new());
        for (path, content) in found {
            let (was, is) = self.read_again(&path, content, &unsettled, &mut images);
            if was == is {
                continue;
            }
            // Which hosts there are, and whether that can be told, says of every VM where it belongs.
            let is_of_all = was.lists_hosts() || is.lists_hosts() || (is.has_selectors() && !self.is_shared);
            if is_of_all || (self.is_shared && was.hidden != is.hidden) {
                return Reload::ListAll;
            }
            let (was, is) = (self.said(&path, &was), self.said(&path, &is));
            let (problems_were, problems_are) = (was.problems, is.problems);
            rewritten.push(Rewritten { path, was: was.vms, is: is.vms, problems_were, problems_are });
        }
        if self.is_shared {
            self.see_elsewhere();
        }
        if self.totals.aliases > 0 {
            // It got another name since it was judged.
            return Reload::ListAll;
        }
        let is_named = |path: &&PathBuf| self.totals.images.contains_key(*path);
        let mut ids: BTreeMap<_, _> =
            images.iter().filter(|path| !is_named(path)).map(|path| (path.clone(), None)).collect();
        ids.extend(look_at(images.iter().filter(is_named)));
        Reload::Changed(Delta::of_files(before, (self.source.clone(), self.state()), rewritten, ids))
    }

    /// Reads one file again, or takes in that it is gone: what it said, and what it says. Collects the images that it names, and
    /// those that it named.
    fn read_again(
        &mut self,
        path: &Path,
        content: Option<Found>,
        unsettled: &Unsettled<'_>,
        images: &mut BTreeSet<PathBuf>,
    ) -> (Parsed, Parsed) {
        let known = self.files.remove(path);
        if let Some(known) = &known {
            self.totals.remove(path, known);
            images.extend(known.parsed.images().cloned());
        }
        let was = known.as_ref().map(|known| known.parsed.clone()).unwrap_or_default();
        if let Some(content) = content {
            let reading = file::read(path, content, known, unsettled);
            self.keep(path.to_owned(), reading);
        }
        let cached = self.files.get(path);
        let is = cached.map(|cached| cached.parsed.clone()).unwrap_or_default();
        images.extend(is.images().cloned());
        (was, is)
    }

    /// What a path is, as far as it can be told without a listing.
    fn judge(&self, canonical: &Path, path: &Path) -> Named {
        let is_known = self.files.contains_key(path);
        // Something that was a folder: what was below it has gone, or has another name.
        let below = (Bound::Excluded(path), Bound::Unbounded);
        if self.files.range::<Path, _>(below).next().is_some_and(|(next, _)| next.starts_with(path)) {
            return Named::Unclear;
        }
        let is_hidden = path.iter().any(walk::is_hidden);
        let is_manifest = !is_hidden && walk::is_manifest_name(path);
        let full = canonical.join(path);
        let meta = match full.symlink_metadata() {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return if is_known { Named::Manifest(None) } else { Named::Other };
            }
            Err(_) => return Named::Unclear,
        };
        if meta.is_file() {
            // Its other name may be that of a manifest.
            if meta.nlink() > 1 {
                return Named::Unclear;
            }
            if !is_manifest {
                return Named::Other;
            }
            // Nothing but a listing leads below a link, and a folder that was moved away may be one now.
            let is_reached = match path.parent() {
                None => false,
                Some(parent) if parent == Path::new("") => true,
                Some(parent) => canonical.join(parent).canonicalize().is_ok_and(|real| real == canonical.join(parent)),
            };
            if !is_reached || path.iter().count() > DEPTH_MAX + 1 {
                return Named::Unclear;
            }
            return Named::Manifest(Some(Found::Content(full)));
        }
        // No link is followed to a hidden folder, since there are no links; and a link that is no manifest leads nowhere.
        let is_nothing = is_hidden || meta.is_symlink() && !is_manifest;
        if is_nothing { Named::Other } else { Named::Unclear }
    }
}
