"""Tests of the benchmark's arithmetic and of how it keeps results; they need neither torch nor the peer.

    python3 -m unittest discover --start-directory bench
"""

import json
import tempfile
import unittest
from pathlib import Path

import bench
import results
from bench import Measure
from flops import Shape, dense_products, lora_flops
from sides import BenchError


class Operations(unittest.TestCase):
    """The operations that a LoRA step needs."""

    def test_a_layer_of_width_2_counted_by_hand(self):
        # Width 2, feed-forward 3, rank 1; sequences of 1 and 2 tokens: 3 tokens, 2 first tokens, 1 + 2 pairs of a first and any token.
        forward = (
            2 * (2 * 3 * 2 * 2)  # key, value: 3 tokens, 2 x 2
            + 2 * (2 * 2 * 2 * 2)  # query, output: 2 first tokens
            + 2 * (2 * 2 * 2 * 3)  # feed-forward, up and down
            + 2 * (2 * 3 * 2)  # scores, context
            + 2 * (2 * 3 * 2)  # x A and then B, in value
            + 2 * (2 * 2 * 2)  # and in query
        )
        backward = (
            2 * 2 * 2 * 2  # through the output; not through query, key and value: below are only embeddings
            + 2 * (2 * 2 * 2 * 3)  # through the feed-forward
            + 3 * (2 * 3 * 2)  # to the attention's scores, value and query, not to its key
            + 3 * (2 * 3 * 2)  # to B, to x A, to A; not to x: in value
            + 3 * (2 * 2 * 2)  # and in query
        )
        pooler = 2 * (2 * 2 * 2 * 2)  # 2 sequences, 2 x 2, forward and through it
        classifier = 3 * (2 * 2 * 2 * 5)  # 2 sequences, 2 x 5, forward, through it and to its weight
        self.assertEqual(lora_flops(Shape(1, 2, 3), [1, 2], rank=1, labels=5), forward + backward + pooler + classifier)

    def test_a_layer_more_adds_a_whole_forward_and_backward_pass(self):
        shape, lengths = Shape(2, 2, 3), [1, 2]
        added = lora_flops(shape._replace(layers=3), lengths, 1) - lora_flops(shape, lengths, 1)
        dense, attention, branches = 4 * 24 + 2 * 36, 2 * 20, 2 * 24
        self.assertEqual(added, dense + attention + branches + dense + 2 * attention + 2 * branches)

    def test_the_dense_products_are_the_dense_operations(self):
        shape, tokens = Shape(1, 384, 1536), 100
        forward = sum(2 * times * rows * inner * columns for times, rows, inner, columns in dense_products(shape, tokens))
        self.assertEqual(forward, 2 * tokens * 12 * 384 * 384)

    def test_a_shape_is_read_from_a_checkpoint(self):
        with tempfile.TemporaryDirectory() as folder:
            sizes = {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536}
            Path(folder, "config.json").write_text(json.dumps(sizes))
            self.assertEqual(Shape.of(Path(folder)), Shape(6, 384, 1536))


class Ratios(unittest.TestCase):
    """What becomes of pairs."""

    def test_the_ratio_is_the_median_of_the_pairs_ratios(self):
        compared = results.compare([(10, 5), (30, 10), (8, 8)])
        self.assertEqual((compared["ours"], compared["peer"], compared["ratio"]), (10, 8, 2))
        self.assertEqual([run["ratio"] for run in compared["runs"]], [2, 3, 1])

    def test_where_less_is_better_the_ratio_is_the_peers_over_ours(self):
        self.assertEqual(results.compare([(50, 100)], smaller_wins=True)["ratio"], 2)

    def test_targets_bound_speeds_from_below_and_costs_from_above(self):
        self.assertEqual(results.met("same_work.lora.f32", 1.7), ("≥ 1.7", "yes"))
        self.assertEqual(results.met("same_work.lora.f32", 1.69), ("≥ 1.7", "no"))
        self.assertEqual(results.met("cost.rank64_over_rank1", 1.2), ("≤ 1.15", "no"))
        self.assertEqual(results.met("inference.lora.merged", 1.0), ("", ""))

    def test_loss_curves_differ_by_their_worst_step(self):
        self.assertAlmostEqual(results.largest_difference([1.0, 2.2], [1.0, 2.0]), 0.1)
        with self.assertRaises(ValueError):
            results.largest_difference([1.0], [1.0, 2.0])


