"""Exports an executed notebook: one HTML page for the screen, with interactive charts, and one PDF for paper.

Both are made from report/template/page.html.j2 and need nothing from a network. On the screen page a chart draws itself with the
page's own plotly.js; the PDF takes its still, an SVG, which is as sharp and needs no script, and opens with the answers: the cells that
are tagged `answers`.
"""

import argparse
import re
import sys
import tempfile
from html import escape
from pathlib import Path

import jinja2
import nbformat
import plotly.io
from browser import BrowserError, open_page
from files import write_atomically
from latex2mathml.converter import convert as to_mathml
from markupsafe import Markup
from nbconvert.filters import Highlight2HTML, ansi2html, strip_ansi
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from plotly.offline import get_plotlyjs
from pygments.formatters import HtmlFormatter
from stills import PLOTLY, SVG, add_stills, charts, text_of

TEMPLATE = Path(__file__).resolve().parent.parent / "report" / "template"

# Which form of a result is shown: the first of these that it has.
SCREEN_FORMS = [PLOTLY, "text/html", SVG, "image/png", "text/markdown", "text/plain"]
PAPER_FORMS = [SVG, "image/png", "text/html", "text/markdown", "text/plain"]

# Of a long printed output, paper shows this many lines of its beginning and of its end; fewer where it only leads to a result.
LONG_ENDS, SHORT_ENDS = (3, 5), (2, 1)

# A cell with this tag answers what the report asks: on paper, what it shows stands at the report's opening.
ANSWERS = "answers"

# Code of so many lines may be divided between two pages.
LONG_CODE_LINES = 30


class ExportError(Exception):
    """What is wrong and what to do about it."""


class ReportRenderer(IPythonRenderer):
    """Markdown to HTML, with formulas as MathML: a browser draws it without MathJax."""

    def block_math(self, body):
        """A formula in a line of its own."""
        return to_mathml(body.strip(), display="block")

    def inline_math(self, body):
        """A formula within a line."""
        return to_mathml(body.strip())

    def latex_environment(self, name, body):
        """A formula as \\begin{name} ... \\end{name}."""
        return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")


def markdown(source):
    """A Markdown text as HTML."""
    return Markup(MarkdownWithMath(renderer=ReportRenderer(escape=False, exclude_anchor_links=True)).render(source))


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


def split_title(notebook):
    """The notebook's first heading, and its cells without it."""
    cells = [cell for cell in notebook.cells if cell.source.strip()]
    if not cells or cells[0].cell_type != "markdown" or not cells[0].source.startswith("# "):
        raise ExportError("the notebook's first cell is not a Markdown cell that begins with '# ' and the report's title")
    title, _, rest = cells[0].source.partition("\n")
    first = nbformat.v4.new_markdown_cell(rest)
    return title.removeprefix("# ").strip(), [first, *cells[1:]] if rest.strip() else cells[1:]


def is_answers(cell):
    """Whether the cell's author tagged it as an answer."""
    return ANSWERS in cell.metadata.get("tags", [])


def introduction_length(cells):
    """How many cells stand before the first heading and the first code."""
    return next((i for i, cell in enumerate(cells) if cell.cell_type != "markdown" or cell.source.lstrip().startswith("#")), len(cells))


def prose(cell):
    """A Markdown cell, as the template shows it."""
    return {"prose": markdown(cell.source)}


def outputs(cell, forms):
    """What a code cell shows, as (kind, content)."""
    has_result = any(output.output_type in ("execute_result", "display_data") for output in cell.outputs)
    ends = SHORT_ENDS if has_result else LONG_ENDS
    return [block for output in cell.outputs for block in blocks(output, forms, ends)]


def code(cell, shown, moved=False):
    """A code cell with the outputs `shown`, as the template shows it; `moved` says that those stand at the report's opening."""
    highlighted = Markup(Highlight2HTML(pygments_lexer="rust")(cell.source))
    return {"code": highlighted, "long": cell.source.count("\n") >= LONG_CODE_LINES, "outputs": shown, "moved": moved}


