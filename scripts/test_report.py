"""Tests of the report: what its tags make of a notebook, what its pages show, and what they must not load."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path
from xml.etree import ElementTree

import export_report
import nbformat
import stills
from browser import BrowserError
from hyphenation import SOFT_HYPHEN, hyphenated, syllables
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from outputs import PAPER_FORMS, SCREEN_FORMS, shorten
from report import Report, ReportError, without_title

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "notebooks" / "main.ipynb"
RUN = ROOT / "target" / "report" / "main.ipynb"

CHART = {
    "image/svg+xml": '<svg id="drawn"></svg>',
    "application/vnd.plotly.v1+json": {"data": [{"x": [1], "y": [2], "name": "</script><b>"}], "layout": {"height": 300}},
    "text/plain": 'a chart of "a" & <b>',
}


def notebook(*outputs, source="show(chart)"):
    """A notebook of a title and one code cell."""
    title = new_markdown_cell("# A title & more\n\nAn opening.")
    return new_notebook(cells=[title, new_code_cell(source, outputs=list(outputs))])


def result(data):
    """The result of a cell."""
    return new_output("execute_result", data=data, execution_count=1)


def text(source, *tags):
    """A Markdown cell."""
    return new_markdown_cell(source, metadata={"tags": list(tags)} if tags else {})


def exhibit(kind, name, data, caption="A caption.", source="show()", tags=()):
    """A code cell that gives the report a figure or a table."""
    return new_code_cell(source, outputs=[result(data)], metadata={"tags": [kind, *tags], "report": {"name": name, "caption": caption}})


def table(words):
    """A table's forms."""
    return {"text/html": f"<table><tr><td>{words}</td></tr></table>", "text/plain": words}


def page(notebook, forms):
    """A page, with each word in one piece."""
    return export_report.page(Report(notebook), forms).replace(SOFT_HYPHEN, "")


def in_order(case, html, *texts):
    """Checks that each of the texts stands on a page once, and in this order."""
    case.assertEqual([html.count(text) for text in texts], [1] * len(texts), texts)
    case.assertEqual(sorted(texts, key=html.index), list(texts))


