//! What is done for the host as a whole, beside the VMs' turns: freeing orphans, emptying the trash.
//!
//! Looking for orphans disturbs nobody and runs beside the turns. Freeing them is done in a moment in which no VM is worked
//! on, which is to hold every VM's lock at once. Such moments come by themselves, and nobody is kept waiting for one, unless
//! a person asked: then no turn begins until those under way have ended.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::collect::{self, Collected};
use super::requests;
use super::worker::{self, Shared};
use crate::control::Reply;
use crate::names::VmName;
use crate::observed::glance::{Glance, Known};
use crate::plan::orphans::{Orphan, OrphanVerdict};
use crate::wakeups::OVERDUE;

/// What is under way for the host as a whole.
#[derive(Default)]
pub(super) struct Upkeep {
    jobs: JoinSet<Ended>,
    under_way: UnderWay,
    /// When what is under way will have taken too long for others to wait for.
    overdue: Option<Instant>,
    /// Whether it has: nobody waits for it any more, and nothing is begun beside it.
    hangs: bool,
    /// The VMs at rest that a glance is made at now, where one is.
    glanced_at: Option<BTreeSet<VmName>>,
    /// The survey that is made once nothing else is under way.
    next_survey: Option<Scope>,
    /// Whether there is something to free.
    is_due: bool,
    asked: Vec<oneshot::Sender<Reply>>,
    /// When an orphan will be old enough.
    next: Option<Instant>,
}

/// What a survey is about.
pub(super) enum Scope {
    /// Orphans alone.
    Orphans,
    /// VMs that are known, and orphans if a glance at them shows that there are any.
    Glance(Vec<Known>),
}

/// Both read and write what is known of the orphans, so that one is done at a time.
#[derive(Default, PartialEq, Eq)]
enum UnderWay {
    #[default]
    Nothing,
    Survey,
    Freeing,
}

/// A job that has ended.
pub(super) enum Ended {
    Surveyed(Surveyed),
    Freed(io::Result<Vec<Collected>>),
    /// None of them: whoever asked for something has gone away.
    GaveUp,
}

/// What a survey came to.
pub(super) struct Surveyed {
    glance: Option<Glanced>,
    orphans: io::Result<Vec<Orphan>>,
}

/// How long a glance took, and which VMs are not as they were known to be.
pub(super) type Glanced = (Duration, BTreeSet<VmName>);

/// What the engine is to know of a job that has ended.
#[derive(Default)]
pub(super) struct News {
    /// Objects that were freed.
    pub(super) freed: usize,
    /// What a glance at the VMs found.
    pub(super) glance: Option<Glanced>,
}

impl Scope {
    /// The VMs that nobody looks at if the glance at them is not made.
    fn compared(&self) -> Option<BTreeSet<VmName>> {
        match self {
            Self::Orphans => None,
            Self::Glance(known) => Some(compared(known)),
        }
    }
}

impl UnderWay {
    /// What hangs, when it does.
    fn what_hangs(&self) -> &'static str {
        match self {
            Self::Nothing | Self::Survey => "a call that looks for orphans or empties the trash",
            Self::Freeing => "a call that frees an orphan",
        }
    }
}

impl Upkeep {
    /// Looks for what has changed by itself, and empties the trash of what is past its time. Where that has to wait for what
    /// hangs, no glance is made: each VM that it would have compared is to be looked at instead.
    pub(super) fn survey(&mut self, shared: &Arc<Shared>, scope: Scope) -> Option<Glanced> {
        if self.hangs
            && let Some(compared) = scope.compared()
        {
            return Some((Duration::ZERO, compared));
        }
        if self.under_way != UnderWay::Nothing {
            // One that glances looks for orphans too.
            if self.next_survey.is_none() || matches!(scope, Scope::Glance(_)) {
                self.next_survey = Some(scope);
            }
            return None;
        }
        self.under_way = UnderWay::Survey;
        self.overdue = Some(Instant::now() + OVERDUE);
        self.glanced_at = scope.compared();
        self.next = None;
        let (shared, host) = (Arc::clone(shared), &*shared.stead.host);
        worker::begin(&mut self.jobs, host, move || {
            collect::empty_trash(&shared.stead, &shared.memory);
            shared.memory.record_what_is_over(&shared.stead);
            Ended::Surveyed(match scope {
                Scope::Glance(known) => glance(&shared, &known),
                Scope::Orphans => Surveyed { glance: None, orphans: collect::survey(&shared.stead, &shared.memory) },
            })
        });
        None
    }

