//! The free space of a disk.

use std::path::Path;

/// How many bytes this user can still write where `folder` lies, or where it would be made; `None` where the system does not tell.
pub fn free_space(folder: &Path) -> Option<u64> {
    let folder = std::path::absolute(folder).ok()?;
    of_file_system(folder.ancestors().find(|above| above.is_dir())?)
}

#[cfg(unix)]
fn of_file_system(folder: &Path) -> Option<u64> {
    let about = rustix::fs::statvfs(folder).ok()?;
    // A file system without blocks of its own, as some over a network, does not tell.
    (about.f_blocks > 0).then(|| about.f_bavail.saturating_mul(about.f_frsize))
}

#[cfg(not(unix))]
fn of_file_system(_folder: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    #[test]
    fn a_folder_has_the_space_that_df_tells_and_one_that_is_not_there_that_of_the_one_above() {
        let folder = tempfile::tempdir().unwrap();
        let df = std::process::Command::new("df").args(["--output=avail", "-B1"]).arg(folder.path()).output();
        let Ok(df) = df else { return }; // Where the system has none.
        let expected: u64 = String::from_utf8(df.stdout).unwrap().lines().nth(1).unwrap().trim().parse().unwrap();
        for folder in [folder.path().to_path_buf(), folder.path().join("not/there")] {
            let found = free_space(&folder).unwrap();
            // Others write meanwhile.
            assert!(found.abs_diff(expected) < 1 << 30, "{found}, and df says {expected}");
        }
    }
}
