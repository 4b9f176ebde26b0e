//! When a certificate ends. The rest of it is webpki's business, which says nothing of this one.

use rustls_pki_types::CertificateDer;
use time::{Date, Month, PrimitiveDateTime, Time};

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The last second of its validity, Unix time (RFC 5280 §4.1.2.5); none for bytes that are no certificate.
#[must_use]
pub fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (certificate, _) = expect(SEQUENCE, certificate)?;
    let (mut fields, _) = expect(SEQUENCE, certificate)?;
    if let Some((_, rest)) = expect(VERSION, fields) {
        fields = rest;
    }
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        (_, _, fields) = value(fields)?;
    }
    let (validity, _) = expect(SEQUENCE, fields)?;
    let (_, _, not_after) = value(validity)?;
    let (tag, text, _) = value(not_after)?;
    seconds(tag, text)
}

/// Tag, content and what follows, of DER with one-byte tags (X.690 §10.1).
fn value(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk::<2>()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn expect(wanted: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    value(der).and_then(|(tag, content, rest)| (tag == wanted).then_some((content, rest)))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`: the only forms a certificate may have.
fn seconds(tag: u8, text: &[u8]) -> Option<i64> {
    let (digits, zone) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let years = match tag {
        UTC_TIME => 2,
        GENERALIZED_TIME => 4,
        _ => return None,
    };
    if zone != b"Z" || digits.len() != years + 10 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |at: &[u8]| at.iter().fold(0_u16, |number, digit| number * 10 + u16::from(digit - b'0'));
    let (year, rest) = digits.split_at(years);
    let year = match (years, number(year)) {
        (2, year @ 50..) => 1900 + year,
        (2, year) => 2000 + year,
        (_, year) => year,
    };
    let mut parts = rest.chunks_exact(2).map(|two| u8::try_from(number(two)).unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    let date = Date::from_calendar_date(i32::from(year), Month::try_from(next()).ok()?, next()).ok()?;
    let time = Time::from_hms(next(), next(), next()).ok()?;
    Some(PrimitiveDateTime::new(date, time).assume_utc().unix_timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use time::OffsetDateTime;

    #[test]
    fn the_end_of_a_certificate_is_read_in_both_forms_and_nonsense_is_none() {
        // From 2050 on dates have four digits of the year (RFC 5280 §4.1.2.5).
        for end in [1_900_000_001, 4_000_000_001] {
            let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
            params.not_after = OffsetDateTime::from_unix_timestamp(end).unwrap();
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            let der = certificate.der();
            assert_eq!(not_after(der), Some(end));
            for cut in 0..der.len().min(200) {
                assert_eq!(not_after(&CertificateDer::from(&der[..cut])), None, "{cut}");
            }
        }
    }
}