class Tags(unittest.TestCase):
    """What the tags and the metadata of cells do."""

    def refused(self, expected, *cells):
        """Checks that a notebook of these cells below its title is an error that says this."""
        with self.assertRaisesRegex(ReportError, expected):
            Report(new_notebook(cells=[text("# T"), *cells]))

    def test_a_tag_that_is_not_known_is_an_error_with_the_cells_number_and_the_known_ones(self):
        self.refused("cell 3, a markdown cell, has the tag 'abstrakt': expected one of abstract, answers", text(""), text("Short.", "abstrakt"))
        hidden = new_code_cell("1", metadata={"tags": ["hide-input"]})
        self.refused("cell 2, a code cell, has the tag 'hide-input': expected one of answers, figure, table", hidden)

    def test_a_tag_of_another_kind_of_cell_is_an_error(self):
        self.refused("cell 2, a markdown cell, has the tag 'figure'", text("A chart.", "figure"))
        self.refused("cell 2, a code cell, has the tag 'abstract'", new_code_cell("1", metadata={"tags": ["abstract"]}))

    def test_a_figure_or_table_without_name_or_caption_is_an_error_with_what_to_add(self):
        cell = exhibit("table", "scores", table("1"))
        for lacking in ["name", "caption"]:
            broken = nbformat.from_dict(cell)
            del broken.metadata.report[lacking]
            self.refused(f'cell 3 is tagged as a figure or table, and has no {lacking}; add .*"name": "loss"', text("[it](#scores)"), broken)
            cell = exhibit("table", "scores", table("1"))

    def test_metadata_that_says_nothing_to_the_report_is_an_error(self):
        titled = exhibit("table", "scores", table("1"))
        titled.metadata.report["title"] = "T"
        self.refused('cell 2 has \'title\' in "report" of its metadata: expected name and caption', titled)
        self.refused("cell 2 has 'name' .* expected none, as it has neither tag", new_code_cell("1", metadata={"report": {"name": "a"}}))

    def test_a_charts_own_title_is_its_caption_where_none_is_written(self):
        titled = result(CHART | {"text/plain": "Loss on a task\n  a line"})
        chart = new_code_cell("show()", outputs=[titled], metadata={"tags": ["figure"], "report": {"name": "loss"}})
        self.assertIn("<b>Figure 1.</b> Loss on a task</figcaption>", page(new_notebook(cells=[text("# T\n\n[loss](#loss)"), chart]), PAPER_FORMS))

    def test_a_reference_to_no_figure_and_a_figure_without_a_reference_are_errors(self):
        self.refused("cell 2 refers to #lost, and no cell", text("See [it](#lost)."))
        self.refused("cell 2 is tagged as a figure or table, and no text refers to it; write a link to #scores", exhibit("table", "scores", table("1")))
        # The abstract and the answers are not where a figure stands.
        self.refused("no text refers to it", text("[it](#scores)", "abstract"), text("[it](#scores)", "answers"), exhibit("table", "scores", table("1")))

    def test_one_name_for_two_figures_is_an_error(self):
        self.refused("cell 4 has the name 'a', which cell 3 has too", text("[it](#a)"), exhibit("table", "a", table("1")), exhibit("figure", "a", CHART))

    def test_figures_and_tables_stand_below_the_text_that_refers_to_them_first_and_are_numbered_so(self):
        cells = [text("# T"), text("First.\n\nOf [the one](#one) and [another](#chart).\n\nThen [two](#two), and [one](#one) again.\n\nLast.")]
        cells += [exhibit("table", "two", table("of two")), exhibit("table", "one", table("of one")), exhibit("figure", "chart", CHART)]
        paper = page(new_notebook(cells=cells), PAPER_FORMS)
        in_order(self, paper[: paper.index('class="appendix"')], "First.", 'id="one"', 'id="chart"', "Then", 'id="two"', "Last.")
        self.assertIn('Of <a class="reference" href="#one">Table&nbsp;1</a> and <a class="reference" href="#chart">Figure&nbsp;1</a>.', paper)
        self.assertIn("<b>Table 2.</b> A caption.", paper)
        screen = page(new_notebook(cells=cells), SCREEN_FORMS)
        in_order(self, screen, "First.", 'id="two"', 'id="one"', 'id="chart"')
        self.assertIn('<a class="reference" href="#two">Table&nbsp;2</a>', screen)

    def test_a_figure_that_shows_nothing_leaves_the_references_words_and_a_remark(self):
        empty = new_code_cell("maybe()", metadata={"tags": ["table"], "report": {"name": "scores", "caption": "C."}})
        report = Report(new_notebook(cells=[text("# T"), text("See [the scores](#scores)."), empty]))
        self.assertIn("See the scores.", export_report.page(report, PAPER_FORMS))
        self.assertEqual(report.remarks(), ["cell 3, the table 'scores', shows nothing: the report does without it"])

    def test_what_speaks_of_a_profile_is_in_that_profiles_report_alone(self):
        cells = [text("# T\n\nAlways."), text("So it was.", "standard"), new_code_cell("work()")]
        for profile, shown in [("standard", True), ("published", True), ("smoke", False), (None, False)]:
            for forms in (PAPER_FORMS, SCREEN_FORMS):
                made = new_notebook(cells=cells, metadata={"report": {"profile": profile}})
                self.assertEqual("So it was." in page(made, forms), shown, profile)

    def test_a_number_in_a_result_that_no_output_shows_is_a_remark_with_the_cell(self):
        shown = new_code_cell("table()", outputs=[result(table("0.916 ± 0.007, 108,895,872 at 3e-5, 10000 rows"))])
        said = [text("0.916 ± 0.007 of 108,895,872 at 3e-5, 10,000 rows.", "standard"), text("Not 0.917, 3e-6 or 1,234.", "standard"), text("0.5")]
        cells = [text("# T"), *said, shown]
        report = Report(new_notebook(cells=cells, metadata={"report": {"profile": "standard"}}))
        self.assertEqual(report.remarks(), ["cell 3 says 0.917, 3e-6, 1,234, which no output shows"])

    def test_the_paper_has_abstract_answers_text_and_then_the_code(self):
        answers = exhibit("table", "findings", table("yes"), source="findings()", tags=["answers"])
        cells = [text("# T"), text("## Work\n\nProse."), new_code_cell("work()"), text("About code.", "appendix")]
        cells += [new_code_cell("more()", outputs=[result({"text/plain": "42"})])]
        cells += [answers, text("Is it so?", "answers"), text("In short.", "abstract")]
        paper = page(new_notebook(cells=cells), PAPER_FORMS)
        order = ["Abstract</h2>", "In short.", "yes</td>", "Is it so?", "Work</h2>", "Prose.", "Work</h3>", ">work<", "About code.", ">more<", ">42<", ">findings<"]
        in_order(self, paper, *order)
        self.assertIn('Its result is <a href="#findings">Table 1</a>.', paper)
        in_order(self, page(new_notebook(cells=cells), SCREEN_FORMS), "Prose.", ">work<", "About code.", ">findings<", "yes</td>", "Is it so?", "In short.")


