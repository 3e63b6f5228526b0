//! The nearest of several names, for messages.

/// The number of letters to insert, delete or replace (Levenshtein 1966).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &b) in b.iter().enumerate() {
            let fewest = (diagonal + usize::from(a != b)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], fewest);
        }
    }
    row.last().copied().unwrap_or_default()
}

/// ` (nearest: NAME)`, or nothing where there is no name.
pub(crate) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let nearest = names.into_iter().min_by_key(|other| distance(name, other));
    nearest.map(|nearest| format!(" (nearest: {nearest})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_the_one_with_the_fewest_letters_changed() {
        assert_eq!(
            [("", "abc"), ("kitten", "sitting"), ("flaw", "lawn"), ("a", "a")].map(|(a, b)| distance(a, b)),
            [3, 3, 2, 0]
        );
        assert_eq!(nearest("lora_alhpa", ["r", "lora_alpha", "lora_dropout"]), " (nearest: lora_alpha)");
        assert_eq!(nearest("r", []), "");
    }
}
