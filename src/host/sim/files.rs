//! Files that forget what was not synced.
//!
//! Each change of a name or of a content is in force at once, and pending until a sync of its folder or its file
//! (fsync(2)). A power cut keeps any part of what is pending: what a filesystem may reorder is reordered.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
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

    /// What of this came through where `old` was before: its beginning, or its end without its beginning, since the pages of
    /// a file are written in any order.
    fn torn(&self, old: &Self, random: &mut Random) -> Self {
        let cut = usize::try_from(random.below(self.bytes.len() as u64 + 1)).unwrap_or(0);
        let mut bytes = old.bytes.to_vec();
        bytes.resize(bytes.len().max(self.bytes.len()), 0);
        let part = if random.is(2, 3) { 0..cut } else { cut..self.bytes.len() };
        bytes[part.clone()].copy_from_slice(&self.bytes[part.clone()]);
        // The length may have come through before the content, or not.
        let length = if random.is(1, 2) { self.length } else { old.length.max(part.end as u64) };
        bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        Self { bytes: bytes.into(), length, modified: self.modified }
    }
}

/// What paths lead to. All are absolute and in normal form, so that they are compared as bytes: the standard library compares
/// paths part by part, which took a fifth of the time of every test on this host.
type Names = BTreeMap<OsString, Node>;

#[derive(Debug, Clone)]
enum Pending {
    /// These names of one filesystem change at once.
    Names(Vec<(OsString, Option<Node>)>),
    Content(FileId, Content),
}

/// A filesystem.
#[derive(Debug, Clone, Default)]
pub(super) struct Files {
    names: Names,
    contents: BTreeMap<FileId, Content>,
    durable_names: Names,
    durable_contents: BTreeMap<FileId, Content>,
    pending: Vec<Pending>,
    last_inode: u64,
    /// Files that were made before the story begins, in folders that nobody speaks of.
    settled: BTreeSet<OsString>,
}

impl Files {
    /// What is at a path.
    pub(super) fn at(&self, path: &Path) -> Option<Node> {
        self.names.get(path.as_os_str()).copied()
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
        match self.durable_names.get(path.as_os_str())? {
            Node::File(id) => Some(Arc::clone(&self.durable_contents.get(id)?.bytes)),
            _ => None,
        }
    }

    /// The names in a folder, sorted.
    pub(super) fn list(&self, folder: &Path) -> Vec<String> {
        let prefix = folder_prefix(folder);
        let below = below(&self.names, &prefix).map(|(path, _)| &path.as_bytes()[prefix.len()..]);
        let names = below.filter(|name| !name.contains(&b'/')).map(|name| String::from_utf8_lossy(name).into_owned());
        names.collect()
    }

    /// Everything below a folder.
    pub(super) fn below(&self, folder: &Path) -> impl Iterator<Item = (&Path, Node)> {
        below(&self.names, &folder_prefix(folder)).map(|(path, node)| (Path::new(path), node))
    }

    /// Every path that leads to a file.
    pub(super) fn paths_of(&self, id: FileId) -> impl Iterator<Item = &Path> {
        self.names.iter().filter(move |(_, node)| **node == Node::File(id)).map(|(path, _)| Path::new(path))
    }

    /// Makes a folder; its parent must be there.
    pub(super) fn make_folder(&mut self, path: &Path) -> io::Result<()> {
        self.need_parent(path)?;
        self.change(vec![(path.into(), Some(Node::Folder))]);
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
        self.change(vec![(path.into(), Some(Node::File(id)))]);
        Ok(id)
    }

    /// A file that has been there, synced, since before the story begins.
    pub(super) fn settle(&mut self, path: &Path, id: FileId, content: Content) {
        for names in [&mut self.names, &mut self.durable_names] {
            names.insert(path.into(), Node::File(id));
        }
        self.contents.insert(id, content.clone());
        self.durable_contents.insert(id, content);
        self.settled.insert(path.into());
    }