class Pages(unittest.TestCase):
    """The two pages made of an executed notebook."""

    def test_the_screen_draws_a_chart_with_one_plotly_js_and_paper_takes_its_still(self):
        chart = notebook(result(CHART), result(CHART))
        screen, paper = (page(chart, forms) for forms in (SCREEN_FORMS, PAPER_FORMS))
        self.assertEqual((screen.count('role="figure"'), screen.count("plotly.js v")), (2, 1))
        self.assertEqual(screen.count('<noscript><svg id="drawn">'), 2)
        self.assertIn('id="drawn"', paper)
        self.assertNotIn("<script", paper)
        self.assertNotIn("plotly.js v", page(notebook(), SCREEN_FORMS))

    def test_a_charts_names_and_words_are_shown_and_not_obeyed(self):
        screen = page(notebook(result(CHART)), SCREEN_FORMS)
        self.assertNotIn("</script><b>", screen)
        self.assertIn('aria-label="a chart of &quot;a&quot; &amp; &lt;b&gt;"', screen)

    def test_a_result_that_acts_by_a_script_leaves_nothing_on_paper(self):
        loader = notebook(result({"text/html": "<script>var Plotly = {};</script><p>Charts move.</p>", "text/plain": "lab"}))
        self.assertNotIn('class="output', page(loader, PAPER_FORMS))

    def test_printed_text_and_the_title_are_escaped(self):
        html = page(notebook(new_output("stream", text="a <b> & c\n")), SCREEN_FORMS)
        self.assertIn("a &lt;b&gt; &amp; c", html)
        self.assertIn("<h1>A title &amp; more</h1>", html)

    def test_long_printed_text_is_shortened_on_paper_only(self):
        long = notebook(new_output("stream", text="".join(f"step {i}\n" for i in range(100))))
        screen, paper = (page(long, forms) for forms in (SCREEN_FORMS, PAPER_FORMS))
        self.assertIn("step 50\n", screen)
        self.assertNotIn("step 50\n", paper)
        for shown in ["step 2\n", "[… 92 more lines …]", "step 95\n", "step 99"]:
            self.assertIn(shown, paper)

    def test_text_that_would_not_become_shorter_stays_whole(self):
        text = "".join(f"{i}\n" for i in range(9))
        self.assertEqual(shorten(text), text)

    def test_printed_text_that_leads_to_a_result_is_shorter_still_on_paper(self):
        progress = new_output("stream", text="".join(f"step {i}\n" for i in range(100)))
        paper = page(notebook(progress, result(CHART)), PAPER_FORMS)
        self.assertIn("step 0\nstep 1\n[… 97 more lines …]\nstep 99\n", paper)

    def test_formulas_become_mathml(self):
        formula = new_notebook(cells=[new_markdown_cell("# T\n\n$W + \\frac{\\alpha}{r} B A$ and a price of \\$5")])
        html = page(formula, SCREEN_FORMS)
        self.assertIn("<mfrac>", html)
        self.assertIn("a price of $5", html)

    def test_a_page_that_would_load_from_the_network_is_an_error_that_names_the_address(self):
        for tag in [
            '<script src="https://cdn.plot.ly/plotly.js"></script>',
            "<link rel=stylesheet href=http://fonts.example/a.css>",
            "<img alt='' src='//example.org/a.png'>",
            "<style>@import url('https://example.org/b.css');</style>",
        ]:
            with self.subTest(tag), self.assertRaisesRegex(ReportError, "plot.ly|fonts.example|example.org"):
                page(notebook(result({"text/html": tag})), SCREEN_FORMS)

    def test_a_link_to_click_and_an_address_within_a_script_load_nothing(self):
        html = '<a href="https://gluebenchmark.com">GLUE</a><script>var s = \'<img src="https://example.org">\';</script>'
        page(notebook(result({"text/html": html})), SCREEN_FORMS)

    def test_a_notebook_without_a_title_is_an_error(self):
        with self.assertRaisesRegex(ReportError, "title"):
            page(new_notebook(cells=[new_code_cell("1")]), SCREEN_FORMS)

    def test_a_missing_notebook_ends_the_export_with_its_name(self):
        said = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(said):
            status = export_report.main(["missing.ipynb", "--html", f"{folder}/a", "--pdf", f"{folder}/b", "--browser", "none"])
        self.assertEqual(status, 1)
        self.assertIn("missing.ipynb", said.getvalue())

    def test_a_paper_shows_a_chart_without_its_title_and_with_its_notes(self):
        title, note = '<text class="gtitle" x="7">Scores</text>', '<text class="gtitle-subtitle">partial</text></svg>'
        svg = f'<svg role="img" width="700" height="400" viewBox="0 0 700 400">{title}{note}'
        self.assertEqual(without_title(svg), f'<svg role="img" width="700" height="364" viewBox="0 36 700 364">{note}')
        other = '<svg id="drawn"></svg>'
        self.assertEqual(without_title(other), other)

    def test_a_number_is_not_divided_between_two_lines_of_the_paper(self):
        rate = page(new_notebook(cells=[text("# T\n\nAt 2e-3 it is 0.9 ± 0.1.")]), PAPER_FORMS)
        self.assertIn('At <span class="number">2e-3</span> it is 0.9\u00a0±\u00a00.1.', rate)

    def test_the_list_of_references_is_told_from_other_lists(self):
        paper = page(new_notebook(cells=[text("# T\n\n* one\n\n## References\n\n* two")]), PAPER_FORMS)
        self.assertEqual((paper.count("<ul>"), paper.count('<ul class="references">')), (1, 1))

    def test_the_title_cannot_end_the_pages_style(self):
        paper = page(new_notebook(cells=[text('# A "</style><b>" title')]), PAPER_FORMS)
        self.assertEqual(paper.count("</style>"), 1)


