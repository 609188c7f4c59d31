//! Fuzzy matching of names: the letters of the query in order, not necessarily side by
//! side.

/// Returns the quality of a match, higher being better; `None` if there is none.
/// Letters at the start of a word and side by side count more.
pub(crate) fn score(query: &str, name: &str) -> Option<i64> {
    let letters: Vec<char> = name.to_lowercase().chars().collect();
    let mut total = 0;
    let mut from = 0;
    let mut last = None;
    for wanted in query.to_lowercase().chars().filter(|c| !c.is_whitespace()) {
        let rest = letters.get(from..)?;
        let starts_word = |at: usize| {
            at == 0
                || letters
                    .get(at - 1)
                    .is_some_and(|before| !before.is_alphanumeric())
        };
        let beside = last
            .map(|last: usize| last + 1)
            .filter(|at| letters.get(*at) == Some(&wanted));
        let at_word = || {
            (from..letters.len()).find(|at| letters.get(*at) == Some(&wanted) && starts_word(*at))
        };
        let anywhere = || rest.iter().position(|c| *c == wanted).map(|at| from + at);
        let at = beside.or_else(at_word).or_else(anywhere)?;
        total += match (beside, starts_word(at)) {
            (Some(_), _) => 8,
            (None, true) => 6,
            (None, false) => 1,
        };
        last = Some(at);
        from = at + 1;
    }
    // Of equal matches the shortest name is best.
    let length = i64::try_from(letters.len()).unwrap_or(i64::MAX / 2);
    Some(total * 100 - length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_matches_come_first() {
        let mut names = ["#deploys", "dora", "#team-dev", "bob", "#dev"];
        names.sort_by_key(|name| std::cmp::Reverse(score("dev", name)));
        assert_eq!(names[..2], ["#dev", "#team-dev"]);
        assert_eq!(score("dev", "bob"), None);
        assert_eq!(score("dev", "dora"), None);
        assert!(score("", "bob").is_some());
        assert!(score("TD", "#team-dev") > score("TD", "#tada"));
    }
}
