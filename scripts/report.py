"""The report that a notebook's cells make: their tags say what stands where, and their metadata what figures and tables are called.

Markdown cells are the report's text, in the notebook's order, but for those tagged `abstract`, `answers` and `appendix`. A code cell
tagged `figure` or `table` gives its result to the report: as a numbered figure or table, below the paragraph that first refers to it by
a link to its name. Code, and what it printed, stands in the appendix. docs/notebooks.md tells a notebook's author so.
"""

import re
from dataclasses import dataclass, field

from markup import NO_BREAK, markdown, markdown_blocks
from markupsafe import Markup
from nbconvert.filters import Highlight2HTML
from outputs import PAPER_FORMS, is_result, printed, results
from stills import PLOTLY, SVG, charts, text_of

# A cell with the name of one of them as a tag speaks of that profile's results: no other's report has it.
PROFILES = ["smoke", "quick", "standard", "full"]

# What the standard profile trains is what the published one reads.
SPOKEN_OF_AS = {"published": "standard"}

ABSTRACT, ANSWERS, APPENDIX, FIGURE, TABLE = "abstract", "answers", "appendix", "figure", "table"
TAGS = {"markdown": [ABSTRACT, ANSWERS, APPENDIX, *PROFILES], "code": [ANSWERS, FIGURE, TABLE], "raw": []}

# Code of so many lines may be divided between two pages.
LONG_CODE_LINES = 30

# The room that a chart's title takes above its notes, in pixels (crates/lab/src/plot.rs).
TITLE_HEIGHT = 36

# The heading below which lists are those of the works cited.
REFERENCES = "<h2>References</h2>"

REFERENCE = re.compile(r"\]\(#([\w-]+)\)")

# A score, a rate such as 3e-5, or a count with commas.
FIGURE_IN_TEXT = re.compile(r"(?<![\w.,])(?:\d+(?:\.\d+)?e-\d+|\d[\d,]*\.\d+|\d{1,3}(?:,\d{3})+)(?![\w]|[.,]\d)")

# Any number of an output, some of which are counts without commas.
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e-\d+)?")


class ReportError(Exception):
    """What is wrong with a notebook, and what to do about it."""


@dataclass
class Exhibit:
    """A figure or a table: its kind, what it is referred to by, what stands below or above it, and what it shows."""

    kind: str
    name: str
    caption: str
    outputs: list
    number: int | None = None

    @property
    def label(self):
        """As in `Figure 3`; None where it shows nothing."""
        return self.number and f"{self.kind.capitalize()} {self.number}"


@dataclass
class Cell:
    """A cell that is not empty, with its place in the notebook, counted from 1."""

    number: int
    kind: str
    source: str
    tags: list
    outputs: list = field(default_factory=list)
    exhibit: Exhibit | None = None

    @property
    def is_text(self):
        """Whether it is part of the report's text, between its opening and its appendix."""
        return self.kind == "markdown" and not {ABSTRACT, ANSWERS, APPENDIX} & set(self.tags)


def read_cell(number, cell):
    """A cell, whose tags are known, and whose figure or table has a name and a caption."""
    tags = cell.metadata.get("tags", [])
    known = TAGS[cell.cell_type]
    for tag in tags:
        if tag not in known:
            expected = f"expected one of {', '.join(known)}" if known else "expected none"
            raise ReportError(f"cell {number}, a {cell.cell_type} cell, has the tag {tag!r}: {expected}; docs/notebooks.md says what each does")
    read = Cell(number, cell.cell_type, cell.source, tags, cell.get("outputs", []))
    about = cell.metadata.get("report", {})
    is_exhibit = FIGURE in tags or TABLE in tags
    unknown = next((key for key in about if key not in ("name", "caption") or not is_exhibit), None)
    if unknown:
        expected = "name and caption" if is_exhibit else f"none, as it has neither tag, {FIGURE} or {TABLE}"
        raise ReportError(f'cell {number} has {unknown!r} in "report" of its metadata: expected {expected}')
    if is_exhibit:
        shown = [output for output in read.outputs if is_result(output)]
        caption = about.get("caption") or next((title for title in map(chart_title, shown) if title), None)
        for name, value in [("name", about.get("name")), ("caption", caption)]:
            if not isinstance(value, str):
                example = '"report": {"name": "loss", "caption": "The loss of each step."}'
                raise ReportError(f"cell {number} is tagged as a figure or table, and has no {name}; add to its metadata {example}")
        read.exhibit = Exhibit(FIGURE if FIGURE in tags else TABLE, about["name"], caption, shown)
    return read