    /// Frees what is due, because somebody asked for it.
    pub(super) fn ask(&mut self, reply: oneshot::Sender<Reply>) {
        self.asked.push(reply);
        if self.hangs {
            return self.refuse_for_what_hangs();
        }
        self.is_due = true;
    }

    fn refuse_for_what_hangs(&mut self) {
        self.refuse(&format!("{} hangs; ask again when that is over", self.under_way.what_hangs()));
    }

    /// Whether turns may begin now; begins to free what is due if nobody works.
    pub(super) fn lets_turns_begin(&mut self, working: usize, shared: &Arc<Shared>) -> bool {
        if self.under_way == UnderWay::Freeing {
            return self.hangs;
        }
        if self.is_due && working == 0 && self.under_way == UnderWay::Nothing {
            self.is_due = false;
            self.under_way = UnderWay::Freeing;
            self.overdue = Some(Instant::now() + OVERDUE);
            let (shared, host) = (Arc::clone(shared), &*shared.stead.host);
            let free = move || Ended::Freed(collect::collect(&shared.stead, &shared.memory));
            worker::begin(&mut self.jobs, host, free);
            return false;
        }
        // Whoever asked waits for a survey in any case, which turns do not disturb.
        self.asked.is_empty() || self.under_way == UnderWay::Survey
    }

