"""Tests of what a student hands in: what the zip file holds, and what is refused. scripts/submission_test.sh runs it."""

import contextlib
import io
import json
import re
import subprocess
import tempfile
import tomllib
import unittest
import zipfile
from pathlib import Path

import submission

FOLDER = "F1234567_GAI_Project3"
DEP = ':dep lab = { path = "../crates/lab" }\n'


def result(text):
    """The result of a cell."""
    return {"output_type": "execute_result", "execution_count": 1, "metadata": {}, "data": {"text/plain": [text]}}


def notebook(*outputs, count=2, profile="standard"):
    """A notebook whose first cell loads the library and whose second has these outputs."""
    sources = [([DEP, "use lab::prelude::*;"], 1, []), (["tables::setup()"], count, list(outputs))]
    code = [
        {"cell_type": "code", "execution_count": number, "metadata": {}, "outputs": outputs, "source": source}
        for source, number, outputs in sources
    ]
    text = {"cell_type": "markdown", "metadata": {}, "source": ["# Data of `../data/glue`"]}
    return {"cells": [text, *code], "metadata": {"report": {"profile": profile}}, "nbformat": 4, "nbformat_minor": 5}


class HandIn(unittest.TestCase):
    """A folder for what is handed in and for the zip file."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        cls.report = cls.folder / "report.pdf"
        cls.report.write_bytes(b"%PDF-1.4 a report")

    def submit(self, student="F1234567", executed=None, report=None):
        """The exit status, and what is said."""
        path = self.folder / "main.ipynb"
        path.write_text(executed if isinstance(executed, str) else json.dumps(executed or notebook(result("of ../data/glue"))))
        command = [student] if student is not None else []
        command += ["--notebook", str(path), "--report", str(report or self.report), "--output", str(self.folder)]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = submission.main(command)
        return status, said.getvalue()


class Contents(HandIn):
    """A zip file of a small notebook."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        status, cls.said = cls().submit()
        assert status == 0, cls.said
        cls.zip = zipfile.ZipFile(cls.folder / f"{FOLDER}.zip")
        cls.addClassCleanup(cls.zip.close)
        cls.names = [name.removeprefix(f"{FOLDER}/") for name in cls.zip.namelist()]

    def read(self, name):
        """The text of a file in the zip file."""
        return self.zip.read(f"{FOLDER}/{name}").decode()

    def test_it_unpacks_to_one_folder_with_notebook_requirements_and_report_at_the_top(self):
        self.assertTrue(all(name.startswith(f"{FOLDER}/") for name in self.zip.namelist()))
        for name in ["main.ipynb", "requirements.txt", "crates.txt", "report.pdf", "README.md"]:
            self.assertIn(name, self.names)
        self.assertEqual(self.zip.read(f"{FOLDER}/report.pdf"), self.report.read_bytes())

    def test_paths_in_code_are_those_of_the_top_and_what_was_shown_stays(self):
        cells = json.loads(self.read("main.ipynb"))["cells"]
        self.assertEqual(cells[1]["source"][0], ':dep lab = { path = "crates/lab" }\n')
        self.assertEqual(cells[0]["source"], ["# Data of `../data/glue`"])
        self.assertEqual(cells[2]["outputs"], [result("of ../data/glue")])

    def test_the_kernels_settings_are_those_of_the_repository_one_folder_further_up(self):
        settings = tomllib.loads(self.read("evcxr.toml"))["evcxr"]
        self.assertEqual(list(settings), ["prelude"])
        self.assertTrue(settings["prelude"].startswith("!cp Cargo.lock "), settings)
        self.assertTrue(settings["prelude"].endswith('/Cargo.lock"'), settings)

    def test_a_path_is_taken_up_by_one_folder_only(self):
        self.assertEqual(submission.one_folder_up('"../../a", "../b/../c", a../d'), '"../a", "b/../c", a../d')

    def test_the_workspace_is_whole(self):
        for member in submission.ROOT.glob("crates/*/Cargo.toml"):
            self.assertIn(str(member.relative_to(submission.ROOT)), self.names)
        for name in ["Cargo.toml", "Cargo.lock", ".cargo/config.toml"]:
            self.assertEqual(self.read(name), (submission.ROOT / name).read_text())

    def test_what_makefile_and_scripts_name_is_there(self):
        texts = [self.read(name) for name in self.names if name == "Makefile" or name.startswith("scripts/")]
        named = {name for text in texts for name in re.findall(r"(?<![\w/.])scripts/\w+\.(?:py|sh)", text)}
        self.assertLessEqual(named, set(self.names))
        self.assertIn("scripts/setup.sh", named)

    def test_what_scripts_import_of_each_other_is_there(self):
        modules = {path.stem for path in (submission.ROOT / "scripts").glob("*.py")}
        for name in self.names:
            if re.fullmatch(r"scripts/\w+\.py", name):
                for module in re.findall(r"^(?:from|import) (\w+)", self.read(name), re.MULTILINE):
                    self.assertTrue(module not in modules or f"scripts/{module}.py" in self.names, f"{name} imports {module}")

    def test_nothing_that_git_ignores_no_data_and_no_built_file_is_in_it(self):
        made = {"Makefile", "README.md", "crates.txt", "evcxr.toml", "main.ipynb", "report.pdf", "requirements.txt"}
        tracked = subprocess.run(["git", "ls-files"], cwd=submission.ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        self.assertLessEqual(set(self.names) - made, set(tracked))
        for name in self.names:
            self.assertNotRegex(name, r"(^|/)(target|data|models|runs|__pycache__|\.venv)/|\.tsv$|\.pyc$")

    def test_requirements_are_a_freeze_without_a_path_or_an_address(self):
        lines = [line for line in self.read("requirements.txt").splitlines() if not line.startswith("#")]
        for line in lines:
            self.assertRegex(line, r"^[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+$")
        environment = (submission.ROOT / "environment.yml").read_text()
        for wanted in re.findall(r"^ +- (\w+==.*)$", environment, re.MULTILINE):
            self.assertIn(wanted, lines)

    def test_crates_are_what_the_notebooks_library_is_built_of_with_the_versions_of_the_lock_file(self):
        listed = {tuple(line.split()) for line in self.read("crates.txt").splitlines() if not line.startswith("#")}
        locked = {(package["name"], package["version"]) for package in tomllib.loads(self.read("Cargo.lock"))["package"]}
        self.assertLessEqual(listed, locked)
        names = {name for name, _ in listed}
        self.assertLessEqual({"lab", "peft-glue-data", "peft-glue-ops", "peft-glue-tuners", "peft-glue-trainer", "candle-core", "polars", "plotly", "tokenizers"}, names)
        self.assertFalse({"cli", "clap", "candle-transformers"} & names)

    def test_the_readme_says_how_the_handed_in_results_are_repeated(self):
        self.assertIn("make report PROFILE=standard ", self.read("README.md"))

    def test_no_text_names_a_folder_of_this_machine(self):
        for name in self.names:
            self.assertNotIn(str(submission.ROOT).encode() + b"/", self.zip.read(f"{FOLDER}/{name}"), name)

    def test_equal_files_give_equal_bytes_in_order_with_one_time_and_two_modes(self):
        files = {"b": (b"2", True), "a": (b"1", False)}
        turned = dict(reversed(files.items()))
        self.assertEqual(submission.archive("F", files), submission.archive("F", turned))
        self.assertEqual(self.names, sorted(self.names))
        self.assertEqual({entry.date_time for entry in self.zip.infolist()}, {submission.TIMESTAMP})
        modes = {name: entry.external_attr >> 16 for name, entry in zip(self.names, self.zip.infolist())}
        self.assertEqual(set(modes.values()), {0o100644, 0o100755})
        self.assertEqual(modes["scripts/setup.sh"], 0o100755)


class Refusals(HandIn):
    """What is not handed in."""

    def refused(self, *expected, **arguments):
        """Checks that nothing is written, and that each of these is said."""
        status, said = self.submit(**arguments)
        self.assertEqual(status, 1, said)
        for text in expected:
            self.assertIn(text, said)
        self.assertEqual(list(self.folder.glob("*.zip")), [])

    def test_a_name_that_is_no_id_is_refused_with_what_one_looks_like(self):
        for text in ["1234567", "F123456", "F1234567890", "FF123456", "F12345x7", "F1234567\n", "../F1234567", "F١٢٣٤٥٦٧"]:
            with self.subTest(text):
                self.refused(repr(text), "a letter and 7 to 9 digits", "make submission STUDENT_ID=F1234567", student=text)

    def test_a_missing_id_is_refused_with_how_to_type_it(self):
        for text in ["", None]:
            self.refused("found none", "make submission STUDENT_ID=F1234567", student=text)

    def test_an_id_is_written_in_capitals(self):
        self.assertEqual(submission.student_id("f123456789"), "F123456789")

    def test_a_missing_report_and_one_that_is_no_pdf_are_refused(self):
        self.refused("none.pdf", "there is no report", "make report", report=self.folder / "none.pdf")
        page = self.folder / "page.pdf"
        page.write_bytes(b"<html></html>")
        self.refused("page.pdf", "expected a PDF", "<html>", report=page)

    def test_a_notebook_that_was_not_run_is_refused(self):
        self.refused("main.ipynb", "code cell 2 was not run", "make report", executed=notebook(count=None))
        self.refused("found no cell with an output", executed=notebook())
        self.refused("the profile", executed=notebook(result("1"), profile=None))

    def test_a_notebook_with_an_error_is_refused_with_the_cell_and_the_error(self):
        error = {"output_type": "error", "ename": "E0425", "evalue": "cannot find value", "traceback": []}
        self.refused("code cell 2", "cannot find value", "make report", executed=notebook(result("1"), error))

    def test_an_error_that_is_no_more_than_a_text_on_stderr_is_refused_too(self):
        panic = {"output_type": "stream", "name": "stderr", "text": ["thread panicked at 'x'\n", "more"]}
        self.refused("code cell 2", "panicked", executed=notebook(result("1"), panic))

    def test_a_file_that_is_no_notebook_is_refused(self):
        for text in ["no JSON", "{}", "[1]", '{"cells": [1]}']:
            with self.subTest(text):
                self.refused("main.ipynb", "expected a notebook", executed=text)


if __name__ == "__main__":
    unittest.main()
