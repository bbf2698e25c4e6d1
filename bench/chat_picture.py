"""README's picture of the chat page: two models of a running endpoint answer one question.

hubplugin serve BASE VARIANT --eager --port 8001      # in another terminal
python bench/chat_picture.py http://127.0.0.1:8001 docs/chat.png
"""

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from serve.chat_page import app

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
QUESTION = "How do I open a file?"
WAIT = 120_000  # milliseconds


def main() -> None:
    """Ask, wait for both answers, take the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    with app.launch(options.url) as served, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=next(filter(None, map(shutil.which, CHROMIUM))), args=["--headless", "--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.set_default_timeout(WAIT)
        tab.goto(served.url)
        tab.get_by_text("the base that others here are made from").wait_for()  # the list of models has come
        tab.get_by_label("Compare with").first.click()
        tab.get_by_role("option").last.click()
        box = tab.locator("#tokens input[type=number]")
        box.fill("64")
        box.press("Tab")
        message = tab.locator("#box textarea")
        message.fill(QUESTION)
        message.press("Enter")
        tab.locator("#difference p").wait_for()
        tab.get_by_role("button", name="Send", exact=True).wait_for()
        tab.evaluate("window.scrollTo(0, 0)")
        tab.screenshot(path=options.picture)
        browser.close()


if __name__ == "__main__":
    main()
