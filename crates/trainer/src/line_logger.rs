//! A logger that writes whole lines, for a notebook or a file: a notebook shows a line only when it ends.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::events::{Event, JobLogger, Logger, Place};

/// Time between two lines about steps.
const PAUSE: Duration = Duration::from_secs(10);

/// Writes a line for each event, but of steps only one in ten seconds and the last. Those of several jobs have their places before them.
pub struct LineLogger<W> {
    writer: Arc<Mutex<W>>,
}

impl<W: Write + Send + 'static> LineLogger<W> {
    /// Lines to `writer`, such as [`std::io::stdout`]. Where they cannot be written they are lost: no job fails for that.
    pub fn new(writer: W) -> Self {
        Self { writer: Arc::new(Mutex::new(writer)) }
    }
}

impl<W: Write + Send + 'static> Logger for LineLogger<W> {
    fn job(&self, place: Option<Place>) -> Box<dyn JobLogger> {
        let place = place.map(|place| place.to_string()).unwrap_or_default();
        Box::new(JobLines { writer: self.writer.clone(), place, last: Instant::now() })
    }
}

/// The lines of one job.
struct JobLines<W> {
    writer: Arc<Mutex<W>>,
    /// Before each line.
    place: String,
    last: Instant,
}

impl<W: Write + Send> JobLogger for JobLines<W> {
    fn log(&mut self, event: &Event) {
        if let Event::Step { loss, steps, .. } = event {
            if self.last.elapsed() < PAUSE && loss.step < *steps {
                return;
            }
            self.last = Instant::now();
        }
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        for line in event.to_string().lines() {
            let _ = writeln!(writer, "{}{line}", self.place);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;
    use crate::record::{StepLoss, Stop};

    /// What stands in the writer after these events of one job.
    fn written(place: Option<Place>, events: &[Event]) -> String {
        let logger = LineLogger::new(Vec::new());
        let mut job = logger.job(place);
        events.iter().for_each(|event| job.log(event));
        let bytes = logger.writer.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn step(step: usize) -> Event<'static> {
        let loss = StepLoss { step, epoch: 0.5, loss: 0.25, learning_rate: 1e-3 };
        Event::Step { loss, steps: 10, tokens_per_second: 1234.5, seconds_left: 61.0 }
    }

    #[test]
    fn of_steps_in_quick_succession_only_the_last_has_a_line() {
        let line = "  step 10/10  epoch  0.50  loss 0.2500  learning rate 1.00e-3   1234 tokens/s  1:01 left\n";
        assert_eq!(written(None, &[step(1), step(2), step(10)]), line);
    }

    #[test]
    fn each_line_of_a_job_among_several_begins_with_its_place() {
        let events = [Event::Resumed { step: 2, steps: 10 }, Event::Ended { stop: Stop::Finished, train_seconds: 5.0 }];
        let expected = "[ 3/10]   going on after step 2 of 10\n[ 3/10]   all steps taken; 0:05 of training\n";
        assert_eq!(written(Some(Place { number: 3, of: 10 }), &events), expected);
    }
}
