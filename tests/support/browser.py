"""A Chromium, as the tests of pages and the gallery use it."""

import contextlib
import shutil


NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def open_browser():
    """The browser; FileNotFoundError if none is installed."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        raise FileNotFoundError(f"none of {', '.join(NAMES)} is installed; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        # The sandbox does not work for root, and only pages of our own are opened.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
