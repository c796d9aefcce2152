//! When each git source is asked, who waits for that, and what came of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::worker::begin;
use super::{Stead, jittered, requests};
use crate::audit::{self, Entry, Outcome};
use crate::config::SourceKind;
use crate::control::{Reply, Request};
use crate::desired::sources::Number;
use crate::desired::{Desired, SourceName};
use crate::metrics::Metrics;
use crate::reasons::Reason;
use crate::state::AppliedCommit;
use crate::status::EventType;
use crate::sync::{SyncError, Synced, Taken};

/// What is under way, and what comes next.
pub(super) struct Syncs {
    stead: Stead,
    /// When each is asked next; not those that are being asked.
    next: BTreeMap<Number, Instant>,
    /// Who waits to hear how the next sync goes.
    asked: BTreeMap<Number, Vec<oneshot::Sender<Reply>>>,
    /// Who waits to hear how the one under way goes: it began after they asked.
    heard: BTreeMap<Number, Vec<oneshot::Sender<Reply>>>,
    /// What is to be done with each when the job under way has ended: both would read and write what is remembered of it.
    queued: BTreeMap<Number, VecDeque<(Request, oneshot::Sender<Reply>)>>,
    /// Those of which what is in force was read whole.
    whole: BTreeSet<Number>,
    /// Those that are to be asked once more when the sync under way has ended: whoever asks wants to know what is there now.
    again: BTreeSet<Number>,
    /// Those whose repository is to be tidied up when nobody waits for anything else of them.
    untidy: BTreeSet<Number>,
    /// What was said of each the last time that it failed, so that it is said once.
    said: BTreeMap<Number, String>,
    audit: audit::Writer,
    metrics: Arc<Metrics>,
    jobs: JoinSet<Ended>,
    working: BTreeSet<Number>,
}

/// How a job ended.
pub(super) struct Ended {
    pub(super) source: Number,
    /// What the source declares now, if that may be something else than before.
    pub(super) desired: Option<Desired>,
    /// The commit that this is of, if it is another one.
    pub(super) commit: Option<String>,
    /// What came of it, for people.
    told: Result<String, String>,
    /// Who asked for just this.
    reply: Option<oneshot::Sender<Reply>>,
    job: Job,
    /// How long it took.
    took: Duration,
    /// Whether it failed as it had before, also for a stead that has ended since.
    is_known: bool,
    /// Whether another commit is in force.
    is_news: bool,
    /// Whether something came that is to be tidied up after.
    is_untidy: bool,
}

/// What a job was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    /// A sync, for which many may wait.
    Sync,
    /// Going back, or forward again.
    RollBack,
    /// Tidying up, for which nobody waits.
    Tidy,
}

impl Syncs {
    /// Those of a stead that has just begun: all are due.
    pub(super) fn new(stead: &Stead, metrics: Arc<Metrics>) -> Self {
        let is_git = |kind: &SourceKind| matches!(kind, SourceKind::Git(_));
        let sources = stead.settings.sources.iter().enumerate().filter(|(_, source)| is_git(&source.kind));
        Self {
            next: sources.map(|(number, _)| (number, Instant::now())).collect(),
            stead: stead.clone(),
            asked: BTreeMap::new(),
            heard: BTreeMap::new(),
            queued: BTreeMap::new(),
            whole: BTreeSet::new(),
            again: BTreeSet::new(),
            untidy: BTreeSet::new(),
            said: BTreeMap::new(),
            audit: audit::Writer::default(),
            metrics,
            jobs: JoinSet::new(),
            working: BTreeSet::new(),
        }
    }

    /// Asks all of them as soon as can be.
    pub(super) fn hurry(&mut self) {
        self.hasten_those(|_| true);
    }

    /// Asks those of these names as soon as can be.
    pub(super) fn hasten_named(&mut self, names: &BTreeSet<SourceName>) {
        self.hasten_those(|name| names.contains(name));
    }

