//! README.md and `docs/` say what is so: every block of commands is run on a host of its own and its output compared, those that
//! want packages or systemd on a clean one, every manifest is validated, every link leads somewhere, the book names every page, and
//! the reference is what the code says.
//!
//! What a fence says about its test is in `page.rs`. Blocks that cannot be run are named, with their reason, in `not_run.txt`, so
//! that one more is seen by whoever reads a change: `UPDATE_GOLDEN=1 cargo test --test docs` writes it, and the reference.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

mod book;
mod compare;
mod host;
mod page;
#[path = "../prepared/mod.rs"]
mod prepared;
mod reference;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};

use host::Host;
use page::{How, Kind, Page, REASONS};

/// How long a command may be run again until it prints what the page says: VMs boot meanwhile.
const RETRY: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages: Arc<Vec<Page>> = Arc::new(book::pages(root).iter().map(|path| Page::read(root, path)).collect());

    let mut trials = Vec::new();
    let mut all = |name: &str, test: fn(&Path, &[Page])| {
        let pages = Arc::clone(&pages);
        trials.push(Trial::test(name, move || {
            test(Path::new(env!("CARGO_MANIFEST_DIR")), &pages);
            Ok(())
        }));
    };
    all("what_varies_is_hidden_and_nothing_else", |_, _| compare::check());
    all("every_block_is_understood", |_, pages| {
        let flaws: Vec<&str> = pages.iter().flat_map(|page| &page.flaws).map(String::as_str).collect();
        assert!(flaws.is_empty(), "\n{}", flaws.join("\n"));
    });
    all("what_is_not_run_is_named", what_is_not_run_is_named);
    all("the_book_names_every_page", book::names_every_page);
    all("every_link_leads_somewhere", book::every_link_leads_somewhere);
    all("the_reference_is_what_the_code_says", |root, _| reference::is_current(root));
    let clean_ones_are_possible = host::clean_ones_are_possible();
    for (index, page) in pages.iter().enumerate() {
        for (on, name) in [(page::Host::Here, "page"), (page::Host::Clean, "clean_host")] {
            if page.is_for(on) {
                let (pages, name) = (Arc::clone(&pages), format!("{name}::{}", page.path.display()));
                let trial = Trial::test(name, move || {
                    follow(Path::new(env!("CARGO_MANIFEST_DIR")), &pages[index], on);
                    Ok(())
                });
                trials.push(trial.with_ignored_flag(on == page::Host::Clean && !clean_ones_are_possible));
            }
        }
    }
    tell_what_is_not_run(&pages);
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Does what a page says, line by line.
fn follow(root: &Path, page: &Page, on: page::Host) {
    // One that has neither commands nor files to write needs no host.
    let mut host = None;
    for step in page.steps_on(on) {
        let place = format!("{}:{}", page.path.display(), step.line);
        match &step.kind {
            Kind::Skipped { .. } => {}
            Kind::Manifest { text } => validate(&place, text),
            Kind::Script { text } => check_syntax(&place, text),
            Kind::Setup { text } => {
                let (status, printed) = host.get_or_insert_with(|| Host::new(root, on)).run(text);
                assert_eq!(status, 0, "{place}: what prepares the test:\n{printed}");
            }
            Kind::File { path, text } => {
                let host = host.get_or_insert_with(|| Host::new(root, on));
                // The end of a here-document that no page has in a file.
                let (status, printed) = host.run(&format!("cat >{path} <<'END OF FILE'\n{text}END OF FILE"));
                assert_eq!(status, 0, "{place}: {printed}");
            }
            Kind::Console { commands, how } => {
                let host = host.get_or_insert_with(|| Host::new(root, on));
                for command in commands {
                    let place = format!("{}:{}", page.path.display(), command.line);
                    type_in(host, &place, command, how);
                }
            }
        }
    }
}

fn type_in(host: &mut Host, place: &str, command: &page::Command, how: &How) {
    let start = Instant::now();
    loop {
        let (status, printed) = host.run(&command.text);
        let same = compare::same(&command.output, &printed, how.any_order) && how.exits.contains(&status);
        if same {
            return;
        }
        assert!(
            how.retry && only_looks(&command.text) && start.elapsed() < RETRY,
            "{place}: $ {}\nthe page says:\n{}\n\nit printed, and exited with {status}:\n{printed}",
            command.text,
            command.output.join("\n")
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Whether a command may be run any number of times.
fn only_looks(command: &str) -> bool {
    let mut words = command.split_whitespace();
    words.next() == Some("stead")
        && words
            .next()
            .is_some_and(|verb| ["get", "describe", "logs", "plan", "sources", "events", "doctor"].contains(&verb))
}

/// Holds a whole document of a page against what reads such.
fn validate(place: &str, text: &str) {
    if text.contains("\nkind: Configuration\n") {
        let validator = jsonschema::validator_for(&stead::config::configuration_schema()).expect("the schema is one");
        for document in stead::desired::yaml::documents(text) {
            let tree = document.tree.unwrap_or_else(|error| panic!("{place}: {error:?}")).to_json();
            let errors: Vec<String> = validator.iter_errors(&tree).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{place}: {errors:#?}");
        }
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("page.yaml"), text).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_stead")).arg("validate").arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{place}: {}", String::from_utf8_lossy(&output.stderr));
}

fn check_syntax(place: &str, text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    fs::write(&script, text).unwrap();
    let output = Command::new("sh").arg("-n").arg(&script).output().unwrap();
    assert!(output.status.success(), "{place}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Every block that is left out, by its page, reason and first command.
fn not_run(pages: &[Page]) -> Vec<(PathBuf, String, String)> {
    let skipped = |page: &Page| {
        let steps = page.steps.iter().filter_map(|step| match &step.kind {
            Kind::Skipped { reason, commands } => {
                let first = commands.first().map_or("", |command| &command.text);
                Some((page.path.clone(), reason.clone(), first.lines().next().unwrap_or_default().to_owned()))
            }
            _ => None,
        });
        steps.collect::<Vec<_>>()
    };
    pages.iter().flat_map(skipped).collect()
}

fn what_is_not_run_is_named(root: &Path, pages: &[Page]) {
    let mut list =
        String::from("Blocks of commands that tests/docs does not run, and why; written by UPDATE_GOLDEN=1.\n\n");
    for (reason, instead) in REASONS {
        let _ = writeln!(list, "{reason}: {instead}");
    }
    list.push('\n');
    for (page, reason, first) in not_run(pages) {
        let _ = writeln!(list, "{}  {reason}  $ {first}", page.display());
    }
    prepared_text(&root.join("tests/docs/not_run.txt"), &list);
}

/// Says it on standard error, which no harness keeps for itself.
fn tell_what_is_not_run(pages: &[Page]) {
    let run: usize = pages
        .iter()
        .flat_map(|page| &page.steps)
        .map(|step| match &step.kind {
            Kind::Console { commands, .. } => commands.len(),
            _ => 0,
        })
        .sum();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for (_, reason, _) in not_run(pages) {
        *reasons.entry(reason).or_default() += 1;
    }
    let reasons: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    let _ = writeln!(
        std::io::stderr(),
        "docs: {run} commands of {} pages are run; blocks that are not: {} (tests/docs/not_run.txt)",
        pages.len(),
        reasons.join(", ")
    );
}

/// Holds a text that is made from something else against what it is made from, or writes it.
fn prepared_text(path: &Path, text: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        return;
    }
    let there = fs::read_to_string(path).unwrap_or_default();
    assert!(there == text, "{} is not current: UPDATE_GOLDEN=1 cargo test --test docs; read the diff", path.display());
}
