//! Control groups, version 2.

use std::io;

use crate::host::devices::{Cgroup, CgroupFacts, CgroupLimits};

/// The host's cgroup v2 hierarchy.
#[derive(Debug, Default)]
pub(super) struct Cgroups {}

#[allow(clippy::unused_self)]
impl Cgroups {
    pub(super) fn facts(&self) -> Result<CgroupFacts, String> {
        Err(String::new())
    }

    pub(super) fn one(&self, _path: &str) -> io::Result<Option<Cgroup>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn children(&self, _path: &str) -> io::Result<Vec<String>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn make(&self, _path: &str, _limits: &CgroupLimits) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn kill(&self, _path: &str) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn remove(&self, _path: &str) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