    fn hasten_those(&mut self, is_meant: impl Fn(&SourceName) -> bool) {
        for number in 0..self.stead.settings.sources.len() {
            if self.stead.git_source(number).is_some_and(|(name, _)| is_meant(name)) {
                self.hasten(number);
            }
        }
    }

    /// Asks one as soon as can be.
    fn hasten(&mut self, number: Number) {
        if self.working.contains(&number) {
            // The job that is under way may have asked the server before what is to be seen was there.
            self.again.insert(number);
        } else {
            self.next.insert(number, Instant::now());
        }
    }

    /// Begins with those that are due.
    pub(super) fn begin_due(&mut self) {
        let now = Instant::now();
        let is_due = |(number, next): &(&Number, &Instant)| **next <= now && !self.working.contains(number);
        let due: Vec<Number> = self.next.iter().filter(is_due).map(|(number, _)| *number).collect();
        for number in due {
            self.next.remove(&number);
            self.working.insert(number);
            self.heard.entry(number).or_default().extend(self.asked.remove(&number).into_iter().flatten());
            let (stead, is_whole) = (self.stead.clone(), self.whole.contains(&number));
            begin(&mut self.jobs, &*self.stead.host, move || sync(&stead, number, is_whole));
        }
    }

    /// When the next is due, if none ends before.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let free = self.next.iter().filter(|(number, _)| !self.working.contains(number));
        free.map(|(_, next)| *next).min()
    }

    /// The next job that ends; `None` when none is under way. May be dropped and called again.
    pub(super) async fn ended(&mut self) -> Option<Result<Ended, JoinError>> {
        self.jobs.join_next().await
    }

    /// Takes in that a job has ended, and tells of it. Gives why it failed, if it did.
    pub(super) fn take_in(&mut self, ended: &mut Ended, seed: u64) -> Option<String> {
        let name = self.stead.settings.sources.get(ended.source)?.name.to_string();
        let reply = || answer(&name, &ended.told);
        if let Some(asker) = ended.reply.take() {
            // Whoever asked may have gone away.
            let _ = asker.send(reply());
        }
        self.working.remove(&ended.source);
        match ended.desired.as_ref().map(Desired::is_complete) {
            Some(true) => drop(self.whole.insert(ended.source)),
            Some(false) => drop(self.whole.remove(&ended.source)),
            None => {}
        }
        if ended.is_untidy {
            self.untidy.insert(ended.source);
        }
        let waits = self.again.remove(&ended.source);
        let is_due = waits || self.next.get(&ended.source).is_some_and(|next| *next <= Instant::now());
        self.go_on(ended.source, is_due);
        if ended.job == Job::Sync {
            let interval = self.stead.git_source(ended.source).map(|(_, git)| git.interval).unwrap_or_default();
            let wait = if waits { Duration::ZERO } else { jittered(interval, seed) };
            self.next.insert(ended.source, Instant::now() + wait);
            // Whatever else is asked for since: somebody may ask all the time.
            for asker in self.heard.remove(&ended.source).unwrap_or_default() {
                let _ = asker.send(reply());
            }
        } else if waits {
            self.next.insert(ended.source, Instant::now());
        }
        if ended.job == Job::Tidy {
            return None;
        }
        if !record(&self.stead, &self.audit, ended) {
            self.metrics.audit_lost();
        }
        if let (Job::Sync, Some((name, _))) = (ended.job, self.stead.git_source(ended.source)) {
            self.metrics.synced(name, ended.told.is_ok(), self.stead.host.now().wall);
        }
        match &ended.told {
            Ok(what) if ended.is_news => tracing::info!(source = name, "{what}"),
            Ok(_) => {}
            Err(why) if self.said.get(&ended.source) == Some(why) => {}
            Err(why) => tracing::warn!(source = name, "what was in force stays in force: {why}"),
        }
        let failure = ended.told.as_ref().err().cloned();
        match &failure {
            Some(why) => self.said.insert(ended.source, why.clone()),
            None => self.said.remove(&ended.source),
        };
        failure
    }

    /// Takes in what somebody asks for about sources.
    pub(super) fn ask(&mut self, request: Request, reply: oneshot::Sender<Reply>) {
        let number = match named(&self.stead, &request) {
            Ok(number) => number,
            Err(refusal) => {
                let _ = reply.send(refusal);
                return;
            }
        };
        if matches!(request, Request::Sync { .. }) {
            self.hasten(number);
            self.asked.entry(number).or_default().push(reply);
            return;
        }
        if self.working.contains(&number) {
            self.queued.entry(number).or_default().push_back((request, reply));
        } else {
            self.begin_roll_back(number, request, reply);
        }
    }

    /// Begins with what is to be done with a source whose job has ended, unless it `is_due` to be asked.
    fn go_on(&mut self, number: Number, is_due: bool) {
        if let Some((request, reply)) = self.queued.get_mut(&number).and_then(VecDeque::pop_front) {
            self.begin_roll_back(number, request, reply);
        } else if !is_due && self.untidy.remove(&number) {
            self.working.insert(number);
            let stead = self.stead.clone();
            begin(&mut self.jobs, &*self.stead.host, move || tidy(&stead, number));
        }
    }

    fn begin_roll_back(&mut self, number: Number, request: Request, reply: oneshot::Sender<Reply>) {
        self.working.insert(number);
        let stead = self.stead.clone();
        let job = move || Ended { reply: Some(reply), ..roll_back(&stead, number, &request) };
        begin(&mut self.jobs, &*self.stead.host, job);
    }
}

