//! The most similar of several names, for messages.

/// ` (nearest: NAME)`, the name with the fewest letters changed (Levenshtein 1966), or nothing where there is no name.
pub(crate) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let nearest = names.into_iter().min_by_key(|other| strsim::levenshtein(name, other));
    nearest.map(|nearest| format!(" (nearest: {nearest})")).unwrap_or_default()
}
