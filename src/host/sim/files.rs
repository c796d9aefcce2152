//! Files that forget what was not synced.
//!
//! Each change of a name or of a content is in force at once, and pending until a sync of its folder or its file
//! (fsync(2)). A power cut keeps any part of what is pending: what a filesystem may reorder is reordered.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::random::Random;
use crate::desired::FileId;

/// The device number of every file that is made here. Base images keep the number that the real host gave them.
const DEVICE: u64 = 0xd15c;

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Folder,
    File(FileId),
    /// A unix socket, by the number of whoever bound it: nobody listens once that process has ended.
    Socket(u64),
}

/// A file's content: some bytes, and zeros after them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) bytes: Arc<[u8]>,
    pub(super) length: u64,
    /// Milliseconds; changes with the content.
    pub(super) modified: u64,
}

impl Content {
    pub(super) fn of(bytes: &[u8], modified: u64) -> Self {
        Self { bytes: bytes.into(), length: bytes.len() as u64, modified }
    }

    fn torn(&self, random: &mut Random) -> Self {
        let kept = random.below(self.bytes.len() as u64 + 1);
        let bytes = &self.bytes[..usize::try_from(kept).unwrap_or(0)];
        // The length may have come through before the content.
        let length = if random.is(1, 2) { self.length } else { kept };
        Self { bytes: bytes.into(), length, modified: self.modified }
    }
}

#[derive(Debug, Clone)]
enum Pending {
    /// These names of one filesystem change at once.
    Names(Vec<(PathBuf, Option<Node>)>),
    Content(FileId, Content),
}

/// A filesystem.
#[derive(Debug, Clone, Default)]
pub(super) struct Files {
    names: BTreeMap<PathBuf, Node>,
    contents: BTreeMap<FileId, Content>,
    durable_names: BTreeMap<PathBuf, Node>,
    durable_contents: BTreeMap<FileId, Content>,
    pending: Vec<Pending>,
    last_inode: u64,
    /// Files that were made before the story begins, in folders that nobody speaks of.
    settled: BTreeSet<PathBuf>,
}

impl Files {
    /// What is at a path.
    pub(super) fn at(&self, path: &Path) -> Option<Node> {
        self.names.get(path).copied()
    }

    /// The file at a path.
    pub(super) fn file(&self, path: &Path) -> Option<FileId> {
        match self.at(path) {
            Some(Node::File(id)) => Some(id),
            _ => None,
        }
    }

    /// A file's content; none for one that no name leads to and nobody needs.
    pub(super) fn content(&self, id: FileId) -> Option<&Content> {
        self.contents.get(&id)
    }

    /// A file's bytes by its path.
    pub(super) fn read(&self, path: &Path) -> Option<Arc<[u8]>> {
        Some(Arc::clone(&self.content(self.file(path)?)?.bytes))
    }

    /// The same as a power cut right now would leave it for certain.
    pub(super) fn read_durable(&self, path: &Path) -> Option<Arc<[u8]>> {
        match self.durable_names.get(path)? {
            Node::File(id) => Some(Arc::clone(&self.durable_contents.get(id)?.bytes)),
            _ => None,
        }
    }

    /// The names in a folder, sorted.
    pub(super) fn list(&self, folder: &Path) -> Vec<String> {
        let below = self.below(folder).filter(|(path, _)| path.parent() == Some(folder));
        below.filter_map(|(path, _)| Some(path.file_name()?.to_str()?.to_owned())).collect()
    }

