//! The configuration file: where manifests come from, and who may say that there is something new.
//!
//! Read as manifests are: types of its own that a JSON Schema is made of, and every error at once, each with its place.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::{JsonSchema, SchemaGenerator};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ParseError, parse_bytes, parse_duration};
use crate::desired::SourceName;
use crate::desired::hosts::{self, Labels};
use crate::desired::structure::{self, Finding};
use crate::desired::yaml::{self, Node};
use crate::http::Address;
use crate::names::VmName;
use crate::push::Push;
use crate::sync::{GitSource, GitUrl, Reference, Signed, Verify};

/// The `kind` of the configuration file.
const KIND: &str = "Configuration";
/// The name of the folder that is read where no configuration says otherwise.
pub const MANIFESTS: &str = "manifests";
/// How often a repository is asked when nobody says otherwise.
const INTERVAL: Duration = Duration::from_secs(60);
/// The least time between two questions to a server.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// The largest file that git may write when nobody says otherwise: a thousand times a usual repository of manifests.
const SIZE_MAX: u64 = 256 << 20;
/// How long a fetch may take when nobody says otherwise.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What the configuration file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configured {
    /// Where manifests come from; none: it does not say.
    pub sources: Vec<Source>,
    /// Where a git server can tell of a push, if anywhere.
    pub push: Option<Push>,
    /// Where metrics can be scraped, if anywhere.
    pub metrics: Option<Address>,
    /// What this host is called, if not by its hostname.
    pub host_name: Option<String>,
    /// The labels that its user gave this host.
    pub host_labels: Labels,
}

/// Where manifests come from, under a name that their VMs remember.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its name.
    pub name: SourceName,
    /// What it is.
    pub kind: SourceKind,
}

/// What a source is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    /// A folder on this host.
    Folder(PathBuf),
    /// A git repository.
    Git(Box<GitSource>),
}

impl Source {
    /// The folder that is read where no configuration says otherwise.
    pub fn manifests(folder: PathBuf) -> Self {
        Self { name: SourceName(MANIFESTS.to_owned()), kind: SourceKind::Folder(folder) }
    }
}

/// Where manifests come from.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    /// Always `stead.dev/v1alpha1`.
    #[schemars(extend("const" = crate::desired::manifest::API_VERSION))]
    #[serde(rename = "apiVersion")]
    _api_version: String,
    /// Always `Configuration`.
    #[schemars(extend("const" = KIND))]
    #[serde(rename = "kind")]
    _kind: String,
    /// Where manifests come from; otherwise the usual folder. A VM belongs to the source that declared it first.
    #[serde(default)]
    #[schemars(extend("default" = Value::Null))]
    sources: Option<Vec<SourceEntry>>,
    /// What VMs that are for one of many hosts know this one by.
    #[serde(default)]
    #[schemars(extend("default" = json!({})))]
    host: HostEntry,
    /// Where a git server's hook can have git sources asked at once.
    #[serde(default)]
    #[schemars(extend("default" = Value::Null))]
    push: Option<PushEntry>,
    /// Where metrics and health can be read; nowhere otherwise.
    #[serde(default)]
    #[schemars(extend("default" = Value::Null))]
    metrics: Option<MetricsEntry>,
}

/// What VMs that are for one of many hosts know this one by.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HostEntry {
    /// Its name; its hostname otherwise.
    #[serde(default)]
    name: Option<String>,
    /// Its labels, beside those that stead gives it.
    #[serde(default)]
    labels: Labels,
}

/// Where a git server's hook can have git sources asked at once.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PushEntry {
    /// Where stead listens: `unix:/PATH`, or a port of a loopback address such as `127.0.0.1:9440`.
    listen: String,
    /// The file of the token that a request must carry, by its absolute path. Nobody but its owner may use it.
    token_file: PathBuf,
}

/// Where metrics and health can be read.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MetricsEntry {
    /// Where stead listens: `unix:/PATH`, or a port of a loopback address such as `127.0.0.1:9441`.
    listen: String,
}

/// A folder, or a git repository.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SourceEntry {
    /// Unique among sources, of the form of a VM's name. VMs remember it: of a source that is renamed nothing is pruned.
    name: String,
    /// A folder on this host.
    #[serde(default)]
    #[schemars(extend("default" = Value::Null))]
    folder: Option<FolderEntry>,
    /// A git repository.
    #[serde(default)]
    #[schemars(extend("default" = Value::Null))]
    git: Option<GitEntry>,
}

/// A folder on this host.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FolderEntry {
    /// Its absolute path.
    path: PathBuf,
}