    /// When something is to be done next, whatever happens.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        [self.next, self.overdue].into_iter().flatten().min()
    }

    /// Tells whoever asked that it cannot be done now.
    pub(super) fn refuse(&mut self, why: &str) {
        self.answer(&requests::refused(why));
    }

    /// Begins what has come due, and lets nobody wait any longer for what hangs: a glance that does gives every VM at rest.
    pub(super) fn promote(&mut self, shared: &Arc<Shared>) -> Option<Glanced> {
        if self.next.is_some_and(|next| next <= Instant::now()) {
            // Also while one is under way: a deadline that stayed past would wake the loop again and again.
            self.next = None;
            self.survey(shared, Scope::Orphans);
        }
        if self.overdue.is_none_or(|overdue| overdue > Instant::now()) {
            return None;
        }
        self.overdue = None;
        self.hangs = true;
        if self.under_way == UnderWay::Freeing {
            // What it is freeing in this moment is the last, and the VMs that this is of are left alone until it is done.
            shared.memory.freeing.abandon();
        }
        tracing::warn!("{} has hung for {OVERDUE:?}; the VMs go on without it", self.under_way.what_hangs());
        self.refuse_for_what_hangs();
        let waiting = self.next_survey.take_if(|scope| matches!(scope, Scope::Glance(_)));
        // The one that waits is of a later pass, and knows better whom nobody else looks at.
        let compared = waiting.and_then(|scope| scope.compared()).or(self.glanced_at.take());
        Some((OVERDUE, compared?))
    }

    /// Whether a one-shot pass has to wait for it.
    pub(super) fn is_busy(&self) -> bool {
        !self.jobs.is_empty() || self.is_due
    }

    /// Begins nothing more: the time ran out.
    pub(super) fn stop(&mut self) {
        self.is_due = false;
        self.next_survey = None;
        self.next = None;
        self.overdue = None;
    }

    /// The next job that ends. May be dropped and called again without losing anything.
    pub(super) async fn ended(&mut self) -> Result<Ended, JoinError> {
        let Self { jobs, asked, .. } = self;
        tokio::select! {
            biased;
            // An empty set of jobs gives `None` at once, which disables its branch.
            Some(ended) = jobs.join_next() => ended,
            () = one_gives_up(asked.iter_mut()) => Ok(Ended::GaveUp),
        }
    }

    /// Takes in what a job came to.
    pub(super) fn take_in(&mut self, ended: Ended, shared: &Arc<Shared>) -> News {
        let news = match ended {
            Ended::GaveUp => {
                // What is to be freed stays so, but no turn is kept waiting for it any more.
                self.asked.retain(|reply| !reply.is_closed());
                return News::default();
            }
            Ended::Surveyed(Surveyed { glance, orphans }) => {
                // Of one that hung, nobody waits for what it saw: the VMs were looked at since.
                let glance = glance.filter(|_| !self.hangs);
                self.has_ended();
                self.take_in_survey(orphans, shared);
                News { freed: 0, glance }
            }
            Ended::Freed(collected) => {
                self.has_ended();
                News { freed: self.take_in_freed(collected, shared), glance: None }
            }
        };
        if let Some(scope) = self.next_survey.take() {
            self.survey(shared, scope);
        }
        news
    }

    fn has_ended(&mut self) {
        self.under_way = UnderWay::Nothing;
        self.overdue = None;
        self.glanced_at = None;
        if std::mem::take(&mut self.hangs) {
            tracing::info!("the call that hung has returned");
        }
    }

    fn take_in_survey(&mut self, orphans: io::Result<Vec<Orphan>>, shared: &Arc<Shared>) {
        let orphans = match orphans {
            Ok(orphans) => orphans,
            Err(error) => return tracing::warn!("looking for orphans: {error}"),
        };
        shared.memory.metrics.orphans(orphans.len());
        if orphans.iter().any(|orphan| orphan.verdict == OrphanVerdict::Free) {
            self.is_due = true;
        }
        self.plan_next(orphans.iter(), shared);
    }

    fn take_in_freed(&mut self, collected: io::Result<Vec<Collected>>, shared: &Arc<Shared>) -> usize {
        let collected = match collected {
            Ok(collected) => collected,
            Err(error) => {
                tracing::warn!("freeing orphans: {error}");
                self.answer(&Reply::Refused { message: format!("looking for orphans: {error}"), hint: None });
                return 0;
            }
        };
        collect::log(&collected);
        self.plan_next(collected.iter().map(|collected| &collected.orphan), shared);
        self.answer(&collect::reply(&collected, &shared.stead.host.now()));
        let freed = collected.iter().filter(|collected| matches!(collected.freed, Some(Ok(())))).count();
        let unfreed = collected.iter().filter(|collected| matches!(collected.freed, Some(Err(_)))).count();
        shared.memory.metrics.collected(freed, unfreed);
        shared.memory.metrics.orphans(collected.len() - freed);
        freed
    }

    fn answer(&mut self, reply: &Reply) {
        for asked in self.asked.drain(..) {
            // Whoever asked may have gone away.
            let _ = asked.send(reply.clone());
        }
    }

    fn plan_next<'a>(&mut self, orphans: impl Iterator<Item = &'a Orphan>, shared: &Arc<Shared>) {
        let now = shared.stead.host.now();
        let ripe = orphans.filter_map(|orphan| match &orphan.verdict {
            OrphanVerdict::Wait(until) => now.until(until),
            OrphanVerdict::Free | OrphanVerdict::Held(_) => None,
        });
        self.next = ripe.min().map(|wait| Instant::now() + wait);
    }
}

/// A glance at these VMs, and a search for orphans if it shows that there are any.
fn glance(shared: &Shared, known: &[Known]) -> Surveyed {
    let began = Instant::now();
    let glance = shared.looker().glance(known, shared.stead.settings.log_limit);
    let took = began.elapsed();
    let glance = glance.unwrap_or_else(|error| {
        tracing::warn!("a glance at the host: {error}; each VM is looked at instead");
        Glance { changed: compared(known), has_unaccounted: true }
    });
    let orphans = if glance.has_unaccounted {
        collect::survey(&shared.stead, &shared.memory)
    } else {
        collect::remember(&shared.stead, &[]).map(|()| Vec::new())
    };
    Surveyed { glance: Some((took, glance.changed)), orphans }
}

fn compared(known: &[Known]) -> BTreeSet<VmName> {
    known.iter().filter(|known| known.is_compared).map(|known| known.name.clone()).collect()
}

/// Comes when one of those who wait for a reply has gone away; never while none has.
pub(super) async fn one_gives_up<'a>(asked: impl Iterator<Item = &'a mut oneshot::Sender<Reply>>) {
    let mut asked: Vec<_> = asked.collect();
    std::future::poll_fn(|context| {
        // Each is asked, so that each wakes this.
        let gone = asked.iter_mut().filter_map(|reply| reply.poll_closed(context).is_ready().then_some(())).count();
        if gone > 0 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
