//! One of a few values for each request, so that those who were refused together do not come
//! back together.
//!
//! The request's id is the seed: it differs with every request, needs no generator and no
//! clock, and the same id gives the same value, so that header, body and log of one answer
//! agree and a test can tell what it will be.

use std::ops::RangeInclusive;

/// A value of `range` for the request with this id; every value for as many ids as any other.
#[must_use]
pub fn pick(range: RangeInclusive<u64>, request_id: &str) -> u64 {
    let (least, most) = range.into_inner();
    let span = most.saturating_sub(least).saturating_add(1);
    least + mix(request_id.as_bytes()) % span
}

/// FNV-1a (offset basis and prime of its 64-bit form), stirred once more: ids of one core
/// differ in their last digits only, and the low bits have to as well.
fn mix(bytes: &[u8]) -> u64 {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash ^ (hash >> 32)).wrapping_mul(0x0000_0100_0000_01b3) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request_id::RequestId;

    #[test]
    fn requests_in_a_row_are_spread_evenly_over_the_range() {
        for range in [1..=3_u64, 1..=2, 2..=5] {
            let values: Vec<_> = (0..3_000).map(|_| pick(range.clone(), RequestId::next().as_str())).collect();
            let fair = 3_000 / range.clone().count();
            for value in range.clone() {
                let count = values.iter().filter(|seen| **seen == value).count();
                assert!(count > fair * 3 / 4 && count < fair * 5 / 4, "{count} of 3000 have {value} of {range:?}");
            }
            assert!(values.iter().all(|value| range.contains(value)));
            let alike = values.windows(8).filter(|eight| eight.iter().all(|value| *value == eight[0])).count();
            assert!(alike < 150, "{alike} times eight in a row have the same of {range:?}");
        }
    }

    #[test]
    fn the_same_id_gives_the_same_value_and_a_range_of_one_has_one() {
        assert_eq!(pick(1..=3, "abc"), pick(1..=3, "abc"));
        assert_eq!((pick(2..=2, "abc"), pick(0..=0, "x"), pick(7..=7, "")), (2, 0, 7));
    }
}
