"""Exports an executed notebook: one HTML page for the screen, with interactive charts, and one PDF for paper.

Both are made from report/template/page.html.j2 and need nothing from a network. The page for the screen is the notebook in its order,
where a chart draws itself with the page's own plotly.js. The PDF is a paper: the report that the notebook's tags make of its text,
figures and tables (scripts/report.py), and the notebook's code as its appendix; a chart is its still, an SVG, which is as sharp and
needs no script.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

import jinja2
import nbformat
from browser import BrowserError, open_page
from files import write_atomically
from markupsafe import Markup
from outputs import PAPER_FORMS, SCREEN_FORMS
from plotly.offline import get_plotlyjs
from pygments.formatters import HtmlFormatter
from report import Report, ReportError
from stills import SVG, add_stills, text_of

TEMPLATE = Path(__file__).resolve().parent.parent / "report" / "template"


def page(report, forms):
    """The whole page as HTML."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    html = environment.get_template("page.html.j2").render(
        report=report,
        forms=forms,
        medium="paper" if forms is PAPER_FORMS else "screen",
        plotly_js=Markup(get_plotlyjs()) if forms is SCREEN_FORMS and report.has_charts else "",
        style=Markup((TEMPLATE / "page.css").read_text(encoding="utf-8")),
        code_style=Markup(HtmlFormatter(style="friendly").get_style_defs(".highlight")),
        # A text of CSS, which must not end the page's style.
        running_title=Markup(json.dumps(report.title, ensure_ascii=False).replace("<", "\\3c ")),
    )
    loads = network_loads(html)
    if loads:
        raise ReportError(f"the page would load from the network: {', '.join(loads[:3])}; a result must carry what it shows")
    return html


def network_loads(html):
    """The addresses outside this page that a browser would fetch to show it."""
    tags = re.sub(r"(<script\b[^>]*>).*?(</script\s*>)", r"\1\2", html, flags=re.DOTALL | re.IGNORECASE)
    in_tags = re.findall(r"<(?:script|link|img|iframe|source|object|embed|image)\b[^>]*?(?:src|href|data)\s*=\s*[\"']?((?:https?:)?//[^\"'\s>]+)", tags, re.I)
    in_styles = re.findall(r"(?:@import|url\()\s*[\"']?((?:https?:)?//[^\"')\s]+)", tags, re.I)
    return in_tags + in_styles


def print_pdf(html, browser, pdf):
    """Prints a page to a PDF file, which is replaced in one step; a script first lays its pages out."""
    layout = (TEMPLATE / "layout.js").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="report-") as folder:
        printed = Path(folder, "report.pdf")
        options = ["--no-pdf-header-footer", "--generate-pdf-document-outline", f"--print-to-pdf={printed}"]
        done = open_page(browser, f"{html}<script>\n{layout}</script>\n", *options)
        if not printed.is_file() or not printed.read_bytes().startswith(b"%PDF-"):
            raise BrowserError(f"{browser} printed no PDF (status {done.returncode}):\n{done.stderr[-2000:]}")
        write_atomically(printed.read_bytes(), pdf)


def figure(notebook, code):
    """The SVG that the first cell whose code holds `code` shows."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and code in cell.source]
    outputs = [output for cell in cells[:1] for output in cell.outputs if SVG in output.get("data", {})]
    if not outputs:
        raise ReportError(f"no cell with {code!r} shows an SVG")
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
        report = Report(notebook)
        for remark in report.remarks():
            print(f"warning: {arguments.notebook}: {remark}", file=sys.stderr)
        if arguments.figure:
            code, svg = arguments.figure
            write_atomically(figure(notebook, code).encode(), Path(svg))
        write_atomically(page(report, SCREEN_FORMS).encode(), arguments.html)
        print(f"wrote {arguments.html} ({arguments.html.stat().st_size / 1e6:.1f} MB)")
        print_pdf(page(report, PAPER_FORMS), arguments.browser, arguments.pdf)
        print(f"wrote {arguments.pdf} ({arguments.pdf.stat().st_size / 1e6:.1f} MB)")
    except (ReportError, BrowserError, OSError, nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
        print(f"error: {arguments.notebook}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