class Hyphenation(unittest.TestCase):
    """Where words are divided."""

    def test_words_are_divided_as_tex_shows_them(self):
        # Knuth, The TeXbook, appendix H, and what \\showhyphens of plain TeX prints.
        for word in "hy-phen-ation as-so-ciate su-per-cal-ifrag-ilis-tic ta-ble al-go-rithm com-puter clas-si-fi-ca-tion".split():
            self.assertEqual("-".join(syllables(word.replace("-", ""))), word)

    def test_names_and_words_with_a_hyphen_stay_whole(self):
        for whole in ["BitFit", "Kalajdzievski", "fine-tuning", "LoRA", "&nbsp;", "lora_alpha", "MiniLM"]:
            self.assertEqual(hyphenated(whole), whole)
        self.assertEqual(hyphenated("a table (validation)."), "a ta\u00adble (val\u00adi\u00adda\u00adtion).")


class Committed(unittest.TestCase):
    """The notebook that is in the repository, with its results."""

    @classmethod
    def setUpClass(cls):
        cls.notebook = nbformat.read(COMMITTED, as_version=4)
        cls.report = Report(cls.notebook)

    def test_its_text_says_no_number_that_no_output_shows_and_every_figure_shows_something(self):
        self.assertEqual(self.report.remarks(), [])

    def test_it_is_whole_in_the_report_of_every_profile(self):
        for profile in ["smoke", "quick", "full"]:
            other = nbformat.from_dict(self.notebook)
            other.metadata.report = {"profile": profile}
            self.assertEqual(Report(other).labels.keys(), self.report.labels.keys())

    def test_every_reference_of_its_list_is_cited_and_every_citation_is_in_the_list(self):
        *texts, references = [cell.source for cell in self.report.cells if cell.kind == "markdown"]
        body = "\n".join(texts)
        entries = re.findall(r"^\* (.*)$", references, re.MULTILINE)
        first_authors = {(re.split(r",| and |(?<![A-Z])\. ", entry)[0].split()[-1], re.search(r"\. (\d{4})\. ", entry)[1]) for entry in entries}
        cited = set(re.findall(r"(\w+)(?: et al\.)? \(?((?:19|20)\d\d)\)", body))
        self.assertEqual(len(first_authors), len(entries))
        self.assertEqual(first_authors, cited)


