//! What a parser says of a mistake, in words that name the field and the way out.

/// A parser's message with the nearest field, and without its own words for the place.
pub(super) fn explained(message: &str) -> String {
    let message = message.rsplit_once(" at line ").map_or(message, |(message, _)| message);
    let unknown =
        message.strip_prefix("unknown field `").and_then(|rest| rest.split_once("`, expected one of "));
    if let Some((field, allowed)) = unknown {
        let nearest = allowed.split(", ").min_by_key(|candidate| distance(field, candidate));
        let hint = match nearest {
            Some(nearest) if distance(field, nearest) <= 3 => format!("; did you mean {nearest:?}?"),
            _ => ";".to_owned(),
        };
        return format!("unknown field {field:?}{hint} allowed: {allowed}");
    }
    match message.strip_prefix("duplicate mapping key: ").and_then(|rest| rest.split_once(',')) {
        Some((key, _)) => format!("{key:?} stands here a second time; it is allowed once"),
        None => message.trim().to_owned(),
    }
}

/// How many letters have to be changed, added or left out (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.chars().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.chars().count()]
}
