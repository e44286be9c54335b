//! The `Date` of a signed request. Pure.

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;

/// How far a request's date may be from the clock here, in seconds, inclusive.
pub const MAX_SKEW: i64 = 900;

/// The moment that a `Date` header names: an IMF-fixdate, or RFC 2822 with a numeric zone.
#[must_use]
pub fn parse(value: &str) -> Option<Timestamp> {
    DateTimeParser::new().parse_timestamp(value.trim()).ok()
}

/// Whether the two are further apart than [`MAX_SKEW`], in whole seconds.
#[must_use]
pub fn is_skewed(date: Timestamp, now: Timestamp) -> bool {
    now.as_second().abs_diff(date.as_second()) > MAX_SKEW.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formats_of_the_contract() {
        for (value, epoch) in [
            ("Tue, 27 Mar 2012 19:36:42 GMT", Some(1_332_877_002)),
            ("Fri, 01 Jul 2011 19:37:58 +0000", Some(1_309_549_078)),
            ("Fri, 01 Jul 2011 21:37:58 +0200", Some(1_309_549_078)),
            (" Fri, 1 Jul 2011 19:37:58 +0000 ", Some(1_309_549_078)),
            ("2011-07-01T19:37:58Z", None),
            ("Fri, 32 Jul 2011 19:37:58 +0000", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(parse(value).map(Timestamp::as_second), epoch, "{value}");
        }
    }

    #[test]
    fn fifteen_minutes_either_way_are_allowed() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        for (offset, skewed) in [(0, false), (-900, false), (900, false), (-901, true), (901, true)] {
            let date = Timestamp::from_second(1_000_000 + offset).unwrap();
            assert_eq!(is_skewed(date, now), skewed, "{offset}");
        }
    }
}
