//! The manifests of a commit, read from the repository as they are: nothing is checked out, so nothing is ever half written,
//! and no attribute, filter or link of the tree does anything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::SyncError;
use super::git::Git;
use crate::desired::load::{FILE_MAX, is_manifest};

/// Entries that a tree may have below the path of its source.
const ENTRIES_MAX: usize = 50_000;
/// Bytes of all manifests of a commit.
const BYTES_MAX: u64 = 64 << 20;

/// One entry of a tree that is a manifest.
struct Entry {
    object: String,
    path: PathBuf,
}

/// The manifests below `path` in a commit, with their paths below it.
pub(super) fn manifests(git: &Git<'_>, commit: &str, path: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, SyncError> {
    let refused = |why: String| SyncError::TreeRefused { commit: commit.to_owned(), why };
    let tree = format!("{commit}:{}", path.display());
    let listing = match git.ask(&["ls-tree", "-r", "-z", "-l", "--full-tree", &tree]) {
        // Not told from one that git cannot read: neither is there to be followed.
        Err(SyncError::Git { .. }) if !is_tree(git, &tree)? => {
            return Err(refused(format!("there is no folder {:?} in it", path.display().to_string())));
        }
        listing => listing?,
    };
    let entries = entries(&listing).map_err(refused)?;
    let objects: String = entries.iter().map(|entry| format!("{}\n", entry.object)).collect();
    let contents = git.tell(&["cat-file", "--batch"], objects.as_bytes())?;
    let contents = contents_of(&contents, entries.len());
    let contents = contents.ok_or_else(|| refused("its manifests cannot be read".to_owned()))?;
    Ok(entries.into_iter().map(|entry| entry.path).zip(contents.into_iter().map(<[u8]>::to_vec)).collect())
}

/// Whether there is such a tree.
fn is_tree(git: &Git<'_>, tree: &str) -> Result<bool, SyncError> {
    match git.line(&["cat-file", "-t", tree]) {
        Err(SyncError::Git { .. }) => Ok(false),
        kind => Ok(kind? == "tree"),
    }
}

/// The manifests that `git ls-tree -r -z -l` lists: `MODE TYPE OBJECT SIZE<tab>PATH<nul>` each.
fn entries(listing: &[u8]) -> Result<Vec<Entry>, String> {
    let (mut manifests, mut bytes, mut count) = (Vec::new(), 0, 0);
    let mut lower = BTreeMap::new();
    for line in listing.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
        count += 1;
        if count > ENTRIES_MAX {
            return Err(format!(
                "it has more than {ENTRIES_MAX} files; let `path` name the folder of this host's manifests"
            ));
        }
        let line = std::str::from_utf8(line).map_err(|_| "a path in it is not UTF-8".to_owned())?;
        let parts = line.split_once('\t').map(|(left, path)| (left.split_ascii_whitespace().collect::<Vec<_>>(), path));
        let Some(([mode, kind, object, size], path)) = parts.as_ref().map(|(left, path)| (left.as_slice(), *path))
        else {
            return Err(format!("git lists it in a way that is not known: {line:?}"));
        };
        if *kind == "commit" {
            return Err(format!("{path} is a submodule, and these are not followed; put its manifests here"));
        }
        let path = Path::new(path);
        let is_plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !is_plain {
            return Err(format!("the path {:?} in it leads elsewhere", path.display().to_string()));
        }
        if !is_manifest(path) {
            continue;
        }
        let shown = path.display();
        if let Some(other) = lower.insert(path.to_string_lossy().to_lowercase(), path.to_owned()) {
            return Err(format!("{} and {shown} differ in case alone; rename one", other.display()));
        }
        if *mode == "120000" {
            return Err(format!("{shown} is a link, and these are not followed; put the file itself there"));
        }
        let size: u64 = size.parse().map_err(|_| format!("the size of {shown} cannot be read"))?;
        bytes += size;
        if size > FILE_MAX {
            return Err(format!("{shown} is larger than {FILE_MAX} bytes; split it"));
        }
        if bytes > BYTES_MAX {
            return Err(format!("its manifests are more than {BYTES_MAX} bytes; let `path` name those of this host"));
        }
        manifests.push(Entry { object: (*object).to_owned(), path: path.to_owned() });
    }
    Ok(manifests)
}

/// What `git cat-file --batch` printed of so many objects: `OBJECT blob SIZE<newline>CONTENT<newline>` each.
fn contents_of(mut printed: &[u8], count: usize) -> Option<Vec<&[u8]>> {
    let mut contents = Vec::new();
    for _ in 0..count {
        let end = printed.iter().position(|byte| *byte == b'\n')?;
        let header = std::str::from_utf8(&printed[..end]).ok()?;
        let (_, size) = header.split_once(" blob ")?;
        let size: usize = size.parse().ok()?;
        let content = printed.get(end + 1..end + 1 + size)?;
        printed = printed.get(end + 1 + size..)?.strip_prefix(b"\n")?;
        contents.push(content);
    }
    printed.is_empty().then_some(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(lines: &[&str]) -> Result<Vec<String>, String> {
        let text: String = lines.iter().map(|line| format!("{line}\0")).collect();
        entries(text.as_bytes()).map(|all| all.into_iter().map(|entry| entry.path.display().to_string()).collect())
    }

    #[test]
    fn manifests_are_told_from_other_files_and_what_leads_elsewhere_is_refused() {
        let object = "0123456789012345678901234567890123456789";
        let blob = |mode: &str, size: &str, path: &str| format!("{mode} blob {object} {size}\t{path}");
        let good = [
            blob("100644", "     12", "web.yaml"),
            blob("100755", "12", "deep/db.json"),
            blob("100644", "9999999999", "image.raw"),
            blob("120000", "12", "README"),
            blob("100644", "12", ".github/ci.yaml"),
        ];
        assert_eq!(listed(&good.each_ref().map(String::as_str)).unwrap(), ["web.yaml", "deep/db.json"]);
        for (bad, why) in [
            (blob("120000", "12", "web.yaml"), "link"),
            (blob("100644", "1048577", "web.yaml"), "larger"),
            (blob("100644", "12", "../web.yaml"), "elsewhere"),
            (blob("100644", "12", "/etc/web.yaml"), "elsewhere"),
            (format!("160000 commit {object}       -\tvendor"), "submodule"),
            ("nonsense".to_owned(), "not known"),
        ] {
            let error = listed(&[&bad]).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        let error = listed(&[&blob("100644", "1", "Web.yaml"), &blob("100644", "1", "web.yaml")]).unwrap_err();
        assert!(error.contains("case"), "{error}");
        let many: Vec<String> = (0..=ENTRIES_MAX).map(|number| blob("100644", "1", &number.to_string())).collect();
        assert!(listed(&many.iter().map(String::as_str).collect::<Vec<_>>()).is_err());
    }

    #[test]
    fn contents_are_read_back_exactly_or_not_at_all() {
        let printed = b"aa blob 3\na\nb\nbb blob 0\n\n";
        assert_eq!(contents_of(printed, 2).unwrap(), [b"a\nb".as_slice(), b""]);
        for cut in 0..printed.len() {
            assert_eq!(contents_of(&printed[..cut], 2), None);
        }
        assert_eq!(contents_of(b"aa missing\n", 1), None);
    }
}
