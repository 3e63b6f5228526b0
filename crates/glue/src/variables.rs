//! Environment variables and paths as people set them: by a shell, a container's file, a service.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The value of an environment variable. One that is empty counts as unset: files of containers and of services cannot leave one out.
pub fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Whether an environment variable is `1`, `true`, `yes` or `on`, in any case, as huggingface_hub reads its own.
pub fn is_on(name: &str) -> bool {
    variable(name).is_some_and(|value| means_yes(&value.to_string_lossy()))
}

fn means_yes(value: &str) -> bool {
    ["1", "true", "yes", "on"].iter().any(|yes| value.trim().eq_ignore_ascii_case(yes))
}

/// The path with the user's home folder in the place of a leading `~`, which a shell leaves as it is behind `=` and in quotes. A folder
/// that is called `~` is `./~`.
pub fn with_home(path: impl AsRef<Path>) -> PathBuf {
    in_home(path.as_ref(), variable("HOME").map(PathBuf::from))
}

fn in_home(path: &Path, home: Option<PathBuf>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) if rest.as_os_str().is_empty() => home,
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_words_for_yes_are_understood_in_any_case_and_all_others_are_no() {
        assert!(["1", "true", "TRUE", "Yes", "on", "ON "].into_iter().all(means_yes));
        assert!(["0", "false", "no", "off", "2", ""].into_iter().all(|value| !means_yes(value)));
    }

    #[test]
    fn a_leading_tilde_is_the_home_folder_where_there_is_one() {
        let in_home = |path: &str, home: Option<&str>| in_home(Path::new(path), home.map(PathBuf::from));
        assert_eq!(in_home("~/glue", Some("/home/a")), Path::new("/home/a/glue"));
        assert_eq!(in_home("~", Some("/home/a")), Path::new("/home/a"));
        for unchanged in ["data/~/glue", "~other/glue", "./~", "/tmp/glue"] {
            assert_eq!(in_home(unchanged, Some("/home/a")), Path::new(unchanged));
        }
        assert_eq!(in_home("~/glue", None), Path::new("~/glue"));
    }
}
