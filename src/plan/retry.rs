//! Back-off: how long a VM that failed waits, and when its failures are forgotten.

use std::time::Duration;

use backoff::{BackoffBuilder, ExponentialBuilder};

use super::Policy;
use crate::state::Backoff;
use crate::time::Now;

/// The wait after this many failures in a row: it doubles from the first to the longest, with a jitter that `seed` decides,
/// so that many VMs that fail together do not stay together.
pub fn delay(policy: &Policy, failures: u32, seed: u64) -> Duration {
    let waits = ExponentialBuilder::new()
        .with_min_delay(policy.backoff_initial)
        .with_max_delay(policy.backoff_max)
        .with_factor(2.0)
        .without_max_times()
        .with_jitter()
        .with_jitter_seed(seed)
        .build();
    let index = usize::try_from(failures.saturating_sub(1)).unwrap_or(usize::MAX).min(64);
    // The jitter adds up to one whole first wait.
    waits.take(index + 1).last().unwrap_or(policy.backoff_max).min(policy.backoff_max)
}

/// The back-off after one more failure of a life that lasted `lived`.
pub fn after_failure(
    policy: &Policy,
    before: Option<&Backoff>,
    lived: Option<Duration>,
    seed: u64,
    now: &Now,
) -> Backoff {
    let was_stable = lived.is_some_and(|lived| lived >= policy.stable_time);
    let failures = before.filter(|_| !was_stable).map_or(0, |before| before.failures).saturating_add(1);
    Backoff { failures, until: now.deadline(delay(policy, failures, seed)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::BootId;

    fn now() -> Now {
        Now { boot_id: BootId("b".into()), boot_ms: 1_000_000, wall: jiff::Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn waits_double_up_to_the_longest_and_are_the_same_for_the_same_seed() {
        let policy = Policy::default();
        for seed in 0..100 {
            let waits: Vec<Duration> = (1..20).map(|failures| delay(&policy, failures, seed)).collect();
            assert_eq!(waits, (1..20).map(|failures| delay(&policy, failures, seed)).collect::<Vec<_>>());
            for (exponent, wait) in (0..).zip(&waits) {
                let plain = (policy.backoff_initial * 2_u32.pow(exponent)).min(policy.backoff_max);
                assert!(*wait >= plain && *wait <= policy.backoff_max.min(plain * 2), "{seed}: {waits:?}");
            }
        }
    }

    #[test]
    fn only_a_stable_life_forgets_the_failures_before_it() {
        let policy = Policy::default();
        let before = Backoff { failures: 5, until: now().deadline(Duration::ZERO) };
        let short = after_failure(&policy, Some(&before), Some(Duration::from_secs(30)), 1, &now());
        assert_eq!(short.failures, 6);
        let stable = after_failure(&policy, Some(&before), Some(policy.stable_time), 1, &now());
        assert_eq!(stable.failures, 1);
    }
}
