"""A PNG of the first screen of a run's report, for README.md.

    python scripts/report_picture.py RUN PNG

needs Chromium with chromedriver (Debian: chromium, chromium-driver) and selenium. The report is rendered again; the run is not changed.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from selenium import webdriver

from sparring.report.run_page import write_report

WIDTH, HEIGHT = 1200, 800  # in CSS pixels
SCALE = 1.25  # device pixels each: readable on a forge, and below 300 KB
LARGEST = 300_000  # bytes


def browser() -> webdriver.Chrome:
    chromium, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (chromium and driver):
        sys.exit("no chromium with a chromedriver on PATH; Debian: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


def picture(page: Path, png: Path) -> None:
    """`page` as a browser first shows it, in the light theme."""
    chrome = browser()
    try:
        metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": SCALE, "mobile": False}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        light = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", light)
        chrome.get(page.resolve().as_uri())
        png.parent.mkdir(parents=True, exist_ok=True)
        chrome.save_screenshot(str(png))
    finally:
        chrome.quit()


def main(run: str, png: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        page = write_report(Path(run), Path(folder) / "report.html")
        picture(page, Path(png))
    size = Path(png).stat().st_size
    print(f"wrote {png}, {size // 1000} KB")
    if size > LARGEST:
        sys.exit(f"{png} has {size} bytes, more than {LARGEST}: lower SCALE")


if __name__ == "__main__":
    main(*sys.argv[1:])
