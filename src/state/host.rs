//! STATE/host.json: what this host was called when a stead last acted here.

use serde::{Deserialize, Serialize};

use crate::desired::hosts::HostIdentity;

/// What is remembered of the host itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// [`super::FORMAT_VERSION`] of the writer.
    #[serde(deserialize_with = "super::known_version")]
    pub version: u32,
    /// Its name.
    pub name: String,
}

impl HostState {
    /// Why it cannot be told which VMs are for this host, if its name is another than it was and nobody said that it should be:
    /// those of the old name would be deleted, and a name changes by many accidents.
    pub fn unclear(&self, here: &HostIdentity) -> Option<String> {
        let is_meant = here.is_configured || self.name == here.name;
        (!is_meant).then(|| {
            format!(
                "this host was called {} and is called {} now; say in the configuration which is right, as `host: {{name: {}}}`",
                self.name, here.name, here.name
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::hosts::Labels;

    #[test]
    fn a_name_that_changed_by_itself_is_no_reason_to_delete_anything() {
        let remembered = HostState { version: 1, name: "a1".into() };
        let here = |name: &str, is_configured| HostIdentity {
            is_configured,
            ..HostIdentity::new(name.into(), Labels::new(), None, "x86_64".into())
        };
        assert_eq!(remembered.unclear(&here("a1", false)), None);
        assert_eq!(remembered.unclear(&here("b1", true)), None);
        assert!(remembered.unclear(&here("b1", false)).is_some_and(|why| why.contains("called a1")));
    }
}