def text_rooms(pdf):
    """The room left at the end of each page, as a share of the height of its text."""
    data = subprocess.run(["pdftoppm", "-r", "36", "-gray", pdf], capture_output=True, check=True).stdout
    rooms = []
    while data:
        _, size, _, pixels = data.split(b"\n", 3)
        width, height = map(int, size.split())
        # The margins of page.css, on paper 297 mm high; running head and number stand in them.
        top, bottom = height * 21 // 297, height * (297 - 20) // 297
        inked = [row for row in range(top, bottom) if min(pixels[row * width : (row + 1) * width]) < 200]
        rooms.append(1 - (max(inked, default=top) + 1 - top) / (bottom - top))
        data = pixels[width * height :]
    return rooms


def page_texts(pdf):
    """The lines of each page, without its running head and its number."""
    pages = subprocess.run(["pdftotext", "-layout", pdf, "-"], capture_output=True, check=True, text=True).stdout.split("\f")[:-1]
    return [[line.strip() for line in page.splitlines() if line.strip()] for page in pages]


BROWSER = subprocess.run([Path(__file__).with_name("find_browser.sh")], capture_output=True, text=True).stdout.strip()
HAS_TOOLS = BROWSER and shutil.which("pdftoppm")
NEEDS_TOOLS = "needs Chromium and pdftoppm (apt-get install chromium poppler-utils)"


