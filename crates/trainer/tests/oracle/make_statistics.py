"""Makes statistics.json: intervals, tests, powers and resamples by scipy, statsmodels and deepsig, for the test of `trainer::statistics`.

The multi-bootstrap is compared with all of its resamples, each as often as the others, of few seeds and examples; and with scipy's bootstrap
where seeds or examples alone are resampled. Run it in this folder:
  pip install --require-hashes --requirement ../../../../interop/oracles.txt && python make_statistics.py
"""

import itertools
import json
import warnings
from pathlib import Path

import deepsig
import numpy
import scipy
import statsmodels
from deepsig.aso import compute_violation_ratio
from scipy import stats
from scipy.integrate import quad
from scipy.optimize import brentq
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower, TTestPower

LEVEL, POWER = 0.05, 0.8
random = numpy.random.default_rng(1)
warnings.simplefilter("ignore")  # deepsig's, of equal scores.


def scores(mean, deviation, count):
    """Rounded as the accuracies of a set of 408 examples."""
    return (numpy.round(random.normal(mean, deviation, count) * 408) / 408).tolist()


def estimate(values):
    values = numpy.array(values)
    low, high = stats.t.interval(1 - LEVEL, len(values) - 1, values.mean(), stats.sem(values))
    return {"values": values.tolist(), "mean": values.mean(), "low": low, "high": high}


def difference(a, b, paired):
    test = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    interval = test.confidence_interval(1 - LEVEL)
    return {"a": a, "b": b, "paired": paired, "degrees_of_freedom": test.df, "p": test.pvalue, "low": interval.low, "high": interval.high}


def smallest_paired(count):
    """In deviations of a pair's difference; the values have the deviation 1."""
    values = numpy.arange(count, dtype=float)
    values = (values - values.mean()) / values.std(ddof=1)
    return {"a": values.tolist(), "b": [0.0] * count, "paired": True,
            "smallest": TTestPower().solve_power(nobs=count, alpha=LEVEL, power=POWER)}


def smallest_apart(count):
    """Where both sides are as many and spread as much, Welch's test has the power of Student's."""
    values = smallest_paired(count)["a"]
    return {"a": values, "b": [value + 3 for value in values], "paired": False,
            "smallest": TTestIndPower().solve_power(nobs1=count, alpha=LEVEL, power=POWER)}


def smallest_apart_by_integral(a, b):
    """Of any sides, with Welch's degrees of freedom; by scipy's quadrature, as its noncentral t is not a number at some shifts."""
    freedom = stats.ttest_ind(a, b, equal_var=False).df
    critical, spread = stats.t.ppf(1 - LEVEL / 2, freedom), stats.chi(freedom, scale=freedom ** -0.5)
    tails = lambda u, shift: stats.norm.sf(critical * u - shift) + stats.norm.cdf(-critical * u - shift)
    found = lambda shift: quad(lambda u: spread.pdf(u) * tails(u, shift), 0, 12, points=[1], epsabs=1e-12, limit=500)[0]
    error = numpy.sqrt(numpy.var(a, ddof=1) / len(a) + numpy.var(b, ddof=1) / len(b))
    return {"a": a, "b": b, "paired": False, "smallest": error * brentq(lambda shift: found(shift) - POWER, 0, 50, xtol=1e-10)}


def order(a, b):
    return {"a": a, "b": b, "ratio": compute_violation_ratio(scores_a=a, scores_b=b, dt=1e-5),
            "bound": float(deepsig.aso(a, b, num_bootstrap_iterations=1000, seed=1, show_progress=False))}


