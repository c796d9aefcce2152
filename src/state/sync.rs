//! STATE/sources/NAME/sync.json: which commit of a git source is in force, and how the last attempt to follow it went.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Earlier commits that are remembered, to go back to.
pub const HISTORY_MAX: usize = 20;

/// What is remembered of one git source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncState {
    /// [`super::FORMAT_VERSION`] of the writer.
    #[serde(deserialize_with = "super::known_version")]
    pub version: u32,
    /// The commit whose manifests are in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<AppliedCommit>,
    /// Commits that were in force before, the last one first.
    #[serde(default)]
    pub history: Vec<AppliedCommit>,
    /// Whether a person went back to `applied`: the repository is not followed until that is released.
    #[serde(default)]
    pub pinned: bool,
    /// When the repository was asked for the last time that anything came of it: that nothing is new is worth no write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried_at: Option<Timestamp>,
    /// Why it could not be followed then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<SyncFailure>,
}

/// A commit that was put in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedCommit {
    /// Its whole id.
    pub commit: String,
    /// Who wrote it: `Name <address>`.
    pub author: String,
    /// The first line of its message.
    pub subject: String,
    /// When it was made, as its maker says.
    pub committed_at: String,
    /// The folder of the repository whose manifests are in force.
    #[serde(default)]
    pub path: PathBuf,
    /// When it was put in force here.
    pub applied_at: Timestamp,
}

/// Why a repository could not be followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncFailure {
    /// In one word, for programs.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Since when it is so.
    pub since: Timestamp,
}

impl SyncState {
    /// Puts a commit in force.
    pub fn apply(&mut self, commit: AppliedCommit) {
        if let Some(before) = self.applied.replace(commit) {
            let now = self.applied.as_ref().map(|applied| applied.commit.clone());
            self.history.retain(|known| known.commit != before.commit && Some(&known.commit) != now.as_ref());
            if Some(&before.commit) != now.as_ref() {
                self.history.insert(0, before);
            }
            self.history.truncate(HISTORY_MAX);
        }
    }

    /// Notes that it could not be followed. A failure that goes on keeps the moment since which it does.
    pub fn fail(&mut self, reason: &str, message: String, now: Timestamp) {
        let goes_on = self.failure.as_ref().filter(|failure| failure.reason == reason);
        let since = goes_on.map_or(now, |failure| failure.since);
        self.failure = Some(SyncFailure { reason: reason.to_owned(), message, since });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(number: u32) -> AppliedCommit {
        let text = String::new;
        AppliedCommit {
            commit: format!("{number:040x}"),
            author: text(),
            subject: text(),
            committed_at: text(),
            path: PathBuf::new(),
            applied_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn what_was_in_force_is_remembered_once_and_not_for_ever() {
        let mut state = SyncState::default();
        for number in 0..30 {
            state.apply(commit(number));
        }
        assert_eq!(state.applied, Some(commit(29)));
        assert_eq!((state.history.len(), &state.history[0]), (HISTORY_MAX, &commit(28)));
        // Back, and there again.
        state.apply(commit(28));
        assert_eq!((&state.history[0], &state.history[1]), (&commit(29), &commit(27)));
        state.apply(commit(28));
        assert_eq!((&state.history[0], &state.history[1]), (&commit(29), &commit(27)));
    }

    #[test]
    fn a_failure_that_goes_on_keeps_its_beginning() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut state = SyncState::default();
        state.fail("FetchFailed", "no route".into(), at(1));
        state.fail("FetchFailed", "no name".into(), at(2));
        assert_eq!(state.failure.as_ref().map(|failure| failure.since), Some(at(1)));
        state.fail("TimedOut", "60s".into(), at(3));
        assert_eq!(state.failure.as_ref().map(|failure| failure.since), Some(at(3)));
    }
}
