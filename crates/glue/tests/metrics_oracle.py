"""Makes metrics_oracle.json: metrics of pseudo-random and of degenerate labels by scikit-learn and scipy.

Run it in this folder:
  pip install --require-hashes --requirement ../../../interop/oracles.txt && python metrics_oracle.py
"""

import json
import math
import pathlib
import random
import warnings

import scipy
import sklearn
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

warnings.simplefilter("ignore")  # The libraries warn of the degenerate cases.
random.seed(1)
labels = []
for classes, count in [(2, 10), (2, 200), (3, 50), (3, 500), (2, 1)]:
    gold = [random.randrange(classes) for _ in range(count)]
    labels.append((classes, [g if random.random() < 0.7 else random.randrange(classes) for g in gold], gold))
# All of one class on one side or both; nothing right; a class that is never predicted.
labels += [(2, [0, 0, 0], [0, 0, 0]), (2, [1, 1, 1], [1, 1, 1]), (2, [0, 0, 0, 0], [0, 1, 1, 0]), (2, [1, 1, 1], [1, 0, 1]),
           (2, [1, 0, 1, 0], [0, 1, 0, 1]), (3, [0, 1, 1, 0, 1], [0, 1, 2, 2, 1]), (3, [2, 2, 2], [0, 1, 2])]
cases = []
for classes, predicted, gold in labels:
    case = {"predicted": predicted, "gold": gold, "accuracy": accuracy_score(gold, predicted),
            "matthews": float(matthews_corrcoef(gold, predicted))}
    if classes == 2:
        case["f1"] = float(f1_score(gold, predicted, zero_division=0))
    cases.append(case)
pairs = []
for count, step in [(5, None), (100, 0.2), (1000, 0.25)]:
    gold = [random.uniform(0, 5) if step is None else round(random.uniform(0, 5) / step) * step for _ in range(count)]
    predicted = [g + random.gauss(0, 1) for g in gold]
    if step:
        predicted = [round(p / step) * step for p in predicted]
    pairs.append((predicted, gold))
# Constant predictions (0.1: the mean of equal numbers need not equal them), exact agreement, exact reversal, heavy ties.
pairs += [([0.1] * 7, [1.0, 2.0, 3.0, 4.0, 5.0, 0.0, 1.0]), ([2.5] * 3, [0.0, 5.0, 1.0]), ([1.0, 2.0, 4.0], [1.0, 2.0, 4.0]),
          ([4.0, 2.0, 1.0], [0.0, 1.0, 5.0]), ([1.0, 1.0, 1.0, 2.0, 2.0], [0.0, 5.0, 5.0, 5.0, 0.0])]


def number(value):
    """None for what is not a number, which JSON lacks."""
    return None if math.isnan(value) else float(value)


values = [{"predicted": predicted, "gold": gold, "pearson": number(pearsonr(predicted, gold)[0]),
           "spearman": number(spearmanr(predicted, gold)[0])} for predicted, gold in pairs]
out = {"versions": {"scikit-learn": sklearn.__version__, "scipy": scipy.__version__}, "classes": cases, "values": values}
pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(out) + "\n")
