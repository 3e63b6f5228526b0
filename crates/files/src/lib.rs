//! Files and folders that are whole or not there, whenever the process that writes them is killed; locks between processes; free space.
//!
//! What is written lies beside its place first, under a name that begins with `.peft-glue-`, and is renamed when it is on the disk. What a
//! killed process leaves under such a name, the next one that writes there removes; what a living one writes stays, as it holds a lock on it.
//!
//! ```
//! # fn main() -> std::io::Result<()> {
//! # let folder = tempfile::tempdir()?;
//! let (record, adapter) = (folder.path().join("runs/record.json"), folder.path().join("adapter"));
//! files::write(&record, b"{}")?;
//! files::write_folder(&adapter, &[("weights", b"1 2 3"), ("config", b"r = 8")])?;
//! let files::Attempt::Taken(lock) = files::try_lock(&folder.path().join("lock"))? else { panic!("somebody has it") };
//! drop(lock);
//! # Ok(())
//! # }
//! ```

// The Rust of the README is compiled with this crate's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod free_space;
mod locks;
mod temporary;
mod writers;

pub use free_space::free_space;
pub use locks::{Attempt, Lock, is_locked, try_lock};
pub use temporary::sweep;
pub use writers::{check_writable, write, write_folder};
