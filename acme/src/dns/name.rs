//! Domain names as they go over the wire: a length before each label, a zero at the end (RFC 1035 §3.1), in lower case,
//! so that two names are equal when their bytes are.

/// Longest name on the wire, bytes (RFC 1035 §2.3.4).
pub(super) const WIRE_MAX: usize = 255;
/// Most labels of a name: each takes two bytes at least, and the root one.
const LABELS_MAX: usize = 127;
/// Longest label, bytes; what is longer is a pointer or undefined (RFC 1035 §4.1.4).
const LABEL_MAX: u8 = 63;

/// A name that was asked for: lower case, without a heap.
pub(super) struct Name {
    wire: [u8; WIRE_MAX],
    length: u8,
    /// Where each label begins.
    labels: [u8; LABELS_MAX],
    count: u8,
}

impl Name {
    /// Reads the name at the beginning of `bytes`, as it stands in a question: no pointer can be in it, since nothing is
    /// before it that it could point to. `None` when it is none.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut name = Self { wire: [0; WIRE_MAX], length: 0, labels: [0; LABELS_MAX], count: 0 };
        let mut at = 0;
        loop {
            let &length = bytes.get(at)?;
            if length == 0 {
                name.length = u8::try_from(at + 1).ok()?;
                return Some(name);
            }
            if length > LABEL_MAX {
                return None;
            }
            let end = at + 1 + usize::from(length);
            // The zero at the end needs a place too.
            let (from, to) = (bytes.get(at..end)?, name.wire.get_mut(at..end).filter(|_| end < WIRE_MAX)?);
            to.copy_from_slice(from);
            // A length is below 'A': it stays what it is.
            to.make_ascii_lowercase();
            *name.labels.get_mut(usize::from(name.count))? = u8::try_from(at).ok()?;
            name.count += 1;
            at = end;
        }
    }

    /// How many labels it has; the root has none.
    pub(super) fn labels(&self) -> usize {
        usize::from(self.count)
    }

    /// Bytes on the wire.
    pub(super) fn len(&self) -> usize {
        usize::from(self.length)
    }

    /// What is left without the first `skip` labels, at most all of them; the whole name for 0.
    pub(super) fn without(&self, skip: usize) -> &[u8] {
        &self.wire[self.offset(skip)..self.len()]
    }

    /// How many bytes the first `skip` labels take.
    pub(super) fn offset(&self, skip: usize) -> usize {
        let labels = &self.labels[..self.labels()];
        labels.get(skip).map_or(self.len() - 1, |&at| usize::from(at))
    }

    /// The first label, without its length; empty for the root.
    pub(super) fn first(&self) -> &[u8] {
        &self.wire[1.min(self.offset(1))..self.offset(1)]
    }

    /// As people write it, without a dot at its end.
    pub(super) fn text(&self) -> String {
        text(self.without(0))
    }
}

/// The wire form of a name people wrote, in lower case. `None` when it is none.
pub(super) fn wire(text: &str) -> Option<Box<[u8]>> {
    let mut bytes = Vec::with_capacity(text.len() + 2);
    for label in text.split('.').filter(|_| !text.is_empty()) {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=LABEL_MAX).contains(length))?;
        bytes.push(length);
        bytes.extend(label.bytes().map(|byte| byte.to_ascii_lowercase()));
    }
    bytes.push(0);
    (bytes.len() <= WIRE_MAX).then(|| bytes.into())
}

/// A name on the wire as people write it.
pub(super) fn text(wire: &[u8]) -> String {
    let (mut text, mut rest) = (String::new(), wire);
    while let Some((&length, labels)) = rest.split_first().filter(|(length, _)| **length > 0) {
        let (label, others) = labels.split_at(usize::from(length).min(labels.len()));
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|&byte| if byte.is_ascii_graphic() { char::from(byte) } else { '?' }));
        rest = others;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_in_lower_case_and_taken_apart() {
        let name = Name::read(b"\x03WwW\x07spRites\x03dev\0rest").unwrap();
        assert_eq!((name.text().as_str(), name.labels(), name.first()), ("www.sprites.dev", 3, &b"www"[..]));
        assert_eq!(name.without(1), &*wire("sprites.DEV").unwrap());
        assert_eq!((name.without(3), name.without(9)), (&b"\0"[..], &b"\0"[..]));
        let root = Name::read(b"\0").unwrap();
        assert_eq!((root.labels(), root.len(), root.first(), root.text().as_str()), (0, 1, &b""[..], ""));
    }

    #[test]
    fn the_longest_names_are_read_and_none_that_is_longer() {
        let label = |length: u8| [&[length][..], &vec![b'a'; usize::from(length)]].concat();
        let most = [label(63), label(63), label(63), label(61), vec![0]].concat();
        assert_eq!((most.len(), Name::read(&most).unwrap().len()), (255, 255));
        assert!(Name::read(&[label(63), label(63), label(63), label(62), vec![0]].concat()).is_none());
        let many = [label(1).repeat(127), vec![0]].concat();
        assert_eq!(Name::read(&many).unwrap().labels(), 127);
        assert!(Name::read(&[label(1).repeat(128), vec![0]].concat()).is_none());
    }

    #[test]
    fn what_is_cut_off_or_a_pointer_is_no_name() {
        for bytes in [&b""[..], b"\x03ab", b"\x01a", b"\xc0\x0c", b"\x40aa", b"\x01a\xc0\x00\0"] {
            assert!(Name::read(bytes).is_none(), "{bytes:?}");
        }
        assert!(wire("a..b").is_none() && wire(&"a".repeat(64)).is_none() && wire(&"a.".repeat(127)).is_none());
        assert_eq!(wire("").as_deref(), Some(&b"\0"[..]));
    }
}
