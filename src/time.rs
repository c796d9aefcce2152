//! Moments and deadlines that survive a restart of stead and know when they do not.
//!
//! Decisions use the boot clock, which no administrator and no NTP daemon moves. A wall-clock time is kept beside it only
//! to be shown.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One boot of the host: `/proc/sys/kernel/random/boot_id` (random(4)).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The present moment, on both clocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Now {
    /// This boot of the host.
    pub boot_id: BootId,
    /// Milliseconds since boot, suspended time included (`CLOCK_BOOTTIME`, clock_gettime(2)).
    pub boot_ms: u64,
    /// Wall-clock time, to be shown to people.
    pub wall: jiff::Timestamp,
}

impl Now {
    /// The moment `after` from now.
    pub fn deadline(&self, after: Duration) -> Deadline {
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        Deadline { boot_id: self.boot_id.clone(), boot_ms: self.boot_ms.saturating_add(after_ms) }
    }

    /// How long until `deadline`; `None` when it has passed. One that was set in an earlier boot has passed: what it
    /// waited for did not outlive the host.
    pub fn until(&self, deadline: &Deadline) -> Option<Duration> {
        if deadline.boot_id != self.boot_id {
            return None;
        }
        let left = deadline.boot_ms.checked_sub(self.boot_ms).filter(|left| *left > 0)?;
        Some(Duration::from_millis(left))
    }

    /// Whether `deadline` has passed.
    pub fn is_past(&self, deadline: &Deadline) -> bool {
        self.until(deadline).is_none()
    }

    /// How long ago `moment` was, on the boot clock; `None` when it lies in another boot or ahead.
    pub fn since(&self, moment: &Deadline) -> Option<Duration> {
        if moment.boot_id != self.boot_id {
            return None;
        }
        self.boot_ms.checked_sub(moment.boot_ms).map(Duration::from_millis)
    }
}

/// A moment on the boot clock of one boot. Also used for moments past.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// The boot it belongs to.
    pub boot_id: BootId,
    /// Milliseconds since that boot.
    pub boot_ms: u64,
}

impl Deadline {
    /// The moment `after` this one.
    #[must_use]
    pub fn after(&self, after: Duration) -> Self {
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        Self { boot_id: self.boot_id.clone(), boot_ms: self.boot_ms.saturating_add(after_ms) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(boot: &str, boot_ms: u64) -> Now {
        Now { boot_id: BootId(boot.into()), boot_ms, wall: jiff::Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn a_deadline_of_an_earlier_boot_has_passed() {
        let deadline = now("one", 1_000).deadline(Duration::from_secs(3600));
        assert_eq!(now("one", 2_000).until(&deadline), Some(Duration::from_secs(3599)));
        assert!(now("two", 5).is_past(&deadline));
    }

    #[test]
    fn a_deadline_is_past_from_its_very_millisecond_on() {
        let deadline = now("one", 0).deadline(Duration::from_millis(10));
        assert!(!now("one", 9).is_past(&deadline));
        assert!(now("one", 10).is_past(&deadline));
    }
}