    /// Binds a socket.
    pub(super) fn bind(&mut self, path: &Path, owner: u64) -> io::Result<()> {
        self.need_parent(path)?;
        if self.at(path).is_some() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        self.change(vec![(path.into(), Some(Node::Socket(owner)))]);
        Ok(())
    }

    /// Replaces a file's content.
    pub(super) fn write(&mut self, id: FileId, content: Content) {
        self.contents.insert(id, content.clone());
        self.pending.push(Pending::Content(id, content));
    }

    /// Changes names, all of them at once.
    pub(super) fn rename(&mut self, changes: Vec<(PathBuf, Option<Node>)>) {
        let changes = changes.into_iter().map(|(path, node)| (path.into_os_string(), node)).collect();
        self.change(changes);
    }

    fn change(&mut self, changes: Vec<(OsString, Option<Node>)>) {
        apply(&mut self.names, &changes);
        self.pending.push(Pending::Names(changes));
    }

    /// Renames a file, or a folder with all in it. What was not synced in a folder stays so under its new name: that the
    /// folder's own name is synced says nothing of the names in it.
    pub(super) fn move_to(&mut self, from: &Path, to: &Path, node: Node) {
        let (prefix, target) = (folder_prefix(from), folder_prefix(to));
        let moved = |path: &OsString| {
            let mut moved = target.clone();
            moved.push(OsStr::from_bytes(&path.as_bytes()[prefix.len()..]));
            moved
        };
        let all_below =
            |names: &Names| -> Names { below(names, &prefix).map(|(path, node)| (path.clone(), node)).collect() };
        let (inside, durable) = (all_below(&self.names), all_below(&self.durable_names));
        let own = [(from.as_os_str().to_owned(), None), (to.as_os_str().to_owned(), Some(node))];
        let all_of = |names: &Names| {
            let each = names.iter().flat_map(|(path, node)| [(path.clone(), None), (moved(path), Some(*node))]);
            own.iter().cloned().chain(each).collect::<Vec<_>>()
        };
        apply(&mut self.names, &all_of(&inside));
        self.pending.push(Pending::Names(all_of(&durable)));
        let gone = durable.keys().filter(|path| !inside.contains_key(*path)).map(|path| (moved(path), None));
        let new = inside.iter().filter(|(path, node)| durable.get(*path) != Some(node));
        let unsynced = gone.chain(new.map(|(path, node)| (moved(path), Some(*node))));
        self.pending.extend(unsynced.map(|change| Pending::Names(vec![change])));
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

    /// fsync of a folder: its names, and what had happened to these names before wherever they were then. A journal keeps the
    /// order of what it writes of one name: one that was moved away durably does not come back.
    pub(super) fn sync_folder(&mut self, folder: &Path) {
        let mut names: BTreeSet<OsString> = BTreeSet::new();
        let mut synced = Vec::new();
        for pending in std::mem::take(&mut self.pending).into_iter().rev() {
            match pending {
                Pending::Names(changes)
                    if changes
                        .iter()
                        .any(|(path, _)| folder_of(path) == folder.as_os_str() || names.contains(path)) =>
                {
                    names.extend(changes.iter().map(|(path, _)| path.clone()));
                    synced.push(changes);
                }
                other => self.pending.push(other),
            }
        }
        self.pending.reverse();
        for changes in synced.iter().rev() {
            apply(&mut self.durable_names, changes);
        }
    }

    /// The power goes: each pending change came through, or came through in part, or did not. Sockets and everything below
    /// `volatile` are gone in any case.
    pub(super) fn cut_power(&mut self, volatile: &Path, random: &mut Random) {
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Names(changes) if random.is(1, 2) => apply(&mut self.durable_names, &changes),
                Pending::Content(id, content) if random.is(1, 2) => {
                    let old = self.durable_contents.get(&id).cloned().unwrap_or_default();
                    let content = if random.is(1, 2) { content.torn(&old, random) } else { content };
                    self.durable_contents.insert(id, content);
                }
                Pending::Names(_) | Pending::Content(..) => {}
            }
        }
        let is_volatile = |path: &OsString| Path::new(path).starts_with(volatile);
        self.durable_names.retain(|path, node| !matches!(node, Node::Socket(_)) && !is_volatile(path));
        // What is in a folder that did not come through is lost with it.
        let lost: Vec<OsString> = self.durable_names.keys().filter(|path| !self.is_reachable(path)).cloned().collect();
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

