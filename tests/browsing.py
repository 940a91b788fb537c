"""Debian's Chromium, driven by Playwright, for tests of the page."""

import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

LOCAL = Path(__file__).parent.parent / ".local" / "chromium"  # where `make chromium` puts it without root
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
MISSING = "there is no Chromium: `make chromium` installs it on Debian; elsewhere install chromium"
OPTIONS = [
    "--no-sandbox",  # Chromium refuses to run as root with its sandbox, and the pages are our own
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-domain-reliability",
    "--disable-sync",
    "--no-first-run",
    "--no-pings",
]
WIDE, PHONE = (1440, 900), (390, 844)


def chromium() -> tuple[str, Mapping[str, str]] | None:
    """The program and the variables that it needs; None if there is none."""
    if program := next(filter(None, map(shutil.which, PROGRAMS)), None):
        return program, {}
    if not (program := LOCAL / "usr/lib/chromium/chromium").exists():
        return None
    libraries = sorted({str(file.parent) for file in (LOCAL / "usr/lib").rglob("*.so*")})
    variables = {"LD_LIBRARY_PATH": ":".join(libraries), "XDG_DATA_HOME": str(LOCAL / "usr/share")}
    if not Path("/etc/fonts/fonts.conf").exists():
        variables["FONTCONFIG_FILE"] = str(LOCAL / "etc/fonts/fonts.conf")
    return str(program), variables


@asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    """Chromium without a window. Without one the test is skipped, but not in CI."""
    found = chromium()
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    program, variables = found
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program, args=OPTIONS, env={**os.environ, **variables}
        )
        yield browser
        await browser.close()


class Visitor:
    """Opens pages of a service, and notes what they must never do."""

    def __init__(self, browser: Browser, address: str) -> None:
        self.address = address
        self.faults: list[str] = []
        self._browser = browser
        self._pages: list[Page] = []

    async def visit(self, path: str = "/", size: tuple[int, int] = WIDE, scheme: Any = "light", key: str = "") -> Page:
        """A new page in a browser profile of its own."""
        context = await self._browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme=scheme,
            reduced_motion="reduce",
            permissions=["clipboard-read", "clipboard-write"],
        )
        page = await context.new_page()
        self._pages.append(page)
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("console", self._said)
        page.on("request", lambda request: self._requested(request.url))
        await page.goto(self.address + path)
        return page

    def _said(self, message: ConsoleMessage) -> None:
        """Chromium reports each answer that is an error; the page shows it, and the test expects it."""
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            self.faults.append(f"console: {message.text}")

    def _requested(self, url: str) -> None:
        if not url.startswith((self.address, f"blob:{self.address}", "data:")):
            self.faults.append(f"request to {url}")

    async def leave(self) -> None:
        """Closes all pages."""
        for page in self._pages:
            await page.context.close()
