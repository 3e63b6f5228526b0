"""What the outputs of a notebook's code cells show, on the screen and on paper."""

import re
from html import escape

import plotly.io
from markup import markdown
from markupsafe import Markup
from nbconvert.filters import ansi2html, strip_ansi
from stills import PLOTLY, SVG, text_of

# Which form of a result is shown: the first of these that it has.
SCREEN_FORMS = [PLOTLY, "text/html", SVG, "image/png", "text/markdown", "text/plain"]
PAPER_FORMS = [SVG, "image/png", "text/html", "text/markdown", "text/plain"]

# Of a long printed output, paper shows this many lines of its beginning and of its end; fewer where it only leads to a result.
LONG_ENDS, SHORT_ENDS = (3, 5), (2, 1)


def shorten(text, ends=LONG_ENDS):
    """A long text without its middle, which a line in brackets stands for; `ends` has the lines kept before and after it."""
    first, last = ends
    lines = text.splitlines()
    left_out = len(lines) - first - last
    if left_out <= 1:
        return text
    return "\n".join([*lines[:first], f"[… {left_out} more lines …]", *lines[-last:]]) + "\n"


def interactive(data):
    """A chart's HTML: drawn by the page's plotly.js, named by its words; where scripts may not run, its still."""
    figure, words = data[PLOTLY], escape(text_of(data.get("text/plain", "a chart")))
    drawn = plotly.io.to_html(figure, config=figure.get("config"), include_plotlyjs=False, full_html=False, validate=False)
    still = text_of(data.get(SVG, ""))
    return f'<div role="figure" aria-label="{words}">{drawn}</div><noscript>{still}</noscript>'


def is_result(output):
    """Whether an output is what a cell shows, rather than what it prints or an error."""
    return output.output_type in ("execute_result", "display_data")


def blocks(output, forms, ends=LONG_ENDS):
    """The (kind, content) to show for one output: at most one, none where nothing of it can be seen."""
    on_paper = forms is PAPER_FORMS
    if output.output_type == "stream":
        text = text_of(output.text)
        kind = "warnings" if output.name == "stderr" else "text"
        return [(kind, Markup(ansi2html(shorten(text, ends) if on_paper else text)))] if text.strip() else []
    if output.output_type == "error":
        return [("warnings", strip_ansi("\n".join(output.traceback)))]
    form = next((form for form in forms if form in output.data), None)
    if form is None:
        return []
    if form == PLOTLY:
        return [("figure", Markup(interactive(output.data)))]
    content = text_of(output.data[form])
    # A result that acts by a script, and has no picture of what it does, is nothing on paper.
    acts = form == "text/html" and re.search(r"<script\b", content, re.IGNORECASE)
    if not content.strip() or (acts and on_paper):
        return []
    if form in ("text/html", SVG):
        return [("html" if form == "text/html" else "figure", Markup(content))]
    if form == "image/png":
        return [("figure", Markup(f'<img alt="" src="data:image/png;base64,{content.strip()}">'))]
    if form == "text/markdown":
        return [("html", markdown(content))]
    return [("text", content)]


def printed(outputs, forms):
    """What a cell printed, as (kind, content); on paper shorter where it led to a result."""
    ends = SHORT_ENDS if any(map(is_result, outputs)) else LONG_ENDS
    return [block for output in outputs if not is_result(output) for block in blocks(output, forms, ends)]


def results(outputs, forms):
    """What a cell shows besides, as (kind, content)."""
    return [block for output in outputs if is_result(output) for block in blocks(output, forms)]