    fn is_reachable(&self, path: &OsString) -> bool {
        let is_folder = |above: &Path| self.durable_names.get(above.as_os_str()) == Some(&Node::Folder);
        self.settled.contains(path)
            || Path::new(path).ancestors().skip(1).all(|above| above.parent().is_none() || is_folder(above))
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

/// What every path below a folder begins with.
fn folder_prefix(folder: &Path) -> OsString {
    let mut prefix = folder.as_os_str().to_owned();
    if prefix != "/" {
        prefix.push("/");
    }
    prefix
}

/// The folder that a path is in.
fn folder_of(path: &OsStr) -> &OsStr {
    let bytes = path.as_bytes();
    let end = bytes.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    OsStr::from_bytes(&bytes[..end.max(1)])
}

fn below<'a>(names: &'a Names, prefix: &OsStr) -> impl Iterator<Item = (&'a OsString, Node)> + use<'a> {
    let prefix = prefix.to_owned();
    let after = names.range::<OsStr, _>((std::ops::Bound::Excluded(prefix.as_os_str()), std::ops::Bound::Unbounded));
    after.take_while(move |(path, _)| path.as_bytes().starts_with(prefix.as_bytes())).map(|(path, node)| (path, *node))
}

fn apply(names: &mut Names, changes: &[(OsString, Option<Node>)]) {
    for (path, node) in changes {
        match node {
            Some(node) => drop(names.insert(path.clone(), *node)),
            None => drop(names.remove(path)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIES: u64 = 400;

    fn path(text: &str) -> PathBuf {
        PathBuf::from(text)
    }

    /// `/a` and `/b`, synced.
    fn two_folders() -> Files {
        let mut files = Files::default();
        for folder in ["/a", "/b"] {
            files.make_folder(&path(folder)).unwrap();
        }
        files.sync_folder(Path::new("/"));
        files
    }

    fn new_file(files: &mut Files, name: &str, bytes: &[u8]) -> FileId {
        let id = files.create(&path(name), 0).unwrap();
        files.write(id, Content::of(bytes, 0));
        id
    }

    /// Every outcome of a power cut that chance finds: each path that is there, with what is in it.
    fn outcomes(files: &Files) -> BTreeSet<Vec<(String, Vec<u8>)>> {
        let after = |seed| {
            let mut files = files.clone();
            files.cut_power(Path::new("/run"), &mut Random::new(seed));
            let paths = files.names.keys().map(Path::new).filter(|path| files.file(path).is_some());
            paths.map(|path| (path.display().to_string(), files.read(path).unwrap().to_vec())).collect()
        };
        (0..TRIES).map(after).collect()
    }

    fn names(outcomes: &BTreeSet<Vec<(String, Vec<u8>)>>) -> BTreeSet<Vec<&str>> {
        outcomes.iter().map(|files| files.iter().map(|(name, _)| name.as_str()).collect()).collect()
    }

    #[test]
    fn what_is_synced_stays_and_what_is_not_may_go_or_be_any_part_of_what_it_was() {
        let mut files = two_folders();
        let id = new_file(&mut files, "/a/f", b"1234");
        let found = outcomes(&files);
        let contents: BTreeSet<&[u8]> = found.iter().flatten().map(|(_, bytes)| &bytes[..]).collect();
        assert!(found.contains(&Vec::new()), "its name may be lost");
        for part in [&b""[..], b"1234", b"12", b"12\0\0", b"\0\x0034"] {
            assert!(contents.contains(part), "{part:?} of {contents:?}");
        }
        files.sync_file(id);
        assert_eq!(outcomes(&files).len(), 2, "all of it, or no name: {:?}", outcomes(&files));
        files.sync_folder(Path::new("/a"));
        assert_eq!(outcomes(&files), BTreeSet::from([vec![("/a/f".to_owned(), b"1234".to_vec())]]));
    }

    #[test]
    fn a_name_that_is_replaced_is_the_old_file_or_the_new_one_and_the_new_one_may_be_empty_if_it_was_not_synced() {
        let mut files = two_folders();
        let old = new_file(&mut files, "/a/f", b"old");
        files.sync_file(old);
        files.sync_folder(Path::new("/a"));
        let new = new_file(&mut files, "/a/.f", b"new");
        files.rename(vec![(path("/a/.f"), None), (path("/a/f"), Some(Node::File(new)))]);
        let contents = |files: &Files| -> BTreeSet<Vec<u8>> {
            let found = outcomes(files);
            assert!(found.iter().all(|files| files.iter().any(|(name, _)| name == "/a/f")), "never no file: {found:?}");
            let of_f = found.into_iter().flatten().filter(|(name, _)| name == "/a/f");
            of_f.map(|(_, bytes)| bytes).collect()
        };
        assert!(contents(&files).contains(&b""[..]) && contents(&files).contains(&b"old"[..]));
        files.sync_file(new);
        assert_eq!(contents(&files), BTreeSet::from([b"old".to_vec(), b"new".to_vec()]));
        files.sync_folder(Path::new("/a"));
        assert_eq!(contents(&files), BTreeSet::from([b"new".to_vec()]));
    }

    #[test]
    fn folders_lose_what_was_not_synced_independently_of_each_other() {
        let mut files = two_folders();
        for name in ["/a/f", "/b/g"] {
            let id = new_file(&mut files, name, b"");
            files.sync_file(id);
        }
        let expected = [vec![], vec!["/a/f"], vec!["/b/g"], vec!["/a/f", "/b/g"]];
        assert_eq!(names(&outcomes(&files)), BTreeSet::from(expected));
        files.sync_folder(Path::new("/b"));
        assert_eq!(names(&outcomes(&files)), BTreeSet::from([vec!["/b/g"], vec!["/a/f", "/b/g"]]));
    }

    #[test]
    fn a_rename_between_folders_is_one_change_and_its_old_name_does_not_come_back() {
        let mut files = two_folders();
        let id = new_file(&mut files, "/a/f", b"");
        files.sync_file(id);
        files.move_to(Path::new("/a/f"), Path::new("/b/g"), Node::File(id));
        assert_eq!(names(&outcomes(&files)), BTreeSet::from([vec![], vec!["/a/f"], vec!["/b/g"]]));
        files.sync_folder(Path::new("/b"));
        assert_eq!(names(&outcomes(&files)), BTreeSet::from([vec!["/b/g"]]));
    }

    #[test]
    fn a_folder_that_moves_takes_along_what_is_synced_in_it_and_no_more() {
        let mut files = two_folders();
        for name in ["/a/synced", "/a/gone"] {
            let id = new_file(&mut files, name, b"");
            files.sync_file(id);
        }
        files.sync_folder(Path::new("/a"));
        new_file(&mut files, "/a/new", b"");
        files.rename(vec![(path("/a/gone"), None)]);
        files.move_to(Path::new("/a"), Path::new("/c"), Node::Folder);
        assert_eq!(files.list(Path::new("/c")), ["new", "synced"]);
        files.sync_folder(Path::new("/"));
        let expected = [
            vec!["/c/synced"],
            vec!["/c/gone", "/c/synced"],
            vec!["/c/new", "/c/synced"],
            vec!["/c/gone", "/c/new", "/c/synced"],
        ];
        assert_eq!(names(&outcomes(&files)), BTreeSet::from(expected));
        files.sync_folder(Path::new("/c"));
        assert_eq!(names(&outcomes(&files)), BTreeSet::from([vec!["/c/new", "/c/synced"]]));
    }
}