class Rounds(unittest.TestCase):
    """Who runs, and what is made of it."""

    measures = [
        Measure("fast", "ours", "peer", loss_tolerance=1e-3),
        Measure("memory", "ours", "peer", unit="MiB", value="memory", smaller_wins=True),
    ]

    def participant(self, name, **values):
        """A participant that notes that it ran."""

        def run():
            self.order.append(name)
            return values

        return run

    def fight(self, measures, losses, repeat=2):
        """Rounds against a peer with these losses; `idle` is asked for by no measure."""
        self.order = []
        participants = {
            "ours": self.participant("ours", speed=4, memory=10, losses=[1.0, 0.5]),
            "peer": self.participant("peer", speed=2, memory=30, losses=losses),
            "idle": self.participant("idle"),
        }
        return bench.fight(measures, participants, repeat)

    def setUp(self):
        self.said, bench.say = bench.say, lambda text: None

    def tearDown(self):
        bench.say = self.said

    def test_the_sides_alternate_and_share_their_runs_among_measures(self):
        found = self.fight(self.measures, [1.0, 0.5])
        self.assertEqual(self.order, ["ours", "peer"] * 2)
        self.assertEqual((found["fast"]["ratio"], found["memory"]["ratio"]), (2, 3))
        self.assertEqual((found["fast"]["steps"], found["fast"]["loss_difference"]), (2, 0))
        self.assertNotIn("loss_difference", found["memory"])

    def test_other_losses_end_the_measure_after_one_round(self):
        for losses in ([1.0, 0.501], [1.0, float("nan")]):
            with self.assertRaisesRegex(BenchError, "fast"):
                self.fight(self.measures, losses)
            self.assertEqual(self.order, ["ours", "peer"])

    def test_a_measure_of_ours_alone_has_no_peer(self):
        found = self.fight([Measure("cost", "ours", "peer", alone=True)], [1.0, 0.5])["cost"]
        self.assertEqual((found["ours"], found["peer"], found["ratio"]), (4, None, 2))


class Kept(unittest.TestCase):
    """What is kept between runs."""

    def head(self, commit):
        """What is known before anything is measured."""
        versions = {"torch": "2", "rustc": "rustc 1.95.0 (x)"}
        about = {"commit": commit, "processor": "P", "threads": 2, "versions": versions}
        return {"date": "2025-01-01", "repeat": 1, "environment": about}

    def measure(self, ours):
        """A measure against a peer of 10."""
        return {"unit": "examples/s", **results.compare([(ours, 10)])}

    def test_new_measures_replace_their_own_names_only(self):
        old = {"date": "a", "measures": {"x": 1, "y": 2}, "growth": {"rank": [1]}}
        merged = results.merge(old, {"date": "b", "measures": {"y": 3}})
        self.assertEqual(merged, {"date": "b", "measures": {"x": 1, "y": 3}, "growth": {"rank": [1]}})

    def test_a_partial_run_keeps_the_rest_with_its_commit_and_a_whole_run_starts_anew(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            first = results.Store(self.head("aaa"), keep=False, folder=folder)
            first.add(measures={"same_work.lora.f32": self.measure(20), "memory.lora": self.measure(15)})
            results.Store(self.head("bbb"), keep=True, folder=folder).add(measures={"memory.lora": self.measure(30)})
            kept = json.loads((folder / "results.json").read_text())["measures"]
            self.assertEqual({name: (entry["ratio"], entry["commit"]) for name, entry in kept.items()},
                             {"same_work.lora.f32": (2, "aaa"), "memory.lora": (3, "bbb")})  # fmt: skip
            results.Store(self.head("ccc"), keep=False, folder=folder).add(measures={"memory.lora": self.measure(30)})
            self.assertEqual(list(json.loads((folder / "results.json").read_text())["measures"]), ["memory.lora"])
            self.assertEqual(sorted(path.name for path in folder.iterdir()), ["results.json", "results.md"])

    def test_the_page_shows_measures_with_targets_losses_and_growth(self):
        with tempfile.TemporaryDirectory() as name:
            store = results.Store(self.head("aaa"), keep=False, folder=Path(name))
            cost = {**self.measure(10.5), "peer": None, "unit": "ms/token"}
            speed = {**self.measure(18), "steps": 50, "loss_difference": 2e-6}
            store.add(measures={"cost.rank64_over_rank1": cost, "same_work.lora.f32": speed})
            row = {"name": 64, "tokens": 2048, "ms": 650.5, "tokens_per_s": 3148.3, "memory": 900.0}
            store.add(growth={"rank": [row]})
            page = (Path(name) / "results.md").read_text()
        for line in [
            "torch 2, rustc 1.95.0 (x).",
            "| `same_work.lora.f32` | 18 | 10 | examples/s | 1.80 | 1.80–1.80 | 1 | ≥ 1.7 | yes | aaa |",
            "| `cost.rank64_over_rank1` | 10.5 | – | ms/token | 1.05 | 1.05–1.05 | 1 | ≤ 1.15 | yes | aaa |",
            "| `same_work.lora.f32` | 50 | 2.0e-06 |",
            "| 64 | 2,048 | 650 | 3,148 | 900 |",
        ]:
            self.assertIn(line, page)
        self.assertLess(page.index("same_work.lora.f32"), page.index("cost.rank64_over_rank1"))

    def test_measures_are_chosen_by_the_start_of_their_name(self):
        self.assertTrue(results.selected("same_work.lora.bf16", []))
        self.assertTrue(results.selected("same_work.lora.bf16", ["own_best", "same_work.lora"]))
        self.assertFalse(results.selected("same_work.full.f32", ["own_best", "same_work.lora"]))


if __name__ == "__main__":
    unittest.main()
