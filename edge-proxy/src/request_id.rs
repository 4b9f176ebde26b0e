//! The id of one request, the same in the sprite's headers, our answer and the log.

use std::cell::Cell;

/// 32 lower-case hexadecimal digits on the stack: no allocation, no formatting machinery.
#[derive(Clone, Copy)]
pub struct RequestId([u8; 32]);

thread_local! {
    /// Random once per core, then counted; unique, not secret.
    static NEXT: Cell<(u64, u64)> = Cell::new((rand::random(), rand::random()));
}

impl RequestId {
    /// The next id of this core.
    #[must_use]
    pub fn next() -> Self {
        let (high, low) = NEXT.get();
        NEXT.set((high, low.wrapping_add(1)));
        let mut text = [0; 32];
        let digits = b"0123456789abcdef";
        for (at, byte) in high.to_be_bytes().into_iter().chain(low.to_be_bytes()).enumerate() {
            text[2 * at] = digits[usize::from(byte >> 4)];
            text[2 * at + 1] = digits[usize::from(byte & 15)];
        }
        Self(text)
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hexadecimal digits are text")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hexadecimal_and_differ() {
        let (one, two) = (RequestId::next(), RequestId::next());
        assert!(one.as_str().bytes().all(|b| b.is_ascii_hexdigit()));
        assert_ne!(one.as_str(), two.as_str());
    }
}
