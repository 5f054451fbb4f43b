//! The key `files`: which files belong to a module beside its program, for its version.

use std::path::{Path, PathBuf};

/// How many files the patterns of one module find at most. Each costs an attempt one `stat`: more
/// would delay small jobs by milliseconds, fewer leave out files of an ordinary library.
pub const MODULE_FILES_MAX: usize = 1000;

/// Why a text is no pattern of files.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} has to be a path below the pipeline file's folder, in whose names * and ? stand for \
     other characters, as in files: [\"lib/*.py\", model.onnx]"
)]
pub struct FilePatternError(String);

/// Checks a pattern of files.
///
/// # Errors
/// When it is empty, leads out of the pipeline's folder, or has a name that no file has.
pub(super) fn check_file_pattern(pattern: &str) -> Result<(), FilePatternError> {
    let is_wrong = |name: &str| name.is_empty() || name == "." || name == ".." || name == "**";
    let is_text = !pattern.contains(['\n', '\0']);
    match is_text && !pattern.split('/').any(is_wrong) {
        true => Ok(()),
        false => Err(FilePatternError(pattern.to_owned())),
    }
}

/// Returns the files below `directory` that a pattern finds, each by its path there, sorted; at
/// most `most` of them. A folder that cannot be read has none.
pub(crate) fn find_files(directory: &Path, pattern: &str, most: usize) -> Vec<String> {
    let mut found = vec![String::new()];
    for part in pattern.split('/') {
        let mut next = Vec::new();
        for folder in &found {
            match part.contains(['*', '?']) {
                false => next.push(join(folder, part)),
                true => {
                    let names = names_in(&directory.join(folder));
                    let names = names.iter().filter(|name| name_matches(part, name));
                    next.extend(names.map(|name| join(folder, name)));
                }
            }
        }
        found = next;
    }
    found.retain(|file| directory.join(file).is_file());
    found.sort();
    found.truncate(most);
    found
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn names_in(folder: &PathBuf) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Returns whether a name matches a pattern in which `*` stands for any characters and `?` for one.
/// As in a shell, only a dot stands for a dot at the beginning.
fn name_matches(pattern: &str, name: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // The last star, and the first character that it does not stand for.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, end)) => {
                    star = Some((at, end + 1));
                    (p, n) = (at + 1, end + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters_of_one_name() {
        for (pattern, name) in [
            ("*.py", "a.py"),
            ("a*b*c", "aXbYbZc"),
            ("?", "ä"),
            ("*", "a"),
            ("**", "a"),
            (".*", ".a"),
        ] {
            assert!(name_matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("*.py", "a.pyc"), ("*", ".a"), ("?", "ab"), ("a*b", "ac")] {
            assert!(!name_matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn files_are_found_below_the_folder_only() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["lib/a/x.py", "lib/b/x.py", "lib/b/y.txt", "lib/b/.z.py", "model"] {
            let place = folder.path().join(name);
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::write(place, "").unwrap();
        }
        let find = |pattern: &str, most| find_files(folder.path(), pattern, most);
        assert_eq!(find("lib/*/*.py", 9), ["lib/a/x.py", "lib/b/x.py"]);
        assert_eq!(find("lib/*/*.py", 1), ["lib/a/x.py"]);
        assert_eq!(find("model", 9), ["model"]);
        assert!(find("lib", 9).is_empty() && find("none/*", 9).is_empty());
        for wrong in ["", "/etc/passwd", "../x", "lib/", "a//b", "lib/**/x.py", "./x"] {
            assert!(check_file_pattern(wrong).is_err(), "{wrong}");
        }
        assert!(check_file_pattern("lib/*.py").is_ok());
    }
}
