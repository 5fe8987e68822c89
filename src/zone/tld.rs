//! Public top-level domains: the labels of the root zone (IANA), one per line in `tld.txt`.
//!
//! A namespace with the name of a top-level domain must not capture names of the public DNS.

const TEXT: &str = include_str!("tld.txt");

const COUNT: usize = {
    let (mut at, mut count) = (0, 0);
    while at < TEXT.len() {
        count += (TEXT.as_bytes()[at] == b'\n') as usize;
        at += 1;
    }
    count
};

/// Split at compile time, so that the first query does not pay for it.
static LABELS: [&str; COUNT] = {
    let mut labels = [""; COUNT];
    let (mut rest, mut at, mut index) = (TEXT, 0, 0);
    while index < COUNT {
        if rest.as_bytes()[at] == b'\n' {
            let (label, end) = rest.split_at(at);
            labels[index] = label;
            rest = end.split_at(1).1;
            (at, index) = (0, index + 1);
        } else {
            at += 1;
        }
    }
    labels
};

/// Whether a label, lower case and without its length octet, is a public top-level domain.
pub fn is_public(label: &str) -> bool {
    LABELS.binary_search(&label).is_ok()
}

/// Whether a lower-case label with its length octet is a public top-level domain.
pub fn is_public_label(label: &[u8]) -> bool {
    label.get(1..).and_then(|text| std::str::from_utf8(text).ok()).is_some_and(is_public)
}

#[cfg(test)]
mod tests {
    use super::{LABELS, is_public};

    #[test]
    fn the_list_is_sorted() {
        assert!(LABELS.is_sorted());
        assert!(LABELS.len() > 1400);
    }

    #[test]
    fn only_labels_of_the_root_zone_are_public() {
        for label in ["com", "dev", "app", "io", "arpa", "xn--p1ai", "museum"] {
            assert!(is_public(label), "{label}");
        }
        for label in ["web", "local", "internal", "cluster", "svc", ""] {
            assert!(!is_public(label), "{label}");
        }
    }
}