def chart_title(output):
    """The title of a chart, which is the first line of its words; None of other results."""
    if PLOTLY not in output.data and SVG not in output.data:
        return None
    return text_of(output.data.get("text/plain", "")).strip().split("\n")[0] or None


class Report:
    """A notebook's cells, read and checked, with its figures and tables numbered."""

    def __init__(self, notebook):
        self.about = notebook.metadata.get("report", {})
        self.has_charts = bool(charts(notebook))
        numbered = [(number, cell) for number, cell in enumerate(notebook.cells, 1) if cell.source.strip()]
        cells = [read_cell(number, cell) for number, cell in numbered]
        if not cells or cells[0].kind != "markdown" or not cells[0].source.startswith("# "):
            raise ReportError("the notebook's first cell is not a Markdown cell that begins with '# ' and the report's title")
        title, _, cells[0].source = cells[0].source.partition("\n")
        self.title = title.removeprefix("# ").strip()
        profile = self.about.get("profile")
        profile = SPOKEN_OF_AS.get(profile, profile)
        self.cells = [cell for cell in cells if cell.source.strip() and (profile in cell.tags or not set(cell.tags) & set(PROFILES))]
        self.exhibits = self.numbered_exhibits()
        self.labels = {name: exhibit.label for name, exhibit in self.exhibits.items()}

    def numbered_exhibits(self):
        """The figures and tables by name, numbered in the order in which the report has them."""
        exhibits, places = {}, {}
        for cell in self.cells:
            if cell.exhibit:
                if cell.exhibit.name in exhibits:
                    raise ReportError(f"cell {cell.number} has the name {cell.exhibit.name!r}, which cell {places[cell.exhibit.name]} has too")
                exhibits[cell.exhibit.name], places[cell.exhibit.name] = cell.exhibit, cell.number
        opening = [cell.exhibit.name for cell in self.cells if cell.exhibit and ANSWERS in cell.tags]
        cited = []
        for cell in self.cells:
            names = REFERENCE.findall(cell.source) if cell.kind == "markdown" else []
            unknown = next((name for name in names if name not in exhibits), None)
            if unknown:
                raise ReportError(f"cell {cell.number} refers to #{unknown}, and no cell tagged {FIGURE} or {TABLE} has that name")
            cited += names if cell.is_text else []
        order = list(dict.fromkeys(opening + cited))
        missing = next((name for name in exhibits if name not in order), None)
        if missing:
            raise ReportError(f"cell {places[missing]} is tagged as a figure or table, and no text refers to it; write a link to #{missing} where it belongs")
        for kind in (FIGURE, TABLE):
            shown = [exhibits[name] for name in order if exhibits[name].kind == kind and results(exhibits[name].outputs, PAPER_FORMS)]
            for number, exhibit in enumerate(shown, 1):
                exhibit.number = number
        return exhibits

    def remarks(self):
        """What its author should know: figures and tables that show nothing, and numbers in the text that no output shows."""
        remarks = []
        for cell in self.cells:
            if cell.exhibit and not cell.exhibit.label:
                remarks.append(f"cell {cell.number}, the {cell.exhibit.kind} {cell.exhibit.name!r}, shows nothing: the report does without it")
        results = [output for cell in self.cells for output in cell.outputs]
        words = "\n".join(text_of(output.get("text") or output.get("data", {}).get("text/plain", "")) for output in results)
        shown = {number.replace(",", "") for number in NUMBER.findall(words)}
        for cell in self.cells:
            if cell.kind == "markdown" and {ABSTRACT, ANSWERS, *PROFILES} & set(cell.tags):
                unshown = [number for number in FIGURE_IN_TEXT.findall(cell.source) if number.replace(",", "") not in shown]
                if unshown:
                    remarks.append(f"cell {cell.number} says {', '.join(unshown)}, which no output shows")
        return remarks

    def screen(self, forms):
        """The cells in the notebook's order, as the template shows them."""
        return [self.prose(cell) if cell.kind == "markdown" else self.code(cell, forms) for cell in self.cells if cell.kind != "raw"]

    def prose(self, cell):
        """A Markdown cell."""
        return {"prose": markdown(cell.source, self.labels)}

    def code(self, cell, forms, is_appendix=False):
        """A code cell with what it shows; the appendix only names the figure or table, which the report has."""
        highlighted = Markup(Highlight2HTML(pygments_lexer="rust")(cell.source))
        shown = {"code": highlighted, "long": cell.source.count("\n") >= LONG_CODE_LINES, "outputs": printed(cell.outputs, forms)}
        if cell.exhibit and cell.exhibit.label:
            return shown | ({"elsewhere": cell.exhibit} if is_appendix else {"exhibit": self.shown(cell.exhibit, forms)})
        return shown | {"outputs": shown["outputs"] + results(cell.outputs, forms)}

    def shown(self, exhibit, forms, typeset=False):
        """A figure or a table, as the template shows it."""
        content = results(exhibit.outputs, forms)
        if forms is PAPER_FORMS:
            typeset_one = without_title if exhibit.kind == FIGURE else unbroken
            content = [(kind, typeset_one(html)) for kind, html in content]
        return {
            "kind": exhibit.kind,
            "name": exhibit.name,
            "label": exhibit.label,
            "caption": inline(markdown(exhibit.caption, self.labels, typeset)),
            "content": content,
        }

    def abstract(self):
        """The abstract's blocks."""
        return [block for cell in self.cells if ABSTRACT in cell.tags for block in markdown_blocks(cell.source, self.labels, typeset=True)]

    def answers(self):
        """What opens the report below its abstract: blocks of text, and figures or tables."""
        for cell in self.cells:
            if ANSWERS not in cell.tags:
                continue
            if cell.kind == "markdown":
                yield from ({"text": block} for block in markdown_blocks(cell.source, self.labels, typeset=True))
            elif cell.exhibit and cell.exhibit.label:
                yield {"exhibit": self.shown(cell.exhibit, PAPER_FORMS, typeset=True)}
            else:
                yield from ({"text": content} for _, content in results(cell.outputs, PAPER_FORMS))

    def text(self):
        """The report's text in blocks, with each figure and table below the block that first refers to it."""
        placed = {cell.exhibit.name for cell in self.cells if cell.exhibit and ANSWERS in cell.tags}
        is_references = False
        for cell in self.cells:
            if not cell.is_text:
                continue
            for block in markdown_blocks(cell.source, self.labels, typeset=True):
                yield {"text": as_references(block) if is_references else block}
                is_references = is_references or block.strip() == REFERENCES
                for name in re.findall(r'class="reference" href="#([\w-]+)"', block):
                    if name not in placed:
                        placed.add(name)
                        yield {"exhibit": self.shown(self.exhibits[name], PAPER_FORMS, typeset=True)}

    def appendix(self):
        """The notebook's code in its order, with the text about it, and the headings of the report's text for the way."""
        headings = []
        for cell in self.cells:
            if cell.is_text:
                headings = re.findall(r"^##? +(.+)$", cell.source, re.MULTILINE)[-1:] or headings
            elif cell.kind == "code" or APPENDIX in cell.tags:
                yield from ({"heading": heading} for heading in headings)
                headings = []
                yield self.code(cell, PAPER_FORMS, is_appendix=True) if cell.kind == "code" else self.prose(cell)


