//! Loop devices by their ioctls.

use std::io;

use crate::host::devices::{LoopDevice, LoopRequest};

pub(super) fn one(_device: &str) -> io::Result<Option<LoopDevice>> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn all() -> io::Result<Vec<LoopDevice>> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn attach(_request: &LoopRequest) -> io::Result<LoopDevice> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn detach(_device: &str, _tag: &str) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}
