//! The pages, the book that holds them, and where their links lead.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::page::Page;

/// README.md and every page below `docs/`, from the project's folder. The summary is no page.
pub fn pages(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("README.md")];
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).unwrap().map(Result::unwrap) {
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") && !path.ends_with("SUMMARY.md") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 5, "the pages are where this test looks");
    found.sort();
    found
}

/// mdBook makes of `docs/SUMMARY.md` which pages there are.
pub fn names_every_page(root: &Path, pages: &[Page]) {
    let book = fs::read_to_string(root.join("book.toml")).unwrap();
    assert!(book.contains("src = \"docs\""), "book.toml leads to docs/");
    let summary = fs::read_to_string(root.join("docs/SUMMARY.md")).unwrap();
    let named: Vec<PathBuf> = links(&summary).into_iter().map(|(_, link)| Path::new("docs").join(link)).collect();
    let there: Vec<&Path> =
        pages.iter().map(|page| page.path.as_path()).filter(|path| path.starts_with("docs")).collect();
    let missing: Vec<&&Path> =
        there.iter().filter(|path| !named.iter().any(|named| named.as_path() == **path)).collect();
    assert!(missing.is_empty(), "docs/SUMMARY.md names no {missing:?}");
    let gone: Vec<&PathBuf> = named.iter().filter(|named| !there.contains(&named.as_path())).collect();
    assert!(gone.is_empty(), "docs/SUMMARY.md names {gone:?}, which are not there");
    for (index, path) in named.iter().enumerate() {
        assert!(!named[..index].contains(path), "docs/SUMMARY.md names {} twice", path.display());
    }
}

/// Each relative link leads to a file of the project, and each `#part` to a heading there.
pub fn every_link_leads_somewhere(root: &Path, pages: &[Page]) {
    let mut dead = Vec::new();
    let others = ["ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/SUMMARY.md"].map(PathBuf::from);
    for path in pages.iter().map(|page| &page.path).chain(&others) {
        let text = fs::read_to_string(root.join(path)).unwrap();
        for (line, link) in links(&text) {
            if link.contains("://") {
                continue;
            }
            let (file, part) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { path.clone() } else { plain(&path.parent().unwrap().join(file)) };
            if !root.join(&target).exists() {
                dead.push(format!("{}:{line}: {link} is not there", path.display()));
            } else if !part.is_empty()
                && !headings(&fs::read_to_string(root.join(&target)).unwrap()).any(|heading| heading == part)
            {
                dead.push(format!("{}:{line}: {} has no heading #{part}", path.display(), target.display()));
            }
        }
    }
    assert!(dead.is_empty(), "\n{}", dead.join("\n"));
}

/// The path without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(plain.pop()),
            other => plain.push(other),
        }
    }
    plain
}

/// Links in Markdown's `[text](link)`, with their lines, outside code.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_block = false;
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        }
        if in_block {
            continue;
        }
        // What stands between back-ticks is code.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
        for rest in prose.split("](").skip(1) {
            if let Some((link, _)) = rest.split_once(')') {
                found.push((number, link.to_owned()));
            }
        }
    }
    found
}

/// What a heading is called in a link: as GitHub and mdBook both do for those of letters, digits, spaces and few signs.
fn headings(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter(|line| line.starts_with('#')).map(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    })
}
