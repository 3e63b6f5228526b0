"""Opens a page in a headless Chromium."""

import subprocess
import tempfile
from pathlib import Path

OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-quic",
]  # fmt: skip

# A PDF takes half a minute, and longer with many charts, whose sizes are tried; a browser that hangs must not hang the export.
TIMEOUT_SECONDS = 900


class BrowserError(Exception):
    """What the browser did not do."""


def open_page(browser, html, *options):
    """Opens a page with these options, and returns the finished process."""
    with tempfile.TemporaryDirectory(prefix="page-") as folder:
        page = Path(folder, "page.html")
        page.write_text(html, encoding="utf-8")
        command = [browser, *OPTIONS, f"--user-data-dir={folder}/profile", *options, page.as_uri()]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
        except OSError as error:
            raise BrowserError(f"{browser or 'no browser'} does not start ({error}); name one with CHROME=...") from error
        except subprocess.TimeoutExpired as error:
            raise BrowserError(f"{browser} was not done within {TIMEOUT_SECONDS} s; name another with CHROME=...") from error