class Paper:
    """The printed pages of an executed notebook."""

    NOTEBOOK = COMMITTED

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.pdf = Path(folder.name, "report.pdf")
        cls.notebook = nbformat.read(cls.NOTEBOOK, as_version=4)
        cls.report = Report(cls.notebook)
        export_report.print_pdf(export_report.page(cls.report, PAPER_FORMS), BROWSER, cls.pdf)
        cls.content = cls.pdf.read_bytes()
        cls.pages = page_texts(cls.pdf)
        cls.proper = next(number for number, lines in enumerate(cls.pages) if any(line.startswith("Appendix: ") for line in lines))

    def test_each_page_of_the_report_proper_is_full_to_60_percent_at_least(self):
        rooms = text_rooms(self.pdf)
        self.assertLess(max(rooms[: self.proper]), 0.4, rooms)

    def test_no_heading_stands_at_the_foot_of_a_page(self):
        headings = {heading.strip() for cell in self.report.cells for heading in re.findall(r"^#+ (.*)$", cell.source, re.MULTILINE)}
        for lines in self.pages:
            # The last line is the page's number.
            self.assertNotIn(lines[-2], headings)

    def test_every_figure_and_table_is_on_one_page_once_and_cited_on_it_or_before(self):
        proper = ["\n".join(lines) for lines in self.pages[: self.proper]]
        for exhibit in self.report.exhibits.values():
            label = exhibit.label
            on = [number for number, words in enumerate(proper) if re.search(rf"^{label}\. ", words, re.MULTILINE)]
            self.assertEqual(len(on), 1, label)
            before = "\n".join(proper[: on[0] + 1]).replace("\n", " ")
            self.assertRegex(before, rf"{label}(?![\d.])|{label}\.(?! {re.escape(exhibit.caption[:20])})")
            if exhibit.kind == "table":
                rows = export_report.text_of(exhibit.outputs[0].data["text/plain"]).split("\n")
                numbers = [set(re.findall(r"\d[\d.,]*", row)) for row in (rows[1], rows[-1])]
                for expected in numbers:
                    self.assertLessEqual(expected, set(re.findall(r"\d[\d.,]*", proper[on[0]])), label)

    def test_the_report_proper_shows_no_code_and_no_markup(self):
        for lines in self.pages[: self.proper]:
            words = "\n".join(lines)
            self.assertNotRegex(words, r"let |tables::|charts::|</(?!s>)|\]\(#|\*\*|\$\$|\$\\")

    def test_pages_have_a_running_head_but_the_first_and_the_appendix_says_so(self):
        for number, lines in enumerate(self.pages):
            self.assertEqual(lines[-1], str(number + 1))
            if number > 0:
                self.assertTrue(lines[0].startswith(self.report.title), lines[0])
            self.assertEqual(lines[0].endswith("Appendix"), number >= self.proper, lines[0])

    def test_a_word_is_found_in_the_text_whole(self):
        words = " ".join(" ".join(lines) for lines in self.pages)
        # At the end of a line it is seen as a hyphen.
        self.assertNotRegex(words, f"{SOFT_HYPHEN}(?!\u2010)")
        for word in ["parameters", "classifier", "pretrained"]:
            self.assertIn(word, words)

    def test_the_file_names_title_language_and_pictures_embeds_its_fonts_and_no_path(self):
        said = subprocess.run(["pdfinfo", self.pdf], capture_output=True, check=True, text=True).stdout
        self.assertRegex(said, rf"Title: +{re.escape(self.report.title)}")
        self.assertRegex(said, r"Tagged: +yes")
        self.assertIn(b"/Lang (en)", self.content)
        # Of the report's figures, and of the charts that stand in the appendix alone.
        self.assertEqual(self.content.count(b"/Alt ("), len(stills.charts(self.notebook)))
        self.assertIn(b"/Outlines", self.content)
        fonts = subprocess.run(["pdffonts", self.pdf], capture_output=True, check=True, text=True).stdout.splitlines()[2:]
        self.assertTrue(fonts and all(re.search(r" yes (yes|no)  ?(yes|no) ", font) for font in fonts), fonts)
        for path in [b"file:", str(ROOT).encode(), tempfile.gettempdir().encode()]:
            self.assertNotIn(path, self.content)


@unittest.skipUnless(HAS_TOOLS, NEEDS_TOOLS)
class CommittedPaper(Paper, unittest.TestCase):
    """The paper of the notebook that is in the repository."""

    def test_the_report_proper_has_8_to_12_pages(self):
        self.assertIn(self.proper, range(8, 13))


