"""Reads with TensorBoard itself what a run writes for it: tensorboard_test.py PROGRAM, with tensorboard installed."""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROGRAM = sys.argv.pop(1) if len(sys.argv) > 1 else "target/debug/peft-glue"
RUN = ["run", "--task", "synthetic", "--method", "bitfit", "--model", "all-MiniLM-L6-v2", "--train-limit", "32", "--batch-size", "8",
       "--epochs", "2", "--json"]


class TensorBoardTest(unittest.TestCase):
    def test_tensorboard_shows_the_losses_rates_and_scores_of_the_record(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            events, runs = f"{folder}/events", f"{folder}/runs"
            printed = subprocess.run([PROGRAM, *RUN, "--runs", runs, "--tensorboard", events], check=True, capture_output=True).stdout
            record = json.loads(printed)
            [of_run] = Path(events).iterdir()
            self.assertEqual(of_run.name, next(path.name for path in Path(runs).iterdir() if path.is_dir() and path.name != "tokens"))
            accumulator = EventAccumulator(str(of_run))
            accumulator.Reload()

        def scalars(tag: str) -> list[tuple[int, float]]:
            return [(scalar.step, scalar.value) for scalar in accumulator.Scalars(tag)]

        def assert_equal(tag: str, expected: list[tuple[int, float]]) -> None:
            found = scalars(tag)
            self.assertEqual([step for step, _ in found], [step for step, _ in expected], tag)
            for (_, value), (_, of_record) in zip(found, expected, strict=True):
                self.assertAlmostEqual(value, of_record, delta=1e-6 * max(1.0, abs(of_record)), msg=tag)

        losses, evaluations = record["losses"], record["evaluations"]
        self.assertEqual(len(losses), 8)
        assert_equal("train/loss", [(loss["step"], loss["loss"]) for loss in losses])
        assert_equal("train/learning_rate", [(loss["step"], loss["learning_rate"]) for loss in losses])
        assert_equal("validation/loss", [(evaluation["step"], evaluation["loss"]) for evaluation in evaluations])
        assert_equal("validation/accuracy", [(evaluation["step"], evaluation["scores"]["accuracy"]) for evaluation in evaluations])
        self.assertEqual(len(scalars("train/tokens_per_second")), 8)


if __name__ == "__main__":
    unittest.main()
