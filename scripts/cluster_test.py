"""Makes a study on a cluster of a head and two nodes, processes of this machine, of which one is killed in mid-run; and compares its records
with those that the program makes alone: cluster_test.py PROGRAM, with ray installed."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ray.cluster_utils import Cluster

PROGRAM = sys.argv[1] if len(sys.argv) > 1 else "target/debug/peft-glue"
SCRIPTS = Path(__file__).resolve().parent
RECIPE = """
task = "synthetic"
model = "all-MiniLM-L6-v2"
seeds = [1]
[method]
name = "bitfit"
[settings]
learning_rate = 1e-3
epochs = 8
train_limit = 256
batch_size = 8
"""
STUDY = """
recipes = ["base.toml"]
seeds = [1, 2]
[vary]
settings.learning_rate = [1e-3, 3e-3]
"""


def records(runs: Path) -> dict[str, dict]:
    """What a run's record says of its result, by the run's folder."""
    found = {}
    for path in sorted(runs.glob("*/record.json")):
        record = json.loads(path.read_text())
        found[path.parent.name] = {name: record[name] for name in ("run", "best", "evaluations", "losses", "stop", "parameters")}
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "base.toml").write_text(RECIPE)
        study = folder / "study.toml"
        study.write_text(STUDY)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        runs = folder / "runs"
        driver = subprocess.Popen(
            [sys.executable, SCRIPTS / "ray_study.py", study, "--program", PROGRAM, "--runs", runs, "--address", cluster.address]
        )
        deadline = time.monotonic() + 300
        while len(list(runs.glob("*/inputs.json"))) < 2:
            assert driver.poll() is None, "the study ended before two of its runs had begun"
            assert time.monotonic() < deadline, "no two runs began"
            time.sleep(0.05)
        cluster.remove_node(nodes[0], allow_graceful=False)
        print("[test] one of two nodes was killed while both trained", flush=True)
        killed_at = len(records(runs))
        assert killed_at < 2, "the runs ended before the node was killed"
        cluster.add_node(num_cpus=1)
        status = driver.wait(timeout=600)
        cluster.shutdown()
        assert status == 0, f"the study ended with exit status {status}"
        alone = folder / "alone"
        subprocess.run([PROGRAM, "study", "run", study, "--runs", alone, "--device", "cpu"], check=True, stdout=subprocess.DEVNULL)
        found, expected = records(runs), records(alone)
        assert len(expected) == 4 and found == expected, "the cluster's records differ from those made alone"
        print("[test] 4 records, equal to those that were made alone")


if __name__ == "__main__":
    main()
