//! The losses of a run's steps: all of them as tensors, and the fewer that a record holds.
//!
//! A record holds one for each of at most [`RECORDED`] equal stretches of steps; where that is not every step's, all lie beside it in
//! `losses.safetensors`: the vectors `loss`, `epoch` and `learning_rate`, one number a step.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files;
use crate::integrity::{self, Fault, Numbers, Opened, Origin, Tensors};
use crate::record::StepLoss;

/// How many losses a record holds at most: ten for each point of a chart of losses, in half a megabyte.
pub(crate) const RECORDED: usize = 2000;

/// The losses of a run's folder.
fn path(folder: &Path) -> PathBuf {
    folder.join("losses.safetensors")
}

/// At most `most` losses, each the mean over a stretch of steps and with the number, epoch and learning rate of the stretch's last. Fewer
/// steps than that stay as they are.
pub(crate) fn over_stretches(losses: &[StepLoss], most: usize) -> Vec<StepLoss> {
    let stretch = losses.len().div_ceil(most.max(1)).max(1);
    let mean = |steps: &[StepLoss]| {
        let loss = steps.iter().map(|step| step.loss).sum::<f64>() / steps.len() as f64;
        steps.last().map(|last| StepLoss { loss, ..*last })
    };
    losses.chunks(stretch).filter_map(mean).collect()
}

/// The losses of the steps from the first on as tensors, (steps) each.
pub(crate) fn tensors(losses: &[StepLoss]) -> Tensors {
    let column = |name: &str, of: fn(&StepLoss) -> f64| (name.to_string(), Numbers::f64(losses.iter().map(of)));
    Tensors::from([
        column("loss", |step| step.loss),
        column("epoch", |step| step.epoch),
        column("learning_rate", |step| step.learning_rate),
    ])
}

/// The losses that such tensors hold; else what was found instead.
pub(crate) fn of_tensors(file: &Opened) -> std::result::Result<Vec<StepLoss>, String> {
    let [loss, epoch, learning_rate] = ["loss", "epoch", "learning_rate"].map(|name| file.f64(name));
    let (loss, epoch, learning_rate) = (loss?, epoch?, learning_rate?);
    if epoch.len() != loss.len() || learning_rate.len() != loss.len() {
        return Err(format!("{} losses, {} epochs and {} rates", loss.len(), epoch.len(), learning_rate.len()));
    }
    let steps = loss.into_iter().zip(epoch).zip(learning_rate).enumerate();
    Ok(steps
        .map(|(index, ((loss, epoch), learning_rate))| StepLoss { step: index + 1, epoch, loss, learning_rate })
        .collect())
}

/// Writes all losses into a run's folder, where its record does not hold them.
///
/// # Errors
/// When the file cannot be written, or one of before cannot be removed.
pub(crate) fn write(folder: &Path, origin: &Origin, losses: &[StepLoss]) -> Result<()> {
    let path = path(folder);
    if losses.len() > RECORDED {
        return integrity::write(&path, origin, &(), tensors(losses));
    }
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(Error::File { path, source }),
        _ => Ok(()),
    }
}

/// All losses that lie in a run's folder; `None` where its record holds them.
///
/// # Errors
/// When the file is not whole, or another run's.
pub(crate) fn read(folder: &Path, origin: &Origin) -> Result<Option<Vec<StepLoss>>> {
    let path = path(folder);
    let Some(bytes) = files::read(&path)? else { return Ok(None) };
    let opened = Opened::new(&bytes).and_then(|file| {
        file.content::<()>(origin)?.ok_or(Fault::Damaged("no header".into()))?;
        of_tensors(&file).map_err(Fault::Damaged)
    });
    opened.map(Some).map_err(|fault| fault.at(&path, "the losses of this run"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    fn losses(steps: usize) -> Vec<StepLoss> {
        let loss = |step: usize| StepLoss {
            step,
            epoch: step as f64 / 7.0,
            loss: f64::from((1.0 / step as f32).sin()),
            learning_rate: 1e-3 / step as f64,
        };
        (1..=steps).map(loss).collect()
    }

    #[test]
    fn a_short_run_keeps_every_loss_and_a_long_one_the_means_over_equal_stretches() {
        assert_eq!(over_stretches(&losses(2000), RECORDED), losses(2000));
        let (all, few) = (losses(4500), over_stretches(&losses(4500), RECORDED));
        assert_eq!((few.len(), few[0].step, few[1499].step), (1500, 3, 4500));
        assert!((few[0].loss - (all[0].loss + all[1].loss + all[2].loss) / 3.0).abs() < 1e-15);
        assert_eq!((few[7].epoch, few[7].learning_rate), (all[23].epoch, all[23].learning_rate));
        assert_eq!(over_stretches(&losses(4501), RECORDED).last().unwrap().step, 4501);
        assert!(over_stretches(&[], RECORDED).is_empty());
    }

    #[test]
    fn all_losses_of_a_long_run_lie_in_a_file_of_its_own_which_is_that_runs_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let origin = Origin { run: "rte-lora-1".into(), ..Origin::default() };
        write(folder.path(), &origin, &losses(2001)).unwrap();
        assert_eq!(read(folder.path(), &origin).unwrap(), Some(losses(2001)));
        let other = Origin { run: "rte-lora-2".into(), ..Origin::default() };
        let error = read(folder.path(), &other).unwrap_err().to_string();
        assert!(error.contains("losses.safetensors") && error.contains("rte-lora-1"), "{error}");
        // A shorter run in its place has them in its record.
        write(folder.path(), &origin, &losses(2000)).unwrap();
        assert_eq!(read(folder.path(), &origin).unwrap(), None);
        write(folder.path(), &origin, &losses(3)).unwrap();
    }
}