    /// Everything below a folder.
    pub(super) fn below<'a>(&'a self, folder: &'a Path) -> impl Iterator<Item = (&'a PathBuf, Node)> {
        let after = self.names.range::<Path, _>((std::ops::Bound::Excluded(folder), std::ops::Bound::Unbounded));
        after.take_while(move |(path, _)| path.starts_with(folder)).map(|(path, node)| (path, *node))
    }

    /// Every path that leads to a file.
    pub(super) fn paths_of(&self, id: FileId) -> impl Iterator<Item = &PathBuf> {
        self.names.iter().filter(move |(_, node)| **node == Node::File(id)).map(|(path, _)| path)
    }

    /// Makes a folder; its parent must be there.
    pub(super) fn make_folder(&mut self, path: &Path) -> io::Result<()> {
        self.need_parent(path)?;
        self.rename(vec![(path.to_owned(), Some(Node::Folder))]);
        Ok(())
    }

    /// Makes a new file with nothing in it.
    pub(super) fn create(&mut self, path: &Path, now: u64) -> io::Result<FileId> {
        self.need_parent(path)?;
        if self.at(path).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.last_inode += 1;
        let id = FileId { device: DEVICE, inode: self.last_inode };
        self.contents.insert(id, Content::of(b"", now));
        self.rename(vec![(path.to_owned(), Some(Node::File(id)))]);
        Ok(id)
    }

    /// A file that has been there, synced, since before the story begins.
    pub(super) fn settle(&mut self, path: &Path, id: FileId, content: Content) {
        for names in [&mut self.names, &mut self.durable_names] {
            names.insert(path.to_owned(), Node::File(id));
        }
        self.contents.insert(id, content.clone());
        self.durable_contents.insert(id, content);
        self.settled.insert(path.to_owned());
    }

    /// Binds a socket.
    pub(super) fn bind(&mut self, path: &Path, owner: u64) -> io::Result<()> {
        self.need_parent(path)?;
        if self.at(path).is_some() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        self.rename(vec![(path.to_owned(), Some(Node::Socket(owner)))]);
        Ok(())
    }

    /// Replaces a file's content.
    pub(super) fn write(&mut self, id: FileId, content: Content) {
        self.contents.insert(id, content.clone());
        self.pending.push(Pending::Content(id, content));
    }

    /// Changes names, all of them at once.
    pub(super) fn rename(&mut self, changes: Vec<(PathBuf, Option<Node>)>) {
        apply(&mut self.names, &changes);
        self.pending.push(Pending::Names(changes));
    }

    /// fsync of a file.
    pub(super) fn sync_file(&mut self, id: FileId) {
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Content(of, content) if of == id => drop(self.durable_contents.insert(id, content)),
                other => self.pending.push(other),
            }
        }
    }

    /// fsync of a folder: its names.
    pub(super) fn sync_folder(&mut self, folder: &Path) {
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Names(changes) if changes.iter().any(|(path, _)| path.parent() == Some(folder)) => {
                    apply(&mut self.durable_names, &changes);
                }
                other => self.pending.push(other),
            }
        }
    }

    /// The power goes: each pending change came through, or came through in part, or did not. Sockets and everything below
    /// `volatile` are gone in any case.
    pub(super) fn cut_power(&mut self, volatile: &Path, random: &mut Random) {
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Names(changes) if random.is(1, 2) => apply(&mut self.durable_names, &changes),
                Pending::Content(id, content) if random.is(1, 2) => {
                    let content = if random.is(1, 2) { content.torn(random) } else { content };
                    self.durable_contents.insert(id, content);
                }
                Pending::Names(_) | Pending::Content(..) => {}
            }
        }
        self.durable_names.retain(|path, node| !matches!(node, Node::Socket(_)) && !path.starts_with(volatile));
        // What is in a folder that did not come through is lost with it.
        let lost: Vec<PathBuf> = self.durable_names.keys().filter(|path| !self.is_reachable(path)).cloned().collect();
        for path in lost {
            self.durable_names.remove(&path);
        }
        self.names = self.durable_names.clone();
        for node in self.durable_names.values() {
            if let Node::File(id) = node {
                // Its name came through and its content did not.
                self.durable_contents.entry(*id).or_default();
            }
        }
        self.contents = self.durable_contents.clone();
    }

    fn is_reachable(&self, path: &PathBuf) -> bool {
        let is_folder = |above: &Path| self.durable_names.get(above) == Some(&Node::Folder);
        self.settled.contains(path)
            || path.ancestors().skip(1).all(|above| above.parent().is_none() || is_folder(above))
    }

    fn need_parent(&self, path: &Path) -> io::Result<()> {
        match path.parent().map(|parent| (parent, self.at(parent))) {
            Some((_, Some(Node::Folder))) => Ok(()),
            Some((parent, None)) if parent == Path::new("/") => Ok(()),
            Some((_, Some(_))) => Err(io::ErrorKind::NotADirectory.into()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

fn apply(names: &mut BTreeMap<PathBuf, Node>, changes: &[(PathBuf, Option<Node>)]) {
    for (path, node) in changes {
        match node {
            Some(node) => drop(names.insert(path.clone(), *node)),
            None => drop(names.remove(path)),
        }
    }
}