def as_references(html):
    """The list of references, with entries that hang."""
    return Markup(re.sub(r"^<ul>", '<ul class="references">', html))


def inline(html):
    """A text of one paragraph, without the paragraph."""
    return Markup(re.sub(r"^<p>(.*)</p>\s*$", r"\1", html, flags=re.DOTALL))


def unbroken(table):
    """A table in which a mean and its deviation stay in one line."""
    return Markup(table.replace(" ± ", f"{NO_BREAK}±{NO_BREAK}"))


def without_title(svg):
    """A chart without its title, and without the room for it: its caption says the same. What is noted below the title stays."""
    title = r'<text class="gtitle"[^>]*>.*?</text>'
    size = re.search(r'<svg\b[^>]*?\bviewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    if not size or not re.search(title, svg, re.DOTALL):
        return svg
    width, height = map(float, size.groups())
    svg = re.sub(title, "", svg, count=1, flags=re.DOTALL)
    head, rest = svg[: size.end()], svg[size.end() :]
    head = re.sub(r'\sheight="[^"]*"', f' height="{height - TITLE_HEIGHT:g}"', head)
    head = re.sub(r'viewBox="[^"]*"$', f'viewBox="0 {TITLE_HEIGHT} {width:g} {height - TITLE_HEIGHT:g}"', head)
    return Markup(head + rest)
