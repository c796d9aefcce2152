//! Both clocks, and which boot this is.

use std::fs;
use std::io;

use rustix::time::{ClockId, clock_gettime};

use crate::time::{BootId, Now};

/// The host's clocks.
pub(super) struct Clock {
    /// Read once: it changes with a reboot only.
    boot_id: BootId,
}

impl Clock {
    pub(super) fn new() -> io::Result<Self> {
        let path = "/proc/sys/kernel/random/boot_id";
        let text = fs::read_to_string(path)
            .map_err(|cause| super::error(cause.kind(), format!("{path}: {cause}; is /proc mounted?")))?;
        Ok(Self { boot_id: BootId(text.trim().to_owned()) })
    }

    pub(super) fn now(&self) -> Now {
        let boot = clock_gettime(ClockId::Boottime);
        // Neither part is negative on this clock.
        let boot_ms =
            u64::try_from(boot.tv_sec).unwrap_or(0) * 1_000 + u64::try_from(boot.tv_nsec).unwrap_or(0) / 1_000_000;
        #[expect(clippy::disallowed_methods, reason = "this is where HostView::now takes the time from")]
        let wall = jiff::Timestamp::now();
        Now { boot_id: self.boot_id.clone(), boot_ms, wall }
    }
}
