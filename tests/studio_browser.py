"""Chromium on a page of the studio: what a person does there, and what it asks the network for."""

import base64
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

SECONDS = 90.0  # for anything that the page has to do


def open_browser(size: tuple[int, int], downloads: Path) -> Any:
    """A Chromium without a window; skips, with the reason, where there is none. size: (width, height)."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(driver))
    made.set_window_size(*size)
    return made


class StudioBrowser:
    """A person at the page."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address
        self.hosts: set[str] = set()
        driver.get(address)
        self.wait(lambda: "Drop a picture" in self.hint())

    def all(self, query: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", query))

    def one(self, query: str) -> Any:
        self.wait(lambda: self.all(query))
        return self.all(query)[0]

    def wait(self, until: Callable[[], Any], seconds: float = SECONDS) -> None:
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + seconds
        while True:
            try:
                if until():
                    return
            except (StaleElementReferenceException, IndexError):  # the page is being changed
                pass
            if time.monotonic() > end:
                raise AssertionError(f"nothing came of it in {seconds:g} s: {self.toast()!r}")
            time.sleep(0.1)

    def click(self, query: str, words: str | None = None) -> None:
        """Click on what a query finds, or the one of them with these words."""
        found = lambda: [one for one in self.all(query) if words is None or one.text.strip() == words]  # noqa: E731
        self.wait(found)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].click()", found()[0])

    def hint(self) -> str:
        return str(self.driver.execute_script("return document.querySelector('.stage .hint')?.textContent || ''"))

    def toast(self) -> str:
        return " ".join(one.text for one in self.all(".toast-body"))

    def category(self, name: str) -> None:
        self.click("#studio-category label", name.capitalize())

    def task(self, words: str) -> None:
        self.click(".studio-task label", words)
        self.wait(lambda: any(one.text.strip() == words for one in self.all(".studio-task label.selected")))

    def give(self, role: str, *files: Path) -> None:
        """Choose files for a role, in the place of what is there."""
        place = f"#picture-{role}"
        for clear in self.all(f"{place} button[aria-label='Clear']"):
            self.driver.execute_script("arguments[0].click()", clear)
        self.one(f"{place} input[type=file]").send_keys("\n".join(map(str, files)))
        self.wait(lambda: files[0].stem in self.one(f"{place} .file-preview").text)

    def drop(self, file: Path) -> None:
        """Drop a file on the stage."""
        self.driver.execute_script(
            "const bytes = Uint8Array.from(atob(arguments[0]), one => one.charCodeAt(0));"
            "const dataTransfer = new DataTransfer();"
            "dataTransfer.items.add(new File([bytes], arguments[1], {type: 'image/png'}));"
            "document.querySelector('.stage .sheet').dispatchEvent("
            "new DragEvent('drop', {dataTransfer, bubbles: true, cancelable: true}));",
            base64.b64encode(file.read_bytes()).decode(),
            file.name,
        )

    def option(self, name: str, value: Any) -> None:
        """Type an option."""
        field = self.one(f"#option-{name} input, #option-{name} textarea")
        self.driver.execute_script(
            "const [field, value] = arguments;"
            "Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), 'value').set.call(field, value);"
            "field.dispatchEvent(new Event('input', {bubbles: true}));"
            "field.dispatchEvent(new Event('change', {bubbles: true}));",
            field,
            str(value),
        )

    def run(self) -> list[str]:
        """Press Run, wait for the result. Returns the names of its layers, front to back."""
        before = len(self.all(".history button"))
        self.click("#studio-start")
        self.wait(lambda: len(self.all(".history button")) > before)
        self.wait(lambda: self.all("#studio-start") and self.all(".stage aside:not([hidden]) li"))
        return [one.text for one in self.all(".stage aside li b")]

    def drag(self, *places: tuple[float, float]) -> None:
        """Press on the picture, move and let go; places as shares of the stage's canvas."""
        from selenium.webdriver import ActionChains

        canvas = self.one(".stage canvas")
        width, height = canvas.size["width"], canvas.size["height"]
        chain = ActionChains(self.driver, duration=20)
        for number, (x, y) in enumerate(places):
            chain.move_to_element_with_offset(canvas, (x - 0.5) * width, (y - 0.5) * height)
            if number == 0:
                chain.click_and_hold()
        chain.release().perform()

    def pixel(self, x: float, y: float) -> list[int]:
        """RGBA that the canvas shows at a place, in shares of it."""
        self.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        return list(
            self.driver.execute_script(
                "const c = document.querySelector('.stage canvas');"
                "const [x, y] = [arguments[0] * c.width, arguments[1] * c.height];"
                "return [...c.getContext('2d').getImageData(x, y, 1, 1).data]",
                x,
                y,
            )
        )

    def foreign(self) -> set[str]:
        """Hosts other than the studio's that anything on the page has asked so far."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                asked = message["params"].get("request", message["params"])["url"]
                if not asked.startswith(("data:", "blob:", "about:")):
                    self.hosts.add(urlsplit(asked).netloc)
        return self.hosts - {urlsplit(self.address).netloc}

    def errors(self) -> list[str]:
        """What the page's scripts complained of."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def picture(self, file: Path) -> None:
        """Write what the window shows as a small PNG."""
        import io

        from PIL import Image

        self.driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 300))")
        shown = Image.open(io.BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        shown.quantize(192, dither=Image.Dither.NONE).save(file, optimize=True)
