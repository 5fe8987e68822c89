//! Words that a misspelt one may stand for.

/// Returns the number of typing errors after which a word still counts as the one meant: one in a short word, two in a
/// longer one.
pub fn tolerance(word: &str) -> usize {
    (word.chars().count() / 3).clamp(1, 2)
}

/// Returns the distance of two words in typing errors (Damerau-Levenshtein), if a person may have confused them.
pub fn distance(word: &str, other: &str) -> Option<usize> {
    // Words whose lengths differ by more need not be compared.
    let most = tolerance(word);
    if word.len().abs_diff(other.len()) > 4 * most {
        return None;
    }
    Some(strsim::damerau_levenshtein(word, other)).filter(|distance| *distance <= most)
}

/// Returns the known word that is closest to this one, whatever the case of its letters.
pub fn closest<'w>(word: &str, known: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let lower = word.to_lowercase();
    let distances = known.into_iter().filter_map(|other| Some((distance(&lower, &other.to_lowercase())?, other)));
    distances.min().map(|(_, other)| other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_word_is_found() {
        let fields = ["clusterIP", "clusterIPs", "ports", "selector", "type"];
        for (case, word, expected) in [
            ("another case", "clusterip", Some("clusterIP")),
            ("a letter too few", "selecor", Some("selector")),
            ("two letters swapped", "prots", Some("ports")),
            ("a short word", "typ", Some("type")),
            ("another word", "replicas", None),
        ] {
            assert_eq!(closest(word, fields), expected, "{case}");
        }
    }
}
