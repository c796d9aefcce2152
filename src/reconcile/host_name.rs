//! Whether this host is called as it was.

use std::sync::Arc;

use super::Stead;
use crate::desired::hosts::HostIdentity;
use crate::state::{FORMAT_VERSION, HostState, encode, parse_host};

impl Stead {
    /// The same, which knows whether its host has another name than when a stead acted here last. With `acts`, a name that is
    /// new and that somebody gave it is remembered.
    #[must_use]
    pub fn knowing_its_host(mut self, acts: bool) -> Self {
        let here = &self.settings.host;
        let path = self.layout.host();
        let read = self.host.read_state_file(&path).map_err(|error| error.to_string());
        let remembered = read.and_then(|bytes| {
            let bytes = bytes.as_deref();
            bytes.map(parse_host).transpose().map_err(|flaw| format!("{}: {flaw}; move it away", path.display()))
        });
        let unclear = match &remembered {
            Ok(remembered) => remembered.as_ref().and_then(|remembered| remembered.unclear(here)),
            // A name that somebody gave it needs no memory.
            Err(why) if here.is_configured => {
                tracing::warn!("what this host was called is not known: {why}");
                None
            }
            Err(why) => Some(why.clone()),
        };
        let is_known = remembered.is_ok_and(|remembered| remembered.is_some_and(|known| known.name == here.name));
        if acts && unclear.is_none() && !is_known {
            let state = HostState { version: FORMAT_VERSION, name: here.name.clone() };
            if let Err(error) = self.host.write_durable(&path, &encode(&state)) {
                tracing::warn!("what this host is called is not remembered: writing {}: {error}", path.display());
            }
        }
        self.settings.host = Arc::new(HostIdentity { unclear, ..HostIdentity::clone(here) });
        self
    }
}
