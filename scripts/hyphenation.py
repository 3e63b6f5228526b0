"""Where English words may be divided at the end of a line: by the patterns of TeX (Liang 1983), since a headless browser has none.

The patterns are `hyphen.tex`, Plain TeX's, unchanged as its license asks.
"""

import re
from functools import cache
from pathlib import Path

PATTERNS = Path(__file__).resolve().parent.parent / "report" / "template" / "hyphen.tex"

SOFT_HYPHEN = "\u00ad"

# TeX's \lefthyphenmin and \righthyphenmin: the fewest letters before and after a hyphen.
LEAST_BEFORE, LEAST_AFTER = 2, 3


@cache
def patterns():
    """For each pattern's letters the digits between them, and for each exception the places where it may be divided."""
    found = {}
    text = re.sub(r"%.*", "", PATTERNS.read_text(encoding="ascii"))
    between, exceptions = (re.search(rf"\\{name}\{{(.*?)\}}", text, re.DOTALL)[1].split() for name in ("patterns", "hyphenation"))
    for pattern in between:
        # `1f2o` is `fo` with 1, 2 and 0 before, between and after its letters.
        found[re.sub(r"\d", "", pattern)] = [int(digit or 0) for digit in re.split(r"[.a-z]", pattern)]
    return found, {word.replace("-", ""): word.split("-") for word in exceptions}


def syllables(word):
    """The parts of a word of ASCII letters."""
    lower = word.lower()
    found, exceptions = patterns()
    if lower in exceptions:
        ends = [sum(map(len, exceptions[lower][: count + 1])) for count in range(len(exceptions[lower]) - 1)]
    else:
        framed = f".{lower}."
        digits = [0] * (len(framed) + 1)
        for start in range(len(framed)):
            for end in range(start + 1, len(framed) + 1):
                for offset, digit in enumerate(found.get(framed[start:end], [])):
                    digits[start + offset] = max(digits[start + offset], digit)
        # Digit i stands before the i-th character of the framed word, whose first is the dot.
        ends = [i for i in range(LEAST_BEFORE, len(word) - LEAST_AFTER + 1) if digits[i + 1] % 2]
    return [word[start:end] for start, end in zip([0, *ends], [*ends, len(word)])]


def hyphenated(text):
    """A text with a soft hyphen, which shows only at a line's end, wherever a word may be divided. Names, which begin
    with a capital letter, and words that have a hyphen already stay whole."""
    return re.sub(r"(?<![\w&-])[a-z]{5,}(?![\w-])", lambda word: SOFT_HYPHEN.join(syllables(word[0])), text)
