//! `Date` (RFC 9110 §6.6.1), rendered once a second.

use http::HeaderValue;
use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

thread_local! {
    /// The last rendered second of this core.
    static LAST: RefCell<Option<(u64, HeaderValue)>> = const { RefCell::new(None) };
}

/// The current time as a field value.
#[must_use]
pub fn now() -> HeaderValue {
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    LAST.with_borrow_mut(|last| match last {
        Some((rendered, value)) if *rendered == second => value.clone(),
        _ => {
            let value = HeaderValue::from_maybe_shared(httpdate::fmt_http_date(now))
                .unwrap_or_else(|_| HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"));
            *last = Some((second, value.clone()));
            value
        }
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_a_date_of_this_minute() {
        let text = super::now();
        let at = httpdate::parse_http_date(text.to_str().unwrap()).unwrap();
        let off = std::time::SystemTime::now().duration_since(at).unwrap();
        assert!(off.as_secs() < 60, "{text:?}");
        assert_eq!(text.len(), 29);
    }
}
