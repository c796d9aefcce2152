//! Freeing what nothing accounts for any more. Each object is looked at again right before, by whoever frees it: the calls
//! of the host refuse what is open or carries another tag.

use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use super::Actor;
use crate::host::devices::{LoopDevice, TapRemoval};
use crate::observed::orphans::{ObjectKind, TaggedObject, held, listens};

/// How long the removal of taps may take.
const TAPS_BOUND: Duration = Duration::from_secs(30);

impl Actor<'_> {
    /// Frees these orphans; what became of each, in this order.
    pub fn collect(&self, orphans: &[TaggedObject], goes_on: &dyn Fn() -> bool) -> Vec<io::Result<()>> {
        let taps: Vec<&TaggedObject> = orphans.iter().filter(|object| object.kind == ObjectKind::Tap).collect();
        let mut of_taps = self.collect_taps(&taps).into_iter();
        let collect = |object: &TaggedObject| match object.kind {
            ObjectKind::Dm | ObjectKind::Loop | ObjectKind::Cgroup | ObjectKind::Socket if !goes_on() => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "freeing another one took too long"))
            }
            ObjectKind::Dm => self.host.remove_dm(&object.name, &object.tag).map(drop),
            ObjectKind::Loop => self.collect_loop(object),
            ObjectKind::Tap => of_taps.next().unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into())),
            ObjectKind::Cgroup => self.host.remove_cgroup(&object.name).map(drop),
            ObjectKind::Socket => self.collect_socket(Path::new(&object.name)),
        };
        orphans.iter().map(collect).collect()
    }

    fn collect_taps(&self, taps: &[&TaggedObject]) -> Vec<io::Result<()>> {
        if taps.is_empty() {
            return Vec::new();
        }
        let removal = |tap: &&TaggedObject| TapRemoval { name: tap.name.clone(), alias: tap.tag.clone() };
        let (tell, told) = mpsc::channel();
        let done = move |results| {
            // Nobody waits any more when it took too long.
            let _ = tell.send(results);
        };
        self.host.remove_taps(taps.iter().map(removal).collect(), Box::new(done));
        let results: Vec<io::Result<bool>> = told.recv_timeout(TAPS_BOUND).unwrap_or_default();
        results.into_iter().map(|result| result.map(drop)).collect()
    }

    fn collect_socket(&self, socket: &Path) -> io::Result<()> {
        match listens(self.host.socket_peer(socket)) {
            Some(why) => Err(io::Error::new(io::ErrorKind::ResourceBusy, why)),
            None => self.host.remove_file(socket, false).map(drop),
        }
    }

    fn collect_loop(&self, object: &TaggedObject) -> io::Result<()> {
        let Some(found) = self.host.loop_device(&object.name)? else { return Ok(()) };
        // Held while it is decided: a start that shares this base takes the same lock before it builds on it.
        let _lock = self.lock_image(found.backing)?;
        let is_it = |found: &LoopDevice| object.tag == loop_key(found) && found.devices_on_top == 0;
        match self.host.loop_device(&object.name)?.filter(is_it) {
            // One that is open would let go only in name.
            Some(found) => match held(self.host, &found.device) {
                Some(why) => Err(io::Error::new(io::ErrorKind::ResourceBusy, why)),
                None => self.host.detach_loop(&found.device, &found.tag).map(drop),
            },
            None => Err(io::Error::new(io::ErrorKind::ResourceBusy, "it is in use again")),
        }
    }
}

/// A loop's tag as a survey has it.
fn loop_key(found: &LoopDevice) -> String {
    crate::observed::orphans::loop_key(&found.tag, found.backing)
}
