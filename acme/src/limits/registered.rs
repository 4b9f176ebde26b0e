//! The registered domain of a name: what CAs count certificates by.

/// The public suffix of a name and one label more; the name itself where it has no more. In small letters.
///
/// By the Public Suffix List as it was when this was built, with its private part, as Let's Encrypt does it. What has
/// been added to the list since is counted together where the CA counts apart, so we take less than it would give.
#[must_use]
pub fn registered(name: &str) -> String {
    let name = name.trim_start_matches("*.").trim_end_matches('.').to_ascii_lowercase();
    psl::domain_str(&name).unwrap_or(&name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::registered;

    #[test]
    fn a_registered_domain_is_one_label_below_a_public_suffix() {
        for (name, domain) in [
            ("shop.example", "shop.example"),
            ("*.Shop.Example.", "shop.example"),
            ("a.b.shop.co.uk", "shop.co.uk"),
            ("me.github.io", "me.github.io"),
            ("x.me.github.io", "me.github.io"),
            ("co.uk", "co.uk"),
            ("localhost", "localhost"),
            ("", ""),
        ] {
            assert_eq!(registered(name), domain, "{name}");
        }
    }
}
