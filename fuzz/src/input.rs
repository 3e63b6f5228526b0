//! What a target is given: files by name, and a folder of the repository for those that are not changed.

use std::collections::BTreeMap;
use std::io::Result;
use std::path::{Path, PathBuf};

/// The file of a stored input that names the folder whose other files belong to it.
const BASE: &str = "BASE";

/// Files of one input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Input {
    /// A folder of the repository, from its root, whose files are there too; empty: none.
    pub base: String,
    /// The files that may be changed.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// A path of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

impl Input {
    /// These files of a folder of the repository, to be changed, beside its others.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn of(base: &str, names: &[&str]) -> Result<Self> {
        let folder = repository(base);
        let file = |name: &&str| Ok((name.to_string(), std::fs::read(folder.join(name))?));
        Ok(Self { base: base.into(), files: names.iter().map(file).collect::<Result<_>>()? })
    }

    /// One file that stands by itself.
    pub fn file(name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self { base: String::new(), files: BTreeMap::from([(name.into(), bytes.into())]) }
    }

    /// Writes the files into `folder`, and links to those of the base that are not there.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn put_into(&self, folder: &Path) -> Result<()> {
        for (name, bytes) in &self.files {
            let path = folder.join(name);
            // What lies there may be a link into the repository.
            let _ = std::fs::remove_file(&path);
            std::fs::write(path, bytes)?;
        }
        if self.base.is_empty() {
            return Ok(());
        }
        for entry in std::fs::read_dir(repository(&self.base))? {
            let entry = entry?;
            let to = folder.join(entry.file_name());
            if !to.exists() {
                let _ = std::fs::remove_file(&to);
                std::os::unix::fs::symlink(entry.path().canonicalize()?, to)?;
            }
        }
        Ok(())
    }

    /// Stores it in a folder of its own, as [`Input::load`] reads it.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn store(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        if !self.base.is_empty() {
            std::fs::write(folder.join(BASE), &self.base)?;
        }
        self.files.iter().try_for_each(|(name, bytes)| std::fs::write(folder.join(name), bytes))
    }

    /// Reads a stored one.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn load(folder: &Path) -> Result<Self> {
        let mut input = Self::default();
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let (name, bytes) = (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path())?);
            match name.as_str() {
                BASE => input.base = String::from_utf8_lossy(&bytes).trim().into(),
                _ => _ = input.files.insert(name, bytes),
            }
        }
        Ok(input)
    }
}