def every_resample(a, b, paired, with_examples):
    """a, b: for each seed a value for each example, `(seeds, examples)`; a run's score is their mean."""
    a, b = numpy.array(a), numpy.array(b)
    draws = lambda count: list(itertools.product(range(count), repeat=count))
    examples = draws(a.shape[1]) if with_examples else [range(a.shape[1])]
    found = []
    for first in draws(len(a)):
        for second in [first] if paired else draws(len(b)):
            by_example = a[list(first)].mean(axis=0) - b[list(second)].mean(axis=0)
            found += [by_example[list(rows)].mean() for rows in examples]
    found = numpy.array(found)
    low, high = numpy.quantile(found, [LEVEL / 2, 1 - LEVEL / 2])
    p = 2 * min((found <= 1e-12).mean(), (found >= -1e-12).mean())
    return {"a": a.tolist(), "b": b.tolist(), "paired": paired, "with_examples": with_examples, "deviation": found.std(),
            "low": low, "high": high, "p": min(p, 1.0)}


def resampled_by_scipy(a, b, with_examples):
    """One of both ways alone: of one run each, examples; of several runs, seeds."""
    a, b = numpy.array(a), numpy.array(b)
    differences = (a - b).mean(axis=0 if with_examples else 1)
    found = stats.bootstrap((differences,), numpy.mean, method="percentile", n_resamples=100_000, rng=random)
    return {"a": a.tolist(), "b": b.tolist(), "paired": True, "with_examples": with_examples,
            "deviation": found.standard_error, "low": found.confidence_interval.low, "high": found.confidence_interval.high, "p": None}


samples = [(scores(0.87, 0.01, 5), scores(0.85, 0.01, 5)), (scores(0.87, 0.02, 3), scores(0.86, 0.005, 3)),
           (scores(0.4, 0.25, 4), scores(0.59, 0.01, 4)), (scores(0.7, 0.1, 20), scores(0.72, 0.1, 20)), ([0.9, 0.8], [0.7, 0.75])]
apart = [(scores(0.87, 0.01, 5), scores(0.85, 0.03, 3)), (scores(0.6, 0.2, 2), scores(0.5, 0.01, 9))]
cells = lambda seeds, examples, mean: random.normal(mean, 1, (seeds, examples)).tolist()
right = lambda examples, share: [(random.random(examples) < share).astype(float).tolist()]
out = {
    "versions": {"scipy": scipy.__version__, "statsmodels": statsmodels.__version__, "deepsig": "1.2.8", "numpy": numpy.__version__},
    "means": [estimate(values) for pair in samples for values in pair],
    "differences": [difference(a, b, paired) for a, b in samples for paired in (True, False)] + [difference(a, b, False) for a, b in apart],
    "smallest": [smallest_paired(count) for count in (2, 3, 4, 5, 10, 30)] + [smallest_apart(count) for count in (2, 3, 5, 20)]
                + [smallest_apart_by_integral(a, b) for a, b in apart + [samples[2]]],
    "mcnemar": [{"only_first": b, "only_second": c, "p": mcnemar([[0, b], [c, 0]], exact=True).pvalue}
                for b, c in [(0, 0), (1, 0), (5, 0), (0, 6), (10, 10), (12, 25), (200, 260), (1200, 1331)]],
    "holm": [{"p": p, "corrected": multipletests(p, method="holm")[1].tolist()}
             for p in [[0.01], [0.04, 0.01, 0.03], [0.2, 0.001, 0.9, 0.02, 0.02], [0.5, 0.5, 0.6], random.random(30).tolist()]],
    "orders": [order(a, b) for a, b in samples[:4] + apart],
    "resamples": [every_resample(cells(3, 4, 0.6), cells(3, 4, 0), True, True), every_resample(cells(3, 3, 0.2), cells(2, 3, 0), False, True),
                  every_resample(cells(5, 2, 0.5), cells(5, 2, 0), True, False), every_resample(cells(4, 2, 0), cells(3, 2, 0), False, False),
                  resampled_by_scipy(right(300, 0.85), right(300, 0.8), True), resampled_by_scipy(cells(6, 3, 0.1), cells(6, 3, 0), False)],
}
Path(__file__).with_name("statistics.json").write_text(json.dumps(out, default=float, allow_nan=False) + "\n")
