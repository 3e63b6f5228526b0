"""Draws still pictures of a notebook's plotly charts: SVG, by plotly.js in a headless Chromium.

A still stands beside the chart in the notebook, and shows where no script may run: on paper, and on a code host's page of the notebook.
"""

import html
import json
import re

from browser import BrowserError, open_page
from plotly.offline import get_plotlyjs

PLOTLY, SVG = "application/vnd.plotly.v1+json", "image/svg+xml"

# The width that the charts are laid out for, in pixels.
WIDTH = 700

# plotly draws the ids of its shapes at random: here they are the same each time, and yet different in each chart.
DRAW = """<script>
let state = 1;
Math.random = () => (state = state * 16807 % 2147483647) / 2147483647;
const show = (result) => {
  const element = document.createElement("pre");
  element.textContent = JSON.stringify(result);
  document.body.replaceChildren(element);
};
(async () => {
  const stills = [];
  for (const figure of FIGURES) {
    const size = { width: WIDTH, height: figure.layout.height ?? 450 };
    stills.push(await Plotly.toImage(figure, { format: "svg", imageDataOnly: true, ...size }));
  }
  return { stills };
})().then(show, (error) => show({ error: String(error) }));
</script>"""


def text_of(value):
    """A text that a notebook file may hold as a list of lines."""
    return "".join(value) if isinstance(value, list) else value


def charts(notebook):
    """The results that are charts, each as its forms by MIME type."""
    outputs = (output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
    return [output.data for output in outputs if PLOTLY in output.get("data", {})]


def add_stills(notebook, browser):
    """Adds a still to each chart that has none."""
    lacking = [forms for forms in charts(notebook) if SVG not in forms]
    for forms, still in zip(lacking, draw([forms[PLOTLY] for forms in lacking], browser), strict=True):
        words = html.escape(text_of(forms.get("text/plain", "a chart")))
        forms[SVG] = still.replace("<svg ", f'<svg role="img" aria-label="{words}" ', 1)


def draw(figures, browser):
    """Each figure as an SVG document."""
    if not figures:
        return []
    # JSON within a script must not end it.
    data = json.dumps(figures).replace("<", "\\u003c")
    script = DRAW.replace("WIDTH", str(WIDTH)).replace("FIGURES", data)
    page = f'<!DOCTYPE html><meta charset="utf-8"><body><script>{get_plotlyjs()}</script>{script}'
    # Time within the page, of which waiting takes none.
    done = open_page(browser, page, "--virtual-time-budget=60000", "--dump-dom")
    shown = re.search(r"<body><pre>(.*?)</pre>", done.stdout, re.DOTALL)
    result = json.loads(html.unescape(shown[1])) if shown else {"error": f"status {done.returncode}\n{done.stderr[-2000:]}"}
    if "error" in result:
        raise BrowserError(f"{browser} drew no charts: {result['error']}")
    return result["stills"]