def arranged(cells, forms):
    """The cells as the template shows them: in the notebook's order on the screen; on paper with the answers after the introduction.

    Of a code cell with answers the code stays where it is, for it reads what the cells before it define.
    """
    opening, rest = [], []
    length = introduction_length(cells)
    for index, cell in enumerate(cells):
        moves = forms is PAPER_FORMS and is_answers(cell) and index >= length
        if cell.cell_type == "markdown":
            (opening if moves else rest).append(prose(cell))
        elif cell.cell_type == "code" and moves:
            opening.append({"outputs": outputs(cell, forms)})
            rest.append(code(cell, [], moved=True))
        elif cell.cell_type == "code":
            rest.append(code(cell, outputs(cell, forms)))
    return rest[:length] + opening + rest[length:]


def page(notebook, forms):
    """The whole page as HTML."""
    title, cells = split_title(notebook)
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.get_template("page.html.j2").render(
        title=title,
        run=notebook.metadata.get("report", {}),
        cells=arranged(cells, forms),
        medium="paper" if forms is PAPER_FORMS else "screen",
        plotly_js=Markup(get_plotlyjs()) if forms is SCREEN_FORMS and charts(notebook) else "",
        style=Markup((TEMPLATE / "page.css").read_text(encoding="utf-8")),
        code_style=Markup(HtmlFormatter(style="friendly").get_style_defs(".highlight")),
    )
    loads = network_loads(html)
    if loads:
        raise ExportError(f"the page would load from the network: {', '.join(loads[:3])}; a result must carry what it shows")
    return html


def network_loads(html):
    """The addresses outside this page that a browser would fetch to show it."""
    tags = re.sub(r"(<script\b[^>]*>).*?(</script\s*>)", r"\1\2", html, flags=re.DOTALL | re.IGNORECASE)
    in_tags = re.findall(r"<(?:script|link|img|iframe|source|object|embed|image)\b[^>]*?(?:src|href|data)\s*=\s*[\"']?((?:https?:)?//[^\"'\s>]+)", tags, re.I)
    in_styles = re.findall(r"(?:@import|url\()\s*[\"']?((?:https?:)?//[^\"')\s]+)", tags, re.I)
    return in_tags + in_styles


def print_pdf(html, browser, pdf):
    """Prints a page to a PDF file, which is replaced in one step; a script first finds the sizes that fill its pages."""
    fill_pages = (TEMPLATE / "fill_pages.js").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="report-") as folder:
        printed = Path(folder, "report.pdf")
        options = ["--no-pdf-header-footer", "--generate-pdf-document-outline", f"--print-to-pdf={printed}"]
        done = open_page(browser, f"{html}<script>\n{fill_pages}</script>\n", *options)
        if not printed.is_file() or not printed.read_bytes().startswith(b"%PDF-"):
            raise BrowserError(f"{browser} printed no PDF (status {done.returncode}):\n{done.stderr[-2000:]}")
        write_atomically(printed.read_bytes(), pdf)


def figure(notebook, code):
    """The SVG that the first cell whose code holds `code` shows."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and code in cell.source]
    outputs = [output for cell in cells[:1] for output in cell.outputs if SVG in output.get("data", {})]
    if not outputs:
        raise ExportError(f"no cell with {code!r} shows an SVG")
    return text_of(outputs[0].data[SVG])


def main(command_line=None):
    """Reads the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebook", type=Path, help="an executed notebook")
    parser.add_argument("--html", type=Path, required=True)
    parser.add_argument("--pdf", type=Path, required=True)
    parser.add_argument("--figure", nargs=2, metavar=("CODE", "SVG"), help="save the chart of the first cell that holds CODE")
    parser.add_argument("--browser", required=True, help="a Chromium or Chrome")
    arguments = parser.parse_args(command_line)
    try:
        notebook = nbformat.read(arguments.notebook, as_version=4)
        # One that was run in JupyterLab has none yet.
        add_stills(notebook, arguments.browser)
        if arguments.figure:
            code, svg = arguments.figure
            write_atomically(figure(notebook, code).encode(), Path(svg))
        write_atomically(page(notebook, SCREEN_FORMS).encode(), arguments.html)
        print(f"wrote {arguments.html} ({arguments.html.stat().st_size / 1e6:.1f} MB)")
        print_pdf(page(notebook, PAPER_FORMS), arguments.browser, arguments.pdf)
        print(f"wrote {arguments.pdf} ({arguments.pdf.stat().st_size / 1e6:.1f} MB)")
    except (ExportError, BrowserError, OSError, nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
        print(f"error: {arguments.notebook}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