/// Carries out what somebody asks for about a source, where no stead runs.
pub(super) fn carry_out(stead: &Stead, request: &Request) -> Reply {
    let number = match named(stead, request) {
        Ok(number) => number,
        Err(refusal) => return refusal,
    };
    let ended = match request {
        Request::Sync { .. } => sync(stead, number, true),
        _ => roll_back(stead, number, request),
    };
    record(stead, &audit::Writer::default(), &ended);
    if ended.is_untidy {
        tidy(stead, number);
    }
    answer(&stead.settings.sources[number].name.0, &ended.told)
}

/// Writes down what came of a job, if that is news; false where that failed.
fn record(stead: &Stead, audit: &audit::Writer, ended: &Ended) -> bool {
    let action = match ended.job {
        Job::Sync => "sync",
        Job::RollBack => "rollback",
        Job::Tidy => return true,
    };
    let (kind, reason, message, outcome) = match &ended.told {
        Ok(what) if ended.is_news => (EventType::Normal, Reason::Synced, what, Outcome::Done),
        Err(why) if !ended.is_known => (EventType::Warning, Reason::SyncFailed, why, Outcome::Failed),
        Ok(_) | Err(_) => return true,
    };
    let Some((name, _)) = stead.git_source(ended.source) else { return true };
    let source = audit::Source { name: name.clone(), path: None, line: None, commit: ended.commit.clone() };
    let entry = Entry::new(stead.host.now().wall, kind, reason, message).with_action(action, outcome, ended.took);
    audit.write(&*stead.host, &stead.layout, &Entry { source: Some(source), ..entry })
}

/// The git source that a request is about.
fn named(stead: &Stead, request: &Request) -> Result<Number, Reply> {
    let (Request::Sync { source } | Request::RollBack { source, .. }) = request else {
        return Err(requests::refused("this request is about no source"));
    };
    let position = stead.settings.sources.iter().position(|known| known.name.0 == *source);
    match position.and_then(|number| Some((number, stead.git_source(number)?))) {
        Some((number, _)) => Ok(number),
        None => Err(requests::refused(format!("there is no git source named {source:?}; `stead sources` lists them"))),
    }
}

fn answer(source: &str, told: &Result<String, String>) -> Reply {
    match told {
        Ok(what) => requests::accepted(format!("{source}: {what}")),
        Err(why) => Reply::Refused {
            message: format!("{source}: {why}"),
            hint: Some(format!("`stead sources {source}` tells what is in force, and why it is not followed")),
        },
    }
}

