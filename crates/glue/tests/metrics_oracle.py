"""Makes metrics_oracle.json: metrics of pseudo-random labels by scikit-learn and scipy."""

import json
import pathlib
import random

import scipy
import sklearn
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

random.seed(1)
cases = []
for classes, count in [(2, 10), (2, 200), (3, 50), (3, 500), (2, 1)]:
    gold = [random.randrange(classes) for _ in range(count)]
    predicted = [g if random.random() < 0.7 else random.randrange(classes) for g in gold]
    case = {"predicted": predicted, "gold": gold, "accuracy": accuracy_score(gold, predicted),
            "matthews": float(matthews_corrcoef(gold, predicted))}
    if classes == 2:
        case["f1"] = float(f1_score(gold, predicted, zero_division=0))
    cases.append(case)
values = []
for count, step in [(5, None), (100, 0.2), (1000, 0.25)]:
    gold = [random.uniform(0, 5) if step is None else round(random.uniform(0, 5) / step) * step for _ in range(count)]
    predicted = [g + random.gauss(0, 1) for g in gold]
    if step:
        predicted = [round(p / step) * step for p in predicted]
    values.append({"predicted": predicted, "gold": gold, "pearson": float(pearsonr(predicted, gold)[0]),
                   "spearman": float(spearmanr(predicted, gold)[0])})
out = {"versions": {"scikit-learn": sklearn.__version__, "scipy": scipy.__version__}, "classes": cases, "values": values}
pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(out) + "\n")
