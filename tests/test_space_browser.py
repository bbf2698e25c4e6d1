"""The page of `hubplugin space` in a real browser, on a pico model of the embedded Hub."""

import os
from pathlib import Path
from typing import Any

import psutil
import pytest
from huggingface_hub import HfApi
from serve_helpers import browser, until

__all__ = ["browser"]  # a fixture


class Tab:
    """The page as a visitor handles it."""

    def __init__(self, browser: Any, url: str, width: int = 1280) -> None:
        self.trouble: list[str] = []
        self.asked: list[str] = []
        self.tab = browser.new_page(viewport={"width": width, "height": 900})
        self.tab.set_default_timeout(30_000)
        self.tab.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(url)
        self.tab.locator("#compress").wait_for()

    def write(self, field: str, text: str) -> None:
        box = self.tab.locator(f"#{field} input, #{field} textarea").first
        box.fill(text)
        box.press("Tab")

    def choose(self, group: str, name: str) -> None:
        self.tab.locator(f"#{group}").get_by_label(name, exact=True).check()

    def press(self, button: str) -> None:
        self.tab.locator(f"button#{button}").click()

    def read(self, part: str) -> str:
        found = self.tab.locator(f"#{part}")
        return str(found.inner_text()) if found.count() and found.is_visible() else ""

    def log(self) -> str:
        box = self.tab.locator("#log textarea")
        return str(box.input_value()) if box.count() else ""

    def fits(self) -> bool:
        return bool(self.tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))

    def picture(self, name: str) -> None:
        """One for people, where they ask for it: HUBPLUGIN_SCREENSHOTS=folder pytest -m serve -k space"""
        if folder := os.environ.get("HUBPLUGIN_SCREENSHOTS"):
            self.tab.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.serve
def test_a_visitor_plans_compresses_publishes_and_cancels(
    browser: Any, hub: HfApi, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from hubplugin.space import app

    token = str(hub.token)
    monkeypatch.delenv("HF_TOKEN")  # nobody has logged in on this machine
    with app.launch() as page:
        tab = Tab(browser, page.url)
        tab.write("model", "nobody/nothing")
        until(lambda: "no such repo" in tab.read("plan"))
        tab.picture("error")
        tab.write("model", "local/pico")
        until(lambda: "use sequence_length: 256 or fewer" in tab.read("plan"))
        tab.write("samples", "4")
        tab.write("length", "64")
        tab.choose("group", "32")
        until(lambda: "GPTQ-Int4" in tab.read("plan") and "vLLM, cpu" in tab.read("plan"))
        tab.choose("bits", "8 bits")
        until(lambda: "GPTQ-Int8" in tab.read("plan") and "sequence_length: 64" in tab.read("manifest"))
        assert tab.fits()
        tab.picture("plan")

        tab.write("token", token)
        until(lambda: tab.tab.locator("#owner input, #owner textarea").first.input_value() == "local")
        until(lambda: "local/{model}-{variant}" in tab.read("manifest"))
        tab.press("compress")
        job = until(lambda: next((one.job for one in page.desk.visitors._open.values() if one.job), None))
        child = psutil.Process(until(lambda: job.pid))
        assert token not in str(child.environ()) and token not in str(child.cmdline())
        until(lambda: "finished" in tab.read("status"), 240)
        assert "passed" in tab.read("result") and "How it was made" in tab.read("card")
        assert tab.tab.locator("#card img").evaluate_all("all => all.length && all.every(one => one.naturalWidth)")
        tab.picture("result")
        tab.press("publish")
        until(lambda: "published: " in tab.read("published"), 60)
        assert "report.json" in hub.list_repo_files("local/pico-GPTQ-Int8")
        assert hub.model_info("local/pico-GPTQ-Int8").private

        tab.choose("bits", "4 bits")
        until(lambda: "GPTQ-Int4" in tab.read("plan"))
        tab.press("compress")
        until(lambda: "hub " in tab.log())
        child = psutil.Process(until(lambda: _pid(page)))
        tab.press("cancel")
        until(lambda: tab.read("status").startswith("cancelled"), shown=lambda: (tab.read("status"), tab.log()[-600:]))
        assert not child.is_running() and tab.tab.locator("#publish").count() == 0
        root = page.desk.visitors._root
        assert [path for path in root.rglob("*") if path.is_file() and token.encode() in path.read_bytes()] == []
        tab.tab.set_viewport_size({"width": 390, "height": 844})
        assert tab.fits()
        tab.tab.close()
        until(lambda: not any(root.iterdir()))  # a closed tab leaves nothing behind
    said = capfd.readouterr()
    strangers = [url for url in tab.asked if not url.startswith((page.url, "data:", "blob:"))]
    assert token not in said.out + said.err and strangers == [] and tab.trouble == []
    assert not root.exists()


def _pid(page: Any) -> int | None:
    return next((one.job.pid for one in page.desk.visitors._open.values() if one.job and one.job.running), None)
