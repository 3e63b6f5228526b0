"""Tests of what measures on a GPU machine, as far as they need neither a GPU nor torch: one failure is one row, and the arithmetic."""

import contextlib
import io
import json
import math
import tempfile
import time
import unittest
from pathlib import Path

import gpu_check
from flops import Shape
from gpu_check import Failure, Machine, Row, call, compared, last_json, precisions, share_of_products, table, take


class Rows(unittest.TestCase):
    """Lines of the table."""

    def test_what_is_asked_for_is_met_from_there_on_and_never_by_what_is_no_number(self):
        self.assertTrue(compared("speed", 3.0, 3.0).is_met)
        self.assertFalse(compared("speed", 2.9, 3.0).is_met)
        self.assertTrue(compared("memory", 0.5, 0.5, at_most=True).is_met)
        self.assertFalse(compared("memory", 0.6, 0.5, at_most=True).is_met)
        for at_most in (True, False):
            self.assertFalse(compared("speed", math.nan, 3.0, at_most).is_met)
        self.assertIsNone(compared("speed", 3.0).is_met)

    def test_a_row_stays_one_line_of_four_cells(self):
        row = str(Row("a | b", "one\ntwo", "at least 3", False))
        self.assertEqual(row, "| a \\| b | one two | at least 3 | **NO** |")
        self.assertEqual(len(table("T", [Row("a", "b")]).splitlines()), 5)


