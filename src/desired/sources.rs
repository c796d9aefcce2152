//! All sources of manifests: each is read and watched by itself, and together they are what should exist.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::hosts::HostIdentity;
use super::load::{Loader, Reload, look_at};
use super::watch::{Change, Watch};
use super::{Desired, SourceName};

/// Every source, as it was read last.
#[derive(Default)]
pub struct Sources(Vec<Source>);

/// What one source is read from.
pub enum Content {
    /// A folder, which need not exist.
    Folder(SourceName, PathBuf),
    /// What it declares, until something else is [`put`](Sources::put) in its place.
    Fixed(Desired),
}

enum Source {
    Folder {
        loader: Box<Loader>,
        /// Who tells of its changes; a one-shot pass has nobody.
        watch: Option<Watch>,
    },
    Fixed(Desired),
}

/// Tells of what happens in any of the folders. Each clone tells of the same.
#[derive(Clone)]
pub struct Watches(Vec<(Number, Watch)>);

/// Which of the sources, in the order in which they were given.
pub type Number = usize;

impl Sources {
    /// These, in their order, for this host.
    pub fn new(contents: impl IntoIterator<Item = Content>, here: &Arc<HostIdentity>) -> Self {
        let source = |content| match content {
            Content::Folder(name, folder) => {
                let loader = Loader::new(name, folder, Some(Arc::clone(here)));
                Source::Folder { loader: Box::new(loader), watch: None }
            }
            Content::Fixed(desired) => Source::Fixed(desired),
        };
        Self(contents.into_iter().map(source).collect())
    }

    /// Watches the folders from now on: what changes after this is told, so it comes before the first reading.
    pub fn watch(&mut self) -> Watches {
        let watch = |(number, source): (Number, &mut Source)| match source {
            Source::Folder { loader, watch } => {
                Some((number, watch.get_or_insert_with(|| Watch::start(loader.root().to_owned())).clone()))
            }
            Source::Fixed(_) => None,
        };
        Watches(self.0.iter_mut().enumerate().filter_map(watch).collect())
    }

    /// Lists all of them, and reads what changed. What somebody is writing says what it said before.
    pub fn load(&mut self) -> Desired {
        all(self.0.iter_mut().map(Source::load))
    }

    /// The same, and leaves alone also what was written a moment ago, which is looked at again when it is quiet.
    pub fn load_settled(&mut self) -> Desired {
        all(self.0.iter_mut().map(Source::load_settled))
    }

    /// Takes in what happened in one of them. `before` is what all of them said last.
    pub fn reload(&mut self, number: Number, change: &Change, before: &Desired) -> Reload {
        if change.everything {
            return Reload::ListAll;
        }
        let Some(Source::Folder { loader, watch }) = self.0.get_mut(number) else { return Reload::Nothing };
        let mut reload = loader.reload(&change.files, &unsettled(watch.as_ref()), before);
        if let Reload::Changed(delta) = &mut reload {
            // An image that nobody names any more here may be named there.
            let others = || self.0.iter().enumerate().filter(|(other, _)| *other != number);
            delta.images.retain(|path, id| id.is_some() || !others().any(|(_, other)| other.names_image(path)));
        }
        reload
    }

    /// Lists one of them, of which it is not known what changed; what the others said stays.
    pub fn list(&mut self, number: Number) -> Desired {
        let read = |(index, source): (Number, &mut Source)| {
            if index != number {
                return source.as_read();
            }
            source.cover();
            source.load_settled()
        };
        all(self.0.iter_mut().enumerate().map(read))
    }

    /// Puts what another commit says in the place of what one of them declared, unless that cannot be read whole and what was
    /// could. Gives what all of them say, if that is something else.
    pub fn put(&mut self, number: Number, desired: Desired) -> Option<Desired> {
        let Some(Source::Fixed(before)) = self.0.get_mut(number) else { return None };
        if *before == desired || (before.is_complete() && !desired.is_complete()) {
            return None;
        }
        *before = desired;
        Some(all(self.0.iter().map(Source::as_read)))
    }

    /// Sees to it that every folder that there is now is watched. To be called before everything is listed.
    pub fn cover(&self) {
        self.0.iter().for_each(Source::cover);
    }

    /// Sees to it that the folders which are watched are those at their paths.
    pub fn rearm_if_replaced(&self) {
        for source in &self.0 {
            if let Source::Folder { watch: Some(watch), .. } = source {
                watch.rearm_if_replaced();
            }
        }
    }

    /// How long until no file that was listed last was written within the last moments; `None` when that is so now.
    pub fn settle_for(&self) -> Option<Duration> {
        let wait = |source: &Source| match source {
            Source::Folder { loader, .. } => loader.settle_for(),
            Source::Fixed(_) => None,
        };
        self.0.iter().filter_map(wait).max()
    }
}

fn all(each: impl Iterator<Item = Desired>) -> Desired {
    each.reduce(Desired::and).unwrap_or_default()
}

/// Files that somebody is writing.
fn unsettled(watch: Option<&Watch>) -> BTreeSet<PathBuf> {
    watch.map(Watch::unsettled).unwrap_or_default()
}

impl Source {
    fn load(&mut self) -> Desired {
        match self {
            Self::Folder { loader, watch } => loader.load(&unsettled(watch.as_ref())),
            Self::Fixed(_) => self.as_read(),
        }
    }

    fn load_settled(&mut self) -> Desired {
        let Self::Folder { loader, watch } = self else { return self.as_read() };
        let listed = loader.load_settled(&unsettled(watch.as_ref()));
        if let Some(watch) = watch {
            watch.look_again(loader.young());
        }
        listed
    }

    fn as_read(&self) -> Desired {
        match self {
            Self::Folder { loader, .. } => loader.as_read(),
            // A path may lead to another image by now.
            Self::Fixed(desired) => {
                let names: Vec<PathBuf> = desired.valid_images().cloned().collect();
                let images = look_at(names.iter()).filter_map(|(path, id)| Some((path, id?))).collect();
                Desired { images, ..desired.clone() }
            }
        }
    }

    fn names_image(&self, image: &Path) -> bool {
        match self {
            Self::Folder { loader, .. } => loader.names_image(image),
            Self::Fixed(desired) => desired.valid_images().any(|named| named == image),
        }
    }

    fn cover(&self) {
        if let Self::Folder { watch: Some(watch), .. } = self {
            watch.cover();
        }
    }
}

impl Watches {
    /// Resolves when something changed, and says in which source. May be dropped and called again without losing anything.
    pub async fn next(&self) -> (Number, Change) {
        let mut waiting: Vec<_> = self.0.iter().map(|(number, watch)| (*number, Box::pin(watch.next()))).collect();
        poll_fn(|context| {
            let ready = waiting.iter_mut().find_map(|(number, next)| match next.as_mut().poll(context) {
                Poll::Ready(change) => Some((*number, change)),
                Poll::Pending => None,
            });
            ready.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}
