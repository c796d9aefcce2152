//! Disk images: what they are, copies of them, files that take no space.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::host::devices::{Copied, ImageIdentity};

pub(super) fn identify(_path: &Path) -> io::Result<Option<ImageIdentity>> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn make_sparse(_path: &Path, _bytes: u64) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn copy(
    _image: &Path,
    _expected: &ImageIdentity,
    _copy: &Path,
    _bytes: u64,
    _slice: Duration,
) -> io::Result<Copied> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn rename(_from: &Path, _to: &Path) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn remove_folder(_path: &Path) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(super) fn overwrite(_path: &Path, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