class Steps(unittest.TestCase):
    """What goes wrong stays with its step."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.enterContext(contextlib.redirect_stdout(io.StringIO()))  # What it says of its steps.
        self.machine = Machine(self.folder, self.folder, self.folder)

    def fake(self, name, script):
        path = self.folder / name
        path.write_text(f"#!/usr/bin/env bash\n{script}\n")
        path.chmod(0o755)
        return path

    def test_a_step_that_fails_is_a_row_and_those_behind_it_are_taken(self):
        def fails():
            yield Row("half", "1")
            raise Failure("no more")

        def has_a_fault():
            return [][1]

        results = self.folder / "results.md"
        rows = take([("first", fails), ("second", has_a_fault), ("third", lambda: [Row("third", "3")])], results, "T")
        self.assertEqual([row.what for row in rows], ["half", "first", "second", "third"])
        self.assertEqual([row.is_met for row in rows], [None, False, False, None])
        self.assertIn("IndexError", rows[2].found)
        self.assertIn("third", results.read_text())

    def test_a_command_that_fails_is_told_by_its_last_line_and_all_it_said_is_kept(self):
        log = self.folder / "log"
        with self.assertRaisesRegex(Failure, "ended with 3: the reason"):
            call([self.fake("fails", "echo out; echo before >&2; echo the reason >&2; exit 3")], log)
        # In the order of the two streams.
        self.assertEqual(log.read_text().split("\n")[:3], ["before", "the reason", "out"])

    def test_a_command_that_hangs_is_ended_with_its_children(self):
        child = self.folder / "child"
        hangs = self.fake("hangs", f"(sleep 1; touch {child}) & sleep 60")
        began = time.monotonic()
        with self.assertRaisesRegex(Failure, "took more than 0.2 s"):
            call([hangs], self.folder / "log", seconds=0.2)
        self.assertLess(time.monotonic() - began, 10)
        time.sleep(1.2)
        self.assertFalse(child.exists())

    def test_the_last_line_is_the_answer_whatever_libraries_print_before_it(self):
        self.assertEqual(last_json('a warning\n{"speed": 3}\n'), {"speed": 3})
        for output in ("", "no answer"):
            with self.assertRaises(Failure):
                last_json(output)

    def test_a_test_binary_that_ran_no_test_has_not_passed(self):
        for passed, is_met in ((0, False), (7, True)):
            self.fake("trainer-cuda", f"echo 'test result: ok. {passed} passed; 0 failed'")
            (row,) = gpu_check.check(self.machine, "trainer-cuda", self.folder)
            self.assertEqual((row.found, row.is_met), (f"{passed} passed", is_met))

    def test_without_torch_compile_the_other_sides_are_still_measured(self):
        (self.folder / "BERT-base").mkdir()
        (self.folder / "BERT-base" / "lengths.json").write_text(json.dumps([[50] * 32] * gpu_check.STEPS))
        # 32 examples in 0.01 s; the first steps are no part of it.
        replayed = {
            "losses": [0.7], "step_seconds": [1.0] * gpu_check.WARM_UP + [0.01] * 40, "examples": [32] * gpu_check.STEPS,
            "peak_memory": 100 * 2**20,
        }
        self.fake("peft-glue", f"echo '{json.dumps(replayed)}'")

        def peer(command, *arguments):
            if "--compiled" in arguments:
                raise Failure("no compiler")
            return 1e15 if command == "products" else {"losses": [0.71], "speed": 300.0, "memory": 400.0}

        self.machine.peer = peer
        rows = {row.what.split(": ")[1]: row for row in gpu_check.measure(self.machine, "BERT-base", "bf16", ("ours", "eager", "compiled"))}
        self.assertEqual(rows["compiled"].found, "failed: no compiler")
        self.assertEqual(rows["ours"].found, "3200 examples/s, at most 100 MiB")
        self.assertEqual((rows["speed over eager"].found, rows["speed over eager"].is_met), ("10.67", True))
        self.assertEqual((rows["memory over eager"].found, rows["memory over eager"].is_met), ("0.25", True))
        self.assertEqual((rows["first losses differ by"].found, rows["first losses differ by"].is_met), ("1.0e-02", True))
        self.assertIn("share of the card's 1000 TFLOP/s", rows)
        self.assertNotIn("speed over torch.compile", rows)

    def test_the_peer_stays_and_after_a_hang_or_a_crash_the_next_answer_is_a_new_ones(self):
        answers = self.fake(
            "peer",
            """while read -r words; do
                 case $words in
                   *hang*) sleep 60 ;;
                   *crash*) exit 7 ;;
                   *fail*) echo '{"failed": "no such model"}' ;;
                   *) echo "{\\"answer\\": $$}" ;;
                 esac
               done""",
        )
        peer = gpu_check.Peer([answers], self.folder / "peer.log", seconds=1)
        self.addCleanup(peer.end)
        first = peer.ask(["who"])
        with self.assertRaisesRegex(Failure, "the peer's fail: no such model"):
            peer.ask(["fail"])
        self.assertEqual(peer.ask(["who"]), first)
        for word, reason in (("hang", "took more than 1 s"), ("crash", "ended without an answer")):
            with self.assertRaisesRegex(Failure, f"the peer's {word}: {reason}"):
                peer.ask([word])
            self.assertNotEqual(peer.ask(["who"]), first)

    def test_attentions_times_are_a_row_for_each_shape_unless_its_tests_failed(self):
        for end, names in (("ok. 3 passed", ["attention, 16 x 512"]), ("FAILED", ["attention, 16 x 512", "attention"])):
            table = ["test it ... | microseconds | forward, old | new | backward, old | new |", "| --- | ---: | ---: | ---: | ---: |"]
            lines = [*table, "| 16 x 512 | 178.0 | 21.5 | 681.0 | 60.9 |", f"test result: {end}"]
            self.fake("ops-tests", "cat <<'END'\n" + "\n".join(lines) + "\nEND")
            rows = take([("attention", lambda: gpu_check.attention(self.machine, self.folder))], self.folder / "results.md", "T")
            self.assertEqual([row.what for row in rows], names)
            self.assertEqual(rows[0].found, "forward 178.0 by tiles, 21.5; backward 681.0, 60.9 us")

    def test_ncus_table_is_read_behind_what_the_program_printed(self):
        output = """==PROF== Connected
{"losses": []}
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","layer_norm","gpu__time_duration.sum","ns","1,500"
"1","layer_norm","gpu__time_duration.sum","us","2.5"
"2","product","gpu__time_duration.sum","us","1,000.0"
"""
        self.assertEqual(gpu_check.kernel_times(output), {"layer_norm": [1.5, 2.5], "product": [1000.0]})
        with self.assertRaises(Failure):
            gpu_check.kernel_times("==ERROR== no counters")

    def test_precisions_agree_when_their_means_differ_by_no_more_than_the_seeds(self):
        # f32: 0.80 to 0.84, mean 0.82, spread 0.0158; bf16 the same and less.
        script = """
        while [ $# -gt 0 ]; do case $1 in --seed) seed=$2 ;; --precision) precision=$2 ;; esac; shift; done
        less=0; [ $precision = f32 ] || less=$LESS
        score=$(awk "BEGIN { print 0.79 + 0.01 * $seed - $less }")
        echo "{\\"best\\": {\\"scores\\": {\\"accuracy\\": $score, \\"f1\\": $score}}, \\"data\\": {\\"train_used\\": 100}}"
        """
        self.fake("peft-glue", script)
        for less, is_met in (("0.01", True), ("0.02", False)):
            self.machine.environment["LESS"] = less
            scores, difference = precisions(self.machine, "mrpc")
            self.assertIn("f32 0.8200 ± 0.0158", scores.found)
            self.assertEqual((difference.found, difference.is_met), (f"{float(less):.4f}", is_met))

    def test_no_glue_is_a_row_with_what_the_program_said(self):
        self.fake("peft-glue", "echo 'error: mrpc needs GLUE: set GLUE_DIR' >&2; exit 1")
        (row,) = take([("mrpc, bf16 against f32", lambda: precisions(self.machine, "mrpc"))], self.folder / "results.md", "T")
        self.assertIn("set GLUE_DIR", row.found)


class Shares(unittest.TestCase):
    """The share of the card's products, by the operations that bench/flops.py counts."""

    def test_a_speed_whose_operations_are_the_rate_is_a_share_of_one(self):
        shape, lengths = Shape(12, 768, 3072), [[50] * 32] * 3
        # Dense products, 2 * 12 * hidden² a token and layer, forward and for the input's gradient, are most of it: attention and LoRA
        # add a few hundredths, and the first and last layer need less.
        dense = 2 * 2 * 12 * 768**2 * 12 * 50
        share = share_of_products(shape, lengths, speed=1e12 / dense, rate=1e12)
        self.assertGreater(share, 0.85)
        self.assertLess(share, 1.0)
        self.assertAlmostEqual(share_of_products(shape, lengths, 2e12 / dense, 1e12), 2 * share)


if __name__ == "__main__":
    unittest.main()
