//! Public top-level domains: the labels of the root zone (IANA), one a line in `tld.txt`.
//!
//! A namespace that is called like one must not capture names of the public DNS.

use std::sync::LazyLock;

static LABELS: LazyLock<Box<[&'static str]>> = LazyLock::new(|| {
    let mut labels: Vec<&str> = include_str!("tld.txt").lines().filter(|line| !line.is_empty()).collect();
    labels.sort_unstable();
    labels.into()
});

/// Whether a label, lower case and without its length octet, is a public top-level domain.
pub fn is_public(label: &str) -> bool {
    LABELS.binary_search(&label).is_ok()
}

/// The same for a label with its length octet.
pub fn is_public_label(label: &[u8]) -> bool {
    label.get(1..).and_then(|text| std::str::from_utf8(text).ok()).is_some_and(is_public)
}

#[cfg(test)]
mod tests {
    use super::is_public;

    #[test]
    fn knows_the_root_zone_and_no_more() {
        for label in ["com", "dev", "app", "io", "arpa", "xn--p1ai", "museum"] {
            assert!(is_public(label), "{label}");
        }
        for label in ["web", "local", "internal", "cluster", "svc", ""] {
            assert!(!is_public(label), "{label}");
        }
    }
}
