//! Which part of some content a request asks for: RFC 9110, section 14, for one range of bytes.
//!
//! Whatever is not such a range is passed over, as the RFC lets a server do: the answer is then all of the content.

use std::ops::Range;

use axum::http::{HeaderMap, header};

/// What to answer with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// These bytes; there is at least one.
    Bytes(Range<u64>),
    /// Nothing: what was asked for begins behind the end.
    Beyond,
}

/// The part that a request with these headers means, of content of this size and entity tag.
pub fn part(headers: &HeaderMap, size: u64, tag: &str) -> Part {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    // The rest of other content is of no use to who has the beginning of this.
    if headers.contains_key(header::IF_RANGE) && text(header::IF_RANGE) != Some(tag) {
        return Part::Whole;
    }
    let range = text(header::RANGE).and_then(|value| value.strip_prefix("bytes="));
    range
        .and_then(|range| bytes(range.trim(), size))
        .unwrap_or(Part::Whole)
}

/// `FIRST-LAST`, `FIRST-` or `-COUNT`.
fn bytes(range: &str, size: u64) -> Option<Part> {
    let number = |text: &str| -> Option<u64> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        // What is too large to be a number is too large to be within.
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let (first, last) = range.split_once('-')?;
    let wanted = match (first, last) {
        ("", count) => size.saturating_sub(number(count)?)..size,
        (first, "") => number(first)?..size,
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return None;
            }
            first..size.min(last.saturating_add(1))
        }
    };
    Some(if wanted.is_empty() {
        Part::Beyond
    } else {
        Part::Bytes(wanted)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_request_means() {
        let bytes = |range: Range<u64>| Part::Bytes(range);
        for (range, expected) in [
            ("bytes=0-", bytes(0..100)),
            ("bytes=40-", bytes(40..100)),
            ("bytes=99-", bytes(99..100)),
            ("bytes=0-0", bytes(0..1)),
            ("bytes=10-19", bytes(10..20)),
            ("bytes=10-1000", bytes(10..100)),
            ("bytes=10-99999999999999999999999", bytes(10..100)),
            ("bytes=-1", bytes(99..100)),
            ("bytes=-100", bytes(0..100)),
            ("bytes=-1000", bytes(0..100)),
            ("bytes=100-", Part::Beyond),
            ("bytes=100-200", Part::Beyond),
            ("bytes=99999999999999999999999-", Part::Beyond),
            ("bytes=-0", Part::Beyond),
            // Passed over: no range, not ours, several.
            ("bytes=", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=19-10", Part::Whole),
            ("bytes=+1-2", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("bytes=0-1,5-6", Part::Whole),
            ("lines=0-1", Part::Whole),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, range.parse().unwrap());
            assert_eq!(part(&headers, 100, "\"t\""), expected, "{range}");
        }
        let mut headers = HeaderMap::new();
        assert_eq!(part(&headers, 100, "\"t\""), Part::Whole);
        headers.insert(header::RANGE, "bytes=0-".parse().unwrap());
        assert_eq!(part(&headers, 0, "\"t\""), Part::Beyond, "nothing is in it");
    }

    #[test]
    fn the_rest_is_for_who_has_the_beginning() {
        for (tag, expected) in [
            ("\"t\"", Part::Bytes(40..100)),
            ("\"other\"", Part::Whole),
            ("W/\"t\"", Part::Whole),
            ("Sun, 22 Nov 2026 00:00:00 GMT", Part::Whole),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, "bytes=40-".parse().unwrap());
            headers.insert(header::IF_RANGE, tag.parse().unwrap());
            assert_eq!(part(&headers, 100, "\"t\""), expected, "{tag}");
        }
    }
}
