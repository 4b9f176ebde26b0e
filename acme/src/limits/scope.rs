//! Whose limit it was that a CA says is reached: the account's, which stops every order, or that of the names of one order.
//!
//! RFC 8555 §6.6 has one error for all, `rateLimited`, so its words have to say. Let's Encrypt counts certificates of a
//! registered domain over all accounts of the world: were such a refusal taken for the account's, anybody with a name under
//! a busy domain could stop a whole fleet for days.

use super::registered;

/// What is said of limits of one order's names where no name is said (Let's Encrypt, of certificates for the very same
/// names, and in former times of failed proofs).
const WITHOUT_NAMES: [&str; 2] = ["exact set of", "failed authorizations"];

/// Whether these words of a CA are about the names of an order, and about no other order.
#[must_use]
pub fn is_of_names(detail: &str, names: &[String]) -> bool {
    let detail = detail.to_ascii_lowercase();
    WITHOUT_NAMES.iter().any(|words| detail.contains(words))
        || names.iter().any(|name| says(&detail, &registered(name)))
}

/// Whether a name stands there as a whole, or as the end of one below it.
fn says(detail: &str, name: &str) -> bool {
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let stands = |at: usize| {
        let (before, after) = (&detail.as_bytes()[..at], &detail.as_bytes()[at + name.len()..]);
        // A full stop ends a sentence, or goes on with another name.
        let goes_on = match after {
            [b'.', next, ..] => is_of_name(*next),
            [next, ..] => is_of_name(*next),
            [] => false,
        };
        !before.last().copied().is_some_and(is_of_name) && !goes_on
    };
    !name.is_empty() && detail.match_indices(name).any(|(at, _)| stands(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_a_name_is_told_from_one_of_the_account() {
        let names = ["*.shop.busy.example".to_owned(), "shop.busy.example".to_owned()];
        let retry = "retry after 2026-11-29 04:00:00 UTC: see https://letsencrypt.org/docs/rate-limits/#x";
        for (said, is) in [
            ("too many certificates (50) already issued for \"busy.example\" in the last 168h0m0s", true),
            ("too many failed authorizations (5) for \"shop.busy.example\" in the last 1h0m0s", true),
            ("too many failed authorizations recently", true),
            ("too many certificates (5) already issued for this exact set of identifiers in the last 168h0m0s", true),
            ("Your account is temporarily prevented from requesting certificates for Shop.Busy.Example.", true),
            ("too many certificates already issued for: busy.example", true),
            ("too many new orders (300) from this account in the last 3h0m0s", false),
            ("too many new registrations (10) from this IP address in the last 3h0m0s", false),
            ("Service busy; retry later.", false),
            ("too many certificates already issued for notbusy.example", false),
            ("too many certificates already issued for busy.example.org", false),
            ("too many certificates already issued for busy.examples", false),
            ("", false),
        ] {
            assert_eq!(is_of_names(&format!("{said}, {retry}"), &names), is, "{said}");
            assert_eq!(is_of_names(said, &names), is, "{said}");
        }
        assert!(!is_of_names("anything", &[String::new()]));
    }
}