/// Follows a source. Unless what is in force of it `is_whole`, it is read again also if nothing is new: what kept it from being
/// read may be over, and a repository that cannot be read is fetched anew.
fn sync(stead: &Stead, source: Number, is_whole: bool) -> Ended {
    let Some(syncer) = stead.syncer(source) else { return ended(source, Job::Sync, no_source()) };
    let began = Instant::now();
    let failed_before = syncer.record().ok().and_then(|record| record.failure);
    let (mut came_of_it, mut read) = (syncer.sync(), None);
    if matches!(came_of_it, Ok(Synced::UpToDate)) && !is_whole {
        came_of_it = match syncer.read_in_force() {
            Ok(desired) => {
                let gap = syncer.note_gap(&desired);
                read = Some(desired);
                gap.and_then(|gap| gap.map_or(Ok(Synced::UpToDate), Err))
            }
            Err(why) => syncer.renew_once(why).and_then(|()| syncer.sync()),
        };
    }
    let in_force = || read.unwrap_or_else(|| syncer.in_force());
    let is_news = matches!(came_of_it, Ok(Synced::Applied(_)));
    let is_untidy = is_news || came_of_it.as_ref().is_err_and(SyncError::is_of_commit);
    let mut commit_in_force = None;
    let (told, desired) = match came_of_it {
        Ok(Synced::UpToDate) => (Ok("up to date".to_owned()), (!is_whole).then(in_force)),
        Ok(Synced::Held(why)) => (Ok(why.to_owned()), (!is_whole).then(in_force)),
        Ok(Synced::Applied(taken)) => {
            let Taken { commit, desired } = *taken;
            commit_in_force = Some(commit.commit.clone());
            (Ok(format!("applied {:.12} by {}: {}", commit.commit, commit.author, commit.subject)), Some(desired))
        }
        // One that was never synced says why.
        Err(error) => (Err(error.one_line()), Some(in_force())),
    };
    let is_known = failed_before.is_some_and(|failure| Some(&failure.message) == told.as_ref().err());
    let (commit, took) = (commit_in_force, began.elapsed());
    Ended { desired, commit, took, is_known, is_news, is_untidy, ..ended(source, Job::Sync, told) }
}

/// Tidies up the repository of a source.
fn tidy(stead: &Stead, source: Number) -> Ended {
    if let Some(syncer) = stead.syncer(source) {
        syncer.tidy();
    }
    ended(source, Job::Tidy, Ok(String::new()))
}

fn roll_back(stead: &Stead, source: Number, request: &Request) -> Ended {
    let (Some(syncer), Request::RollBack { commit, release, .. }) = (stead.syncer(source), request) else {
        return ended(source, Job::RollBack, no_source());
    };
    let began = Instant::now();
    let done = if *release {
        let what = |was_pinned| {
            if was_pinned { "it is followed again, from the next sync on" } else { "it is followed already" }
        };
        syncer.release().map(|was_pinned| (what(was_pinned).to_owned(), None))
    } else {
        syncer.roll_back(commit.as_deref()).map(|Taken { commit, desired }| {
            let AppliedCommit { commit, author, subject, .. } = commit;
            let told = format!("{commit:.12} by {author} is in force, until `stead rollback --release`: {subject}");
            (told, Some((commit, desired)))
        })
    };
    match done {
        Ok((told, in_force)) => {
            let (commit, desired) = in_force.unzip();
            Ended { desired, commit, took: began.elapsed(), is_news: true, ..ended(source, Job::RollBack, Ok(told)) }
        }
        Err(error) => Ended { took: began.elapsed(), ..ended(source, Job::RollBack, Err(error.one_line())) },
    }
}

/// A job after which all is as it was.
fn ended(source: Number, job: Job, told: Result<String, String>) -> Ended {
    let (took, is_known, is_news, is_untidy) = (Duration::ZERO, false, false, false);
    Ended { source, desired: None, commit: None, told, reply: None, job, took, is_known, is_news, is_untidy }
}

fn no_source() -> Result<String, String> {
    Err("it is no git source".to_owned())
}