/// A git repository. One of `branch`, `tag` and `commit` says what of it is followed.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GitEntry {
    /// Where it is: https, ssh or file; also http and git, where everybody on the way is trusted.
    url: String,
    /// The branch that is followed; `main` where neither `tag` nor `commit` says otherwise.
    #[serde(default)]
    branch: Option<String>,
    /// The tag that is followed.
    #[serde(default)]
    tag: Option<String>,
    /// The commit that is in force, by its whole id.
    #[serde(default)]
    commit: Option<String>,
    /// The folder of manifests in it; all of it otherwise.
    #[serde(default)]
    path: Option<PathBuf>,
    /// How often it is asked: a minute otherwise.
    #[serde(default)]
    #[schemars(extend("default" = "1m"))]
    interval: Option<String>,
    /// How long a fetch may take: a minute otherwise.
    #[serde(default)]
    #[schemars(extend("default" = "1m"))]
    timeout: Option<String>,
    /// The largest file that git may write here, such as `256Mi`, which holds otherwise: what is larger is not fetched.
    #[serde(default)]
    #[schemars(extend("default" = "256Mi"))]
    max_size: Option<String>,
    /// What a branch whose history was rewritten leads to.
    #[serde(default)]
    #[schemars(extend("default" = "Hold"))]
    force_push: ForcePush,
    /// The private key that ssh uses, by its absolute path.
    #[serde(default)]
    ssh_key: Option<PathBuf>,
    /// Whose signature is asked for.
    #[serde(default)]
    #[schemars(extend("default" = Value::Null))]
    verify: Option<VerifyEntry>,
    /// Leaves everything of it as it is.
    #[serde(default)]
    suspend: bool,
}

/// What a branch whose history was rewritten leads to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
enum ForcePush {
    /// The last commit before that stays in force.
    #[default]
    Hold,
    /// It is followed.
    Follow,
}

/// Whose signature is asked for.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VerifyEntry {
    /// What is signed: the commit that is followed (`Head`), or the tag (`Tag`).
    mode: VerifyMode,
    /// The file of allowed signers for SSH signatures (ssh-keygen(1)). Without it, OpenPGP keys of the user's keyring.
    #[serde(default)]
    allowed_signers: Option<PathBuf>,
}

/// What is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
enum VerifyMode {
    /// The commit that is followed.
    Head,
    /// The tag that is followed.
    Tag,
}

