//! `peft-glue records`: whether records are as they were written, and those of before in the present format.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Subcommand;
use trainer::results;
use trainer::results::Condition;

use crate::arguments::path;

#[derive(Subcommand)]
pub(crate) enum RecordsCommand {
    /// Say of each record whether it is whole, old (of before records had a version and a digest of their content) or damaged.
    Check {
        /// Records, or folders of records or of runs [default: those of results and runs that are there].
        #[arg(value_parser = path())]
        places: Vec<PathBuf>,
    },
    /// Write the old records of a folder in the present format; their numbers stay as they are.
    Migrate {
        /// A folder of records or of runs.
        #[arg(value_parser = path())]
        folder: PathBuf,
    },
}

pub(crate) fn perform(command: &RecordsCommand) -> Result<ExitCode> {
    match command {
        RecordsCommand::Check { places } => check(places),
        RecordsCommand::Migrate { folder } => migrate(folder),
    }
}

/// One line for each record, and how many are in which condition. Damaged ones make it fail.
fn check(places: &[PathBuf]) -> Result<ExitCode> {
    let (mut whole, mut old, mut damaged) = (0, 0, 0);
    for file in files(places)? {
        let (said, count, reason) = match results::check(&file)? {
            Condition::Whole => ("whole", &mut whole, None),
            Condition::Old => ("old", &mut old, None),
            Condition::Damaged(reason) => ("damaged", &mut damaged, Some(reason)),
        };
        *count += 1;
        println!("{said:8} {}", file.display());
        reason.iter().for_each(|reason| eprintln!("Error: {reason}"));
    }
    println!("{} records: {whole} whole, {old} old, {damaged} damaged", whole + old + damaged);
    if old > 0 {
        println!("peft-glue records migrate FOLDER writes old ones in the present format");
    }
    Ok(if damaged == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes what is old; what is damaged is told and keeps none of the others from it.
fn migrate(folder: &Path) -> Result<ExitCode> {
    let (mut migrated, mut status) = (0, ExitCode::SUCCESS);
    for file in files(&[folder.into()])? {
        match results::migrate(&file) {
            Ok(true) => {
                migrated += 1;
                println!("{}", file.display());
            }
            Ok(false) => {}
            Err(error) => {
                eprintln!("Error: {error}");
                status = ExitCode::FAILURE;
            }
        }
    }
    println!("{migrated} records are now in the present format");
    Ok(status)
}

/// The records in these places, or in the usual ones.
fn files(places: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let usual = || ["results", "runs"].into_iter().map(PathBuf::from).filter(|folder| folder.is_dir()).collect();
    let places = if places.is_empty() { usual() } else { places.to_vec() };
    let mut files = Vec::new();
    for place in &places {
        if !place.exists() {
            bail!(
                "{}: there is no such file or folder; name a record, or a folder of records or of runs",
                place.display()
            );
        }
        files.extend(if place.is_dir() { results::files(place)? } else { vec![place.clone()] });
    }
    if files.is_empty() {
        let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        bail!("no record in {}; name a record, or a folder of records or of runs", places.join(" or "));
    }
    Ok(files)
}
