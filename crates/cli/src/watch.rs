//! `peft-glue watch`: how far the runs of a folder are, from another terminal.

use std::io::{IsTerminal, stdout};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use trainer::progress::{self, Progress, State};

/// Between two looks at the folder.
const PAUSE: Duration = Duration::from_secs(2);
/// As many ended runs are shown, the last ones; how many there are is said.
const ENDED: usize = 20;

/// Shows the runs until none is under way, on a terminal in the place of what was shown before, elsewhere once for each change.
pub(crate) fn perform(runs: &Path, once: bool) -> Result<()> {
    let mut shown = None;
    loop {
        let all = progress::of_folder(runs)?;
        if shown.as_ref() != Some(&all) {
            if stdout().is_terminal() && !once {
                print!("\x1b[H\x1b[2J"); // To the upper left, and nothing below.
            }
            show(&all);
        }
        if once || all.iter().all(|run| run.state != State::UnderWay) {
            return Ok(());
        }
        shown = Some(all);
        sleep(PAUSE);
    }
}

fn show(all: &[Progress]) {
    let (ended, open): (Vec<_>, Vec<_>) =
        all.iter().partition(|run| matches!(run.state, State::Ended(stop) if stop.is_final()));
    let left_out = ended.len().saturating_sub(ENDED);
    if left_out > 0 {
        println!("{left_out} ended runs are not shown");
    }
    ended[left_out..].iter().chain(&open).for_each(|run| println!("{}", line(run)));
}

fn line(run: &Progress) -> String {
    let Progress { folder, run, state, step, loss, best } = run;
    let name = run.clone().unwrap_or_else(|| folder.clone());
    let state = match state {
        State::UnderWay => "under way".to_string(),
        State::Ended(stop) => stop.to_string(),
        State::Left => "left by its process; asked for again, it goes on".to_string(),
    };
    let loss = loss.map(|loss| format!(", loss {loss:.4}")).unwrap_or_default();
    let best = best.as_ref().map(|(epoch, scores)| {
        let scores: Vec<String> = scores.0.iter().map(|(metric, value)| format!("{metric} {value:.4}")).collect();
        format!(", best at epoch {epoch:.2}: {}", scores.join(", "))
    });
    format!("{name:44} step {step}{loss}{}  {state}", best.unwrap_or_default())
}