/// Why there is no configuration to go by.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// It is no good: every reason, each with its place.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
    /// It cannot be read now, and may be in a moment.
    #[error("could not read {}", path.display())]
    Unread {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Reads the configuration file; `None` when there is none.
///
/// # Errors
/// Everything that is wrong with it, or why it could not be read.
pub fn read_configuration(file: &Path) -> Result<Option<Configured>, ConfigurationError> {
    match std::fs::read_to_string(file) {
        Ok(text) => parse(&text).map(Some).map_err(|findings| {
            let line = |finding: Finding| {
                let hint = finding.hint.map_or_else(String::new, |hint| format!(" ({hint})"));
                format!("{}:{}:{}: {}{hint}", file.display(), finding.place.0, finding.place.1, finding.message)
            };
            ConfigurationError::Invalid(findings.into_iter().map(line).collect())
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // No text at all: to read it again helps no more than with any other that is no good.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::IsADirectory) => {
            Err(ConfigurationError::Invalid(vec![format!("{}: {error}", file.display())]))
        }
        Err(source) => Err(ConfigurationError::Unread { path: file.to_owned(), source }),
    }
}

/// The JSON Schema of the configuration file.
pub fn configuration_schema() -> Value {
    SchemaGenerator::default().into_root_schema_for::<Configuration>().to_value()
}

fn parse(text: &str) -> Result<Configured, Vec<Finding>> {
    let mut documents = yaml::documents(text);
    let whole = |message: &str| Finding { place: (1, 1), message: message.to_owned(), hint: None };
    let (Some(document), None) = (documents.pop(), documents.pop()) else {
        return Err(vec![whole("a configuration is one document")]);
    };
    let tree = document.tree.map_err(|error| {
        vec![Finding { place: error.place.unwrap_or((document.line, 1)), message: error.message, hint: None }]
    })?;
    let findings = structure::check(&tree, &configuration_schema());
    if !findings.is_empty() {
        return Err(findings);
    }
    let read: Configuration =
        serde_json::from_value(tree.to_json()).map_err(|error| vec![Finding::at(&tree, error.to_string())])?;
    let mut checker = Checker { tree: &tree, findings: Vec::new() };
    let sources = read.sources.map(|sources| checker.sources(sources)).unwrap_or_default();
    checker.host(&read.host);
    let push = read.push.and_then(|entry| checker.push(entry));
    let metrics = read.metrics.and_then(|entry| checker.address("metrics", &entry.listen));
    if let (Some(push), Some(metrics)) = (&push, &metrics)
        && push.listen == *metrics
    {
        checker.say(&["metrics", "listen"], format!("{metrics} is where pushes are listened for"));
    }
    let configured = Configured { sources, push, metrics, host_name: read.host.name, host_labels: read.host.labels };
    if checker.findings.is_empty() { Ok(configured) } else { Err(checker.findings) }
}

/// The checks that a schema cannot make.
struct Checker<'a> {
    tree: &'a Node,
    findings: Vec<Finding>,
}

impl Checker<'_> {
    fn say(&mut self, path: &[&str], message: impl Into<String>) {
        self.findings.push(Finding::at(self.tree.nearest(path), message));
    }

    fn host(&mut self, host: &HostEntry) {
        if let Some(why) = host.name.as_deref().and_then(hosts::flaw_of_name) {
            self.say(&["host", "name"], why);
        }
        for key in host.labels.keys() {
            if let Some((why, _)) = hosts::flaw_of_key(key, &[]) {
                self.say(&["host", "labels", key], why);
            }
        }
    }

    fn sources(&mut self, entries: Vec<SourceEntry>) -> Vec<Source> {
        if entries.is_empty() {
            self.say(&["sources"], "there is no source, so no VM could be declared");
        }
        let mut sources: Vec<Source> = Vec::new();
        let mut names = BTreeSet::new();
        for (number, entry) in entries.into_iter().enumerate() {
            let number = number.to_string();
            let at = ["sources", number.as_str()];
            let name = SourceName(entry.name.clone());
            if let Err(error) = VmName::new(entry.name) {
                self.say(&[at[0], at[1], "name"], format!("{:?} is no source's name: {error}", name.0));
            } else if !names.insert(name.clone()) {
                self.say(&[at[0], at[1], "name"], format!("there is another source named {name}"));
            }
            let kind = match (entry.folder, entry.git) {
                (Some(folder), None) => {
                    if !folder.path.is_absolute() {
                        self.say(&[at[0], at[1], "folder", "path"], "a folder is named by its absolute path");
                    }
                    Some(SourceKind::Folder(folder.path))
                }
                (None, Some(git)) => self.git(&at, git).map(|git| SourceKind::Git(Box::new(git))),
                _ => {
                    self.say(&at, "a source is either a `folder` or a `git` repository");
                    None
                }
            };
            sources.extend(kind.map(|kind| Source { name, kind }));
        }
        sources
    }

    fn git(&mut self, at: &[&str; 2], entry: GitEntry) -> Option<GitSource> {
        let path = |key| [at[0], at[1], "git", key];
        let url = GitUrl::new(&entry.url).map_err(|error| self.say(&path("url"), error.to_string())).ok();
        let reference = match (entry.branch, entry.tag, entry.commit) {
            (Some(branch), None, None) => Some(("branch", Reference::Branch(branch))),
            (None, Some(tag), None) => Some(("tag", Reference::Tag(tag))),
            (None, None, Some(commit)) => Some(("commit", Reference::Commit(commit))),
            (None, None, None) => Some(("branch", Reference::Branch("main".to_owned()))),
            _ => {
                self.say(&[at[0], at[1], "git"], "only one of `branch`, `tag` and `commit` can be followed");
                None
            }
        };
        if let Some((key, reference)) = &reference
            && let Some(why) = flaw(reference)
        {
            self.say(&path(key), why);
        }
        let below = entry.path.unwrap_or_default();
        if !below.components().all(|part| matches!(part, std::path::Component::Normal(_))) {
            self.say(&path("path"), "a path in the repository is relative, without `.` and `..`");
        }
        let interval = self.duration(&path("interval"), entry.interval.as_deref(), INTERVAL);
        if interval < INTERVAL_MIN {
            self.say(&path("interval"), format!("at least {INTERVAL_MIN:?}"));
        }
        let timeout = self.duration(&path("timeout"), entry.timeout.as_deref(), TIMEOUT);
        let size_max = match entry.max_size.as_deref().map(|text| (text, parse_bytes(text))) {
            None => SIZE_MAX,
            Some((_, Ok(size))) => size,
            Some((text, Err(error))) => {
                self.say(&path("maxSize"), format!("{text:?}: {error}"));
                SIZE_MAX
            }
        };
        let keys = [("sshKey", entry.ssh_key.as_ref())];
        let signers = entry.verify.as_ref().and_then(|verify| verify.allowed_signers.as_ref());
        for (key, file) in keys.into_iter().chain([("verify", signers)]) {
            if file.is_some_and(|file| !file.is_absolute()) {
                self.say(&path(key), "a file is named by its absolute path");
            }
        }
        let verify = entry.verify.map(|verify| Verify {
            of: match verify.mode {
                VerifyMode::Head => Signed::Head,
                VerifyMode::Tag => Signed::Tag,
            },
            allowed_signers: verify.allowed_signers,
        });
        let (_, reference) = reference?;
        if verify.as_ref().is_some_and(|verify| verify.of == Signed::Tag) && !matches!(reference, Reference::Tag(_)) {
            self.say(&path("verify"), "mode Tag asks for a `tag` to follow");
        }
        Some(GitSource {
            url: url?,
            reference,
            path: below,
            interval,
            timeout,
            size_max,
            follow_force_push: entry.force_push == ForcePush::Follow,
            ssh_key: entry.ssh_key,
            verify,
            suspend: entry.suspend,
        })
    }

    fn push(&mut self, entry: PushEntry) -> Option<Push> {
        if !entry.token_file.is_absolute() {
            self.say(&["push", "tokenFile"], "a file is named by its absolute path");
        }
        Some(Push { listen: self.address("push", &entry.listen)?, token_file: entry.token_file })
    }

    fn address(&mut self, of: &str, listen: &str) -> Option<Address> {
        Address::new(listen).map_err(|error| self.say(&[of, "listen"], error.to_string())).ok()
    }

    fn duration(&mut self, path: &[&str], text: Option<&str>, default: Duration) -> Duration {
        let Some(text) = text else { return default };
        parse_duration(text).unwrap_or_else(|error: ParseError| {
            self.say(path, format!("{text:?}: {error}"));
            default
        })
    }
}

