"""Tests of the script that starts a notebook's kernel, with a stand-in for the kernel."""

import os
import subprocess
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).resolve().with_name("rust_kernel.sh")
# Prints its build folder, and runs until its input ends.
KERNEL = ["bash", "-c", 'echo "$EVCXR_TMPDIR $LAB_KERNEL_FOLDER"; read -r _ || true']


class Kernels(unittest.TestCase):
    """Kernels of one project."""

    def setUp(self):
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.project = Path(place.name).resolve()
        (self.project / "notebooks").mkdir()
        (self.project / "Cargo.lock").touch()
        self.folders = self.project / "target/evcxr/target/package"

    def start(self):
        """A kernel that runs, and its build folder."""
        kernel = subprocess.Popen(
            [SCRIPT, *KERNEL], cwd=self.project / "notebooks", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.addCleanup(kernel.communicate)
        folder, same = kernel.stdout.readline().split()
        self.assertEqual(folder, same)
        return kernel, Path(folder)

    def test_each_kernel_has_a_folder_to_itself_and_what_is_free_is_taken_again(self):
        kernels = [self.start() for _ in range(3)]
        self.assertEqual([folder for _, folder in kernels], [self.folders / str(number) for number in range(3)])
        kernels[1][0].communicate("\n")
        self.assertEqual(self.start()[1], self.folders / "1")

    def test_another_folder_begins_with_what_the_first_has_built_but_not_with_its_cells(self):
        first, folder = self.start()
        built = folder / "target/debug/deps"
        built.mkdir(parents=True)
        for name in ["liblab-1.so", "libctx.so", "libcode_1.so"]:
            (built / name).write_text(name)
        (folder / "src").mkdir()
        (folder / "src/lib.rs").write_text("the first one's cell")
        _, second = self.start()
        self.assertEqual([path.name for path in second.rglob("*") if path.is_file()], ["liblab-1.so"])
        self.assertEqual((second / "target/debug/deps/liblab-1.so").read_text(), "liblab-1.so")

    def test_the_cells_belong_to_no_workspace_of_a_folder_above(self):
        self.project.joinpath("Cargo.toml").write_text('[workspace]\nmembers = []\n')
        _, folder = self.start()
        (folder / "src").mkdir(parents=True)
        (folder / "src/lib.rs").touch()
        (folder / "Cargo.toml").write_text('[package]\nname = "ctx"\nversion = "1.0.0"\nedition = "2024"\n')
        command = ["cargo", "metadata", "--offline", "--no-deps", "--format-version", "1"]
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        self.assertEqual(found.returncode, 0, found.stderr)

    def test_what_is_missing_is_said(self):
        nowhere = {"PATH": "/usr/bin:/bin", "HOME": str(self.project), "CARGO_HOME": str(self.project)}
        ended = subprocess.run([SCRIPT, *KERNEL], cwd=self.project, env=nowhere, capture_output=True, text=True)
        self.assertEqual(ended.returncode, 1)
        self.assertIn("cargo is not found", ended.stderr)
        (self.project / "target").write_text("no folder")
        ended = subprocess.run([SCRIPT, *KERNEL], cwd=self.project, env=os.environ, capture_output=True, text=True)
        self.assertEqual(ended.returncode, 1)
        self.assertIn("cannot be written", ended.stderr)


if __name__ == "__main__":
    unittest.main()
