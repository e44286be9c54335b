//! How long to wait before another try.

use std::time::Duration;

/// The longest pause.
pub const LONGEST: Duration = Duration::from_mins(5);

/// 2^n seconds, at most [`LONGEST`], less up to a quarter that differs between Instances but not between tries: many
/// that fail together do not come back together.
#[must_use]
pub fn pause(n: u32, uid: &str) -> Duration {
    let whole = Duration::from_secs(1 << n.min(9)).min(LONGEST);
    let spread = uid.bytes().fold(0u32, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u32::from(byte))
    }) % 256;
    whole.mul_f64(1.0 - f64::from(spread) / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_within_its_bounds_and_differs_between_instances() {
        let uid = "8f0c21d4-1111-2222-3333-444444444444";
        for n in 0..8 {
            assert_eq!(pause(n + 1, uid), pause(n, uid) * 2);
            assert!(pause(n, uid) > Duration::from_secs(1 << n).mul_f64(0.74));
        }
        assert!(pause(u32::MAX, uid) <= LONGEST);
        assert_ne!(pause(3, uid), pause(3, "another"));
    }
}