/// What is wrong with the name of a branch or tag (git-check-ref-format(1)), or with a commit's id.
fn flaw(reference: &Reference) -> Option<&'static str> {
    match reference {
        Reference::Branch(name) | Reference::Tag(name) => {
            let is_bad = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
            let is_part =
                |part: &str| !part.is_empty() && !part.starts_with('.') && part.strip_suffix(".lock").is_none();
            let is_name = !name.chars().any(is_bad)
                && name.split('/').all(is_part)
                && !(name.starts_with('-') || name.ends_with('.') || name.contains("..") || name.contains("@{"));
            (!is_name).then_some("this is no name that git takes")
        }
        Reference::Commit(id) => {
            let is_id = matches!(id.len(), 40 | 64) && id.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
            (!is_id).then_some("a commit is named by its whole id, 40 or 64 hexadecimal digits")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(sources: &str) -> Result<Vec<Source>, Vec<String>> {
        configured(&format!("sources:\n{sources}")).map(|read| read.sources)
    }

    fn configured(text: &str) -> Result<Configured, Vec<String>> {
        parse(&format!("apiVersion: stead.dev/v1alpha1\nkind: Configuration\n{text}"))
            .map_err(|all| all.into_iter().map(|f| format!("{}:{}: {}", f.place.0, f.place.1, f.message)).collect())
    }

    #[test]
    fn folders_and_repositories_are_read_with_what_holds_otherwise() {
        let sources = read(
            "- {name: local, folder: {path: /etc/stead/manifests}}\n\
             - name: fleet\n  git: {url: 'https://example.org/fleet.git', path: hosts/a1, interval: 5m}\n\
             - name: edge\n  git:\n    url: git@example.org:edge.git\n    tag: v1\n    forcePush: Follow\n    \
               verify: {mode: Tag, allowedSigners: /etc/stead/signers}\n",
        )
        .unwrap();
        assert_eq!(sources[0].kind, SourceKind::Folder("/etc/stead/manifests".into()));
        let SourceKind::Git(fleet) = &sources[1].kind else { panic!() };
        assert_eq!(fleet.reference, Reference::Branch("main".into()));
        assert_eq!((fleet.interval, fleet.timeout), (Duration::from_secs(300), TIMEOUT));
        assert!(!fleet.follow_force_push && !fleet.suspend);
        let SourceKind::Git(edge) = &sources[2].kind else { panic!() };
        assert!(edge.follow_force_push);
        assert_eq!(edge.verify.as_ref().map(|verify| verify.of), Some(Signed::Tag));
    }

    #[test]
    fn everything_that_is_wrong_is_told_at_once_and_where() {
        let errors = read(
            "- {name: Local, folder: {path: manifests}}\n\
             - {name: fleet, git: {url: 'ext::sh', branch: a, tag: b}}\n\
             - {name: fleet, git: {url: 'file:///x', commit: abc, path: ../up, interval: 5x}}\n\
             - {name: both}\n",
        )
        .unwrap_err();
        let expected = [
            (4, "no source's name"),
            (4, "absolute path"),
            (5, "a git url is"),
            (5, "only one of"),
            (6, "another source"),
            (6, "whole id"),
            (6, "without `.`"),
            (6, "5x"),
            (7, "either a `folder`"),
        ];
        assert_eq!(errors.len(), expected.len(), "{errors:#?}");
        for ((line, part), error) in expected.iter().zip(&errors) {
            assert!(error.starts_with(&format!("{line}:")) && error.contains(part), "{error} is not {line}: {part}");
        }
        let host = |text: &str| parse(&format!("apiVersion: stead.dev/v1alpha1\nkind: Configuration\nhost: {text}\n"));
        let named = host("{name: a1, labels: {zone: north}}").unwrap();
        assert_eq!((named.host_name.as_deref(), named.host_labels["zone"].as_str()), (Some("a1"), "north"));
        assert!(named.sources.is_empty());
        assert_eq!(host("{name: a 1, labels: {stead.dev/arch: z80}}").unwrap_err().len(), 2);
        let misspelt = read("- {name: a, gti: {url: x}}\n").unwrap_err();
        assert!(misspelt[0].contains("unknown field `gti`"), "{misspelt:?}");
    }

    const LOCAL: &str = "sources: [{name: local, folder: {path: /etc/stead/manifests}}]\n";

    #[test]
    fn pushes_are_listened_for_where_the_configuration_says_so_and_nowhere_else() {
        assert_eq!(configured(LOCAL).unwrap().push, None);
        for listen in ["unix:/run/stead/push.sock", "127.0.0.1:9440", "'[::1]:9440'"] {
            let text = format!("{LOCAL}push: {{listen: {listen}, tokenFile: /etc/stead/push-token}}\n");
            let push = configured(&text).unwrap().push.unwrap();
            assert_eq!(push.listen.to_string(), listen.trim_matches('\''));
            assert_eq!(push.token_file, Path::new("/etc/stead/push-token"));
        }
    }

    #[test]
    fn metrics_are_served_where_the_configuration_says_so_and_nowhere_else() {
        assert_eq!(configured(LOCAL).unwrap().metrics, None);
        let metrics = |listen: &str| configured(&format!("{LOCAL}metrics: {{listen: {listen}}}\n"));
        let address = metrics("unix:/run/stead-metrics/metrics.sock").unwrap().metrics.unwrap();
        assert_eq!(address.to_string(), "unix:/run/stead-metrics/metrics.sock");
        assert!(metrics("0.0.0.0:9441").unwrap_err()[0].contains("reached from other hosts"));
        let push = "push: {listen: '127.0.0.1:9440', tokenFile: /t}\nmetrics: {listen: '127.0.0.1:9440'}\n";
        assert!(configured(&format!("{LOCAL}{push}")).unwrap_err()[0].contains("pushes are listened for"));
    }

    #[test]
    fn what_is_wrong_with_pushes_is_told_with_all_else_and_where() {
        let errors = configured(
            "sources:\n- {name: Local, folder: {path: /m}}\npush:\n  listen: 0.0.0.0:9440\n  tokenFile: push-token\n",
        )
        .unwrap_err();
        for (error, (place, part)) in errors.iter().zip([
            ("4:", "no source's name"),
            ("7:14", "absolute path"),
            ("6:11", "reached from other hosts"),
        ]) {
            assert!(error.starts_with(place) && error.contains(part), "{error} is not {place} {part}");
        }
        assert_eq!(errors.len(), 3, "{errors:#?}");
        for (push, part) in [
            ("{listen: '127.0.0.1:9440'}", "tokenFile"),
            ("{tokenFile: /t}", "listen"),
            ("{listen: '127.0.0.1:9440', tokenFile: /t, token: x}", "unknown field `token`"),
            ("{listen: 9440, tokenFile: /t}", "expected a text"),
            ("{listen: 'localhost:9440', tokenFile: /t}", "127.0.0.1:PORT"),
        ] {
            let errors = configured(&format!("{LOCAL}push: {push}\n")).unwrap_err();
            assert!(errors[0].starts_with("4:") && errors[0].contains(part), "{push}: {errors:?}");
        }
    }
}
