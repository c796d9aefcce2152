//! What the manifests say, read when somebody tells that they changed and whenever else it has to be known.

use std::sync::Arc;

use super::Engine;
use crate::desired::Desired;
use crate::desired::delta::Delta;
use crate::desired::load::{Reload, look_at};
use crate::desired::sources::Number;
use crate::desired::watch::Change;
use crate::names::VmName;
use crate::reconcile::agenda::{Agenda, News};
use crate::state::GateState;
use crate::time::Now;

impl Engine {
    /// Reads the manifests that changed in one source, and wakes every VM whose declarations did, or that came or went.
    pub(in crate::reconcile) fn take_up(&mut self, source: Number, change: &Change) {
        match self.sources.reload(source, change, self.agenda.desired()) {
            Reload::Nothing => {}
            Reload::Changed(delta) => self.pass_on(|agenda, gates, now| agenda.change(delta, gates, now)),
            Reload::ListAll => {
                let listed = self.sources.list(source);
                self.pass_on(|agenda, gates, now| agenda.list(listed, gates, now));
            }
        }
    }

    /// Takes in what another commit of a git source declares; none is named if it is not another one.
    pub(in crate::reconcile) fn put_in_force(&mut self, source: Number, commit: Option<String>, desired: Desired) {
        if let (Some(commit), Some((name, _))) = (commit, self.shared.stead.git_source(source)) {
            let name = name.clone();
            Arc::make_mut(&mut self.commits).insert(name, commit);
        }
        if let Some(listed) = self.sources.put(source, desired) {
            self.pass_on(|agenda, gates, now| agenda.list(listed, gates, now));
        }
    }

    /// Hands the agenda what was read, and says what is wrong with the manifests that was not before.
    fn pass_on(&mut self, take_in: impl FnOnce(&mut Agenda, &GateState, &Now) -> News) {
        let (gates, now) = (self.gates(), self.stead().host.now());
        let news = take_in(&mut self.agenda, &gates, &now);
        let desired = self.agenda.desired();
        let sources = desired.sources.iter().map(|(name, state)| (name, state.is_complete()));
        self.shared.memory.metrics.manifests(sources, desired.problems.len());
        for problem in &news.problems {
            tracing::warn!("{}", problem.one_line());
        }
        for (source, why) in &news.gaps {
            tracing::warn!(source = %source, "not complete, so nothing of it is pruned: {why}");
        }
    }

    /// Lists everything, when nothing is known to have happened in the folder.
    pub(super) fn list_again(&mut self) {
        let listed = self.sources.load_settled();
        self.pass_on(|agenda, gates, now| agenda.list_again(listed, gates, now));
    }

    /// Waits until no manifest was written within the last moments, and lists them: half a file may be a sound manifest of
    /// another VM, a one-shot pass sees no events that would tell, and who watches has not been told of those before it did.
    pub(in crate::reconcile) async fn settle(&mut self) {
        const MOST_TRIES: usize = 20;
        self.list_whole();
        for _ in 0..MOST_TRIES {
            let Some(wait) = self.sources.settle_for() else { return };
            tokio::time::sleep(wait).await;
            self.list_whole();
        }
    }

    fn list_whole(&mut self) {
        let listed = self.sources.load();
        self.pass_on(|agenda, gates, now| agenda.list(listed, gates, now));
    }

    /// A path in a manifest may lead to another image by now, without any event in the folder.
    pub(super) fn look_at_images(&mut self, name: &VmName) {
        let desired = self.agenda.desired();
        let paths = desired.valid(name).flat_map(|vm| vm.spec.disks.iter().map(|disk| &disk.image));
        let images = look_at(paths).filter(|(path, id)| desired.images.get(path) != id.as_ref()).collect();
        self.agenda.note_images(Delta { images, ..Delta::default() });
    }
}
