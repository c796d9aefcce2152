//! Device-mapper by its ioctls.

use std::io;

use crate::host::devices::{DmDevice, DmRequest};

pub(super) fn usable() -> Result<(), String> {
    Err(String::new())
}

pub(super) fn one(_name: &str) -> io::Result<Option<DmDevice>> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn all() -> io::Result<Vec<DmDevice>> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn create(_request: &DmRequest) -> io::Result<DmDevice> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn remove(_name: &str, _uuid: &str) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}