# A run that lies there may be of another notebook: it is looked at where it was just made.
@unittest.skipUnless(HAS_TOOLS and RUN.is_file() and os.environ.get("SMOKE_REPORT"), f"{NEEDS_TOOLS}, and make test-report")
class SmokePaper(Paper, unittest.TestCase):
    """The paper of the notebook as `make report PROFILE=smoke` has run it."""

    NOTEBOOK = RUN


@unittest.skipUnless(HAS_TOOLS, NEEDS_TOOLS)
class MadeUpPaper(unittest.TestCase):
    """The paper of a made-up notebook."""

    def test_pages_are_full_where_charts_tables_and_texts_follow_one_another(self):
        drawn = '<svg xmlns="http://www.w3.org/2000/svg" width="700" height="380"><rect width="700" height="380" fill="#ccc"/></svg>'
        row = "<tr><td>a</td><td>b</td></tr>"
        cells = [text("# T\n\nAn introduction.")]
        for number in range(1, 9):
            words = "A sentence that says what the next cell shows. " * (3 * number % 7 + 1)
            rows = f"<table><thead><tr><th>one</th><th>two</th></tr></thead><tbody>{row * (5 * number % 13 + 2)}</tbody></table>"
            cells += [text(f"## Part {number}\n\n{words}\n\nSee [it](#t{number}).\n\n{words}\n\nAnd [it](#f{number}).\n\n{words}")]
            cells += [exhibit("table", f"t{number}", {"text/html": rows}), exhibit("figure", f"f{number}", {"image/svg+xml": drawn})]
        with tempfile.TemporaryDirectory() as folder:
            pdf = Path(folder, "report.pdf")
            export_report.print_pdf(page(new_notebook(cells=cells), PAPER_FORMS), BROWSER, pdf)
            pages, rooms = page_texts(pdf), text_rooms(pdf)
        proper = next(number for number, lines in enumerate(pages) if "Appendix: the notebook’s code" in lines)
        self.assertGreater(proper, 3)
        self.assertLess(max(rooms[: proper - 1]), 0.25, rooms)


@unittest.skipUnless(BROWSER, "needs Chromium (apt-get install chromium)")
class Stills(unittest.TestCase):
    """The still pictures of charts."""

    def test_every_chart_without_a_still_gets_one_with_its_words(self):
        bare = {form: content for form, content in CHART.items() if form != "image/svg+xml"}
        charts = notebook(result(CHART), result(bare), result(bare), result({"text/plain": "3"}))
        stills.add_stills(charts, BROWSER)
        kept, first, second, number = (output.data for output in charts.cells[1].outputs)
        self.assertEqual(kept["image/svg+xml"], CHART["image/svg+xml"])
        self.assertNotIn("image/svg+xml", number)
        svg = ElementTree.fromstring(first["image/svg+xml"])
        self.assertEqual((svg.get("role"), svg.get("aria-label"), svg.get("height")), ("img", CHART["text/plain"], "300"))
        self.assertNotIn("<script", first["image/svg+xml"])
        ids = [set(re.findall(r'id="([^"]+)"', data["image/svg+xml"])) for data in (first, second)]
        self.assertTrue(ids[0] and ids[0].isdisjoint(ids[1]), "two stills of one page do not share a clipping path")

    def test_a_still_is_the_same_each_time(self):
        figure = CHART["application/vnd.plotly.v1+json"]
        self.assertEqual(stills.draw([figure], BROWSER), stills.draw([figure], BROWSER))

    def test_a_browser_that_does_not_start_is_an_error_that_says_what_to_do(self):
        with self.assertRaisesRegex(BrowserError, "CHROME="):
            stills.draw([CHART["application/vnd.plotly.v1+json"]], "/no/browser")


if __name__ == "__main__":
    unittest.main()
