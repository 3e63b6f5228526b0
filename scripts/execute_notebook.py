"""Runs a notebook with its own kernel from top to bottom, and shows what it does while it does it.

Each cell's output goes to the terminal line by line, under the cell's number and section. The executed notebook, with a still of each
chart, replaces the output file in one step, when every cell has succeeded; a cell's error ends the run with status 1 and leaves that
file alone.
"""

import argparse
import asyncio
import contextlib
import datetime
import os
import queue
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from browser import BrowserError
from files import write_atomically
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from stills import add_stills

# Kernel start compiles an empty crate; on a busy machine that takes longer than Jupyter's usual 60 s.
STARTUP_TIMEOUT_SECONDS = 600


# What a cell printed last may arrive just after its end.
LATE_OUTPUT_SECONDS = 0.05


class CellFailed(Exception):
    """What the kernel says is wrong with a cell."""


class NarratedClient(NotebookClient):
    """A notebook client that tells on the terminal which cell runs and what it prints, and ends at a cell that fails."""

    def narrate(self):
        """Takes the notebook's sections, and sets the clock."""
        self.sections = sections(self.nb)
        self.started = time.monotonic()
        self.section = None
        self.stopping = None
        self.on_cell_execute = self.cell_begins
        self.on_cell_executed = self.cell_ends

    async def _async_cleanup_kernel(self):
        """Stops the kernel, once: Ctrl-C asks for it, and then the end of the run that follows from that."""
        if self.stopping is None:
            self.stopping = asyncio.ensure_future(super()._async_cleanup_kernel())
        await self.stopping

    def cell_begins(self, cell, cell_index):
        """Names the section where a new one begins, and the cell."""
        if self.sections[cell_index] != self.section:
            self.section = self.sections[cell_index]
            print(f"\n=== {self.section}")
        first_line = cell.source.strip().split("\n")[0]
        print(f"[{clock(time.monotonic() - self.started)}] cell {cell_index + 1}/{len(self.nb.cells)}: {first_line[:90]}")
        self.cell_started = time.monotonic()
        self.complaints = []

    def process_message(self, msg, cell, cell_index):
        """Shows printed text as it arrives. What cargo says of a build is shown too, but is no part of the notebook."""
        content = msg["content"]
        if msg["msg_type"] == "error":
            self.complaints += content["traceback"] or [content["evalue"]]
        elif msg["msg_type"] == "stream":
            lines = content["text"].splitlines()
            for line in lines:
                print(f"    {line}")
            if all(is_build_progress(line) for line in lines):
                return None
            if content["name"] == "stderr":
                self.complaints += lines
        return super().process_message(msg, cell, cell_index)

    async def cell_ends(self, cell, cell_index, execute_reply):
        """Says how long a slow cell took. Where the kernel complained, the cell has failed: of an error that `?` returned, and of
        a panic, evcxr tells no more than a text on stderr, and calls the cell a success."""
        with contextlib.suppress(queue.Empty):
            while True:
                late = await self.kc.get_iopub_msg(timeout=LATE_OUTPUT_SECONDS)
                if late["msg_type"] == "stream":
                    self.process_message(late, cell, cell_index)
        seconds = time.monotonic() - self.cell_started
        if seconds >= 10:
            print(f"    ({seconds:.0f} s)")
        if self.complaints or execute_reply["content"]["status"] != "ok":
            raise CellFailed("\n".join([cell.source, "-" * 40, *self.complaints]))


def is_build_progress(line):
    """Whether cargo printed this line while it built a cell: a verb right-aligned to 12 columns, as in `   Compiling rand`."""
    return re.match(r" +(Updating|Locking|Adding|Downloading|Downloaded|Compiling|Blocking|Building|Finished|Removing) ", line) is not None


def sections(notebook):
    """For each cell the heading (level 1 or 2) that it stands under."""
    current, result = "Start", []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if line.startswith(("# ", "## ")):
                    current = line.lstrip("# ").strip()
        result.append(current)
    return result


def clock(seconds):
    """Minutes and seconds, as in 12:05."""
    return f"{int(seconds) // 60:02}:{int(seconds) % 60:02}"


def commit(folder):
    """The commit the notebook ran from, with `+` after it where files had been changed since; empty without git."""

    def git(*arguments):
        return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def execute(source, target, profile, browser):
    """Runs `source` in its own folder and writes the executed notebook to `target`; the exit status is returned."""
    notebook = nbformat.read(source, as_version=4)
    folder = source.resolve().parent
    os.environ["LAB_PROFILE"] = profile
    notebook.metadata["report"] = {
        "profile": profile,
        "date": datetime.date.today().isoformat(),
        "commit": commit(folder),
    }
    client = NarratedClient(
        notebook,
        timeout=None,
        startup_timeout=STARTUP_TIMEOUT_SECONDS,
        resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True,
        record_timing=False,
    )
    client.narrate()
    try:
        client.execute()
    except CellFailed as error:
        print(f"\nerror in {source}, section {client.section!r}, in the cell\n{'-' * 40}\n{error}", file=sys.stderr)
        if ":dep" in str(error):
            print("Where the lab itself does not build, `cargo build -p lab` tells more.", file=sys.stderr)
        return 1
    except DeadKernelError:
        print(
            f"\nerror: the Rust kernel ended in {source}, section {client.section!r}: interrupted, crashed, or out of memory. "
            "Runs that finished keep their records.",
            file=sys.stderr,
        )
        return 1
    try:
        add_stills(notebook, browser)
    except BrowserError as error:
        print(f"warning: the charts have no stills, so they show in Jupyter only: {error}", file=sys.stderr)
    write_atomically(nbformat.writes(notebook).encode(), target)
    size = target.stat().st_size / 1e6
    print(f"\n[{clock(time.monotonic() - client.started)}] every cell succeeded; wrote {target} ({size:.1f} MB)")
    return 0


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="the executed notebook (may be the notebook itself)")
    parser.add_argument("--profile", choices=["smoke", "quick", "published", "standard", "full"], required=True)
    parser.add_argument("--browser", required=True, help="a Chromium or Chrome, which draws the stills of charts")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)
    if not arguments.notebook.is_file():
        print(f"error: there is no notebook {arguments.notebook}", file=sys.stderr)
        return 1
    return execute(arguments.notebook, arguments.output, arguments.profile, arguments.browser)


if __name__ == "__main__":
    sys.exit(main())
