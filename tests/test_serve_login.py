"""The login of the chat page: where it is needed, where it is read from, and that nothing is reached without it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve_helpers import browser, fake, until

from hubplugin.errors import ServeError
from serve import page_login, rate_limit
from serve.chat_page import app

__all__ = ["browser"]  # a fixture

LOGINS = ("ada:pass:wörd", "bob: s3cret ")


def test_beyond_loopback_a_login_or_a_word_is_needed() -> None:
    with pytest.raises(ServeError) as caught:
        app.launch("http://127.0.0.1:1", "0.0.0.0")  # said before the server is asked
    assert caught.value.where == "0.0.0.0" and "--open" in caught.value.fix and page_login.LOGIN in caught.value.fix
    page_login.refuse_unguarded("0.0.0.0", LOGINS, unguarded=False)
    page_login.refuse_unguarded("0.0.0.0", (), unguarded=True)
    page_login.refuse_unguarded("127.0.0.1", (), unguarded=False)


def test_logins_come_from_the_environment_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(page_login.LOGIN, raising=False)
    assert page_login.read() == ()
    file = tmp_path / "logins"
    file.write_text("# who may\n\n bob:s3cret\n", encoding="utf-8")
    monkeypatch.setenv(page_login.LOGIN, "ada:a:b")
    assert page_login.read(file) == ("ada:a:b", "bob:s3cret")


@pytest.mark.parametrize("said", ["s3cret", ":s3cret", "s3cret:", " :s3cret"])
def test_what_is_no_login_is_refused_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setenv(page_login.LOGIN, said)
    with pytest.raises(ServeError, match="is no login") as caught:
        page_login.read()
    assert "s3cret" not in caught.value.lines()
    monkeypatch.delenv(page_login.LOGIN)
    (tmp_path / "logins").write_text(f"a:b\n{said}\n", encoding="utf-8")
    with pytest.raises(ServeError, match="is no login") as caught:
        page_login.read(tmp_path / "logins")
    assert "s3cret" not in caught.value.lines() and caught.value.where.endswith("line 2")


@pytest.mark.parametrize("text", [None, "", "# none\n", b"\xff\xfe"])
def test_a_file_without_logins_is_an_error(tmp_path: Path, text: str | bytes | None) -> None:
    file = tmp_path / "logins"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ServeError, match=r"cannot be read|holds no login"):
        page_login.read(file)


@pytest.mark.parametrize(
    ("user", "password", "known"),
    [("ada", "pass:wörd", True), ("ada:pass", "wörd", True), ("ada", "pass", False), ("", "", False),
     ("bob", " s3cret ", True), ("bob", "s3cret", False), ("ada", " s3cret ", False), ("ada", "\ud800", False)],
)  # fmt: skip
def test_a_login_is_a_user_with_the_right_password(user: str, password: str, known: bool) -> None:
    check = page_login.check(LOGINS)
    assert check is not None and check(user, password) is known
    assert page_login.check(()) is None


def test_nothing_of_the_page_is_reached_without_the_login() -> None:
    with (
        fake() as server,
        app.launch(server.url, logins=("ada:s3cret",)) as page,
        httpx.Client(base_url=page.url, trust_env=False) as stranger,
    ):
        asked = len(server.requests) + len(server.paths)
        for path in ("config", "gradio_api/info"):
            assert stranger.get(path).status_code == 401
        for path in ("queue/join", "call/ask", "run/ask", "run/predict"):
            answer = stranger.post(f"gradio_api/{path}", json={"data": ["x"], "fn_index": 0, "session_hash": "x"})
            assert answer.status_code == 401, path
        assert server.url not in stranger.get("/").text
        wrong = stranger.post("login", data={"username": "ada", "password": "wrong"})
        assert wrong.status_code == 400 and stranger.get("config").status_code == 401
        assert len(server.requests) + len(server.paths) == asked
        assert stranger.post("login", data={"username": "ada", "password": "s3cret"}).status_code == 200
        assert stranger.get("config").status_code == 200 and "s3cret" not in stranger.get("config").text


def test_wrong_logins_are_limited_for_each_address_and_right_ones_are_not() -> None:
    with (
        fake() as server,
        app.launch(server.url, logins=("ada:s3cret",)) as page,
        httpx.Client(base_url=page.url, trust_env=False) as one,
    ):

        def tried(password: str, address: str = "", path: str = "login") -> httpx.Response:
            headers = {"X-Forwarded-For": address} if address else {}  # as a proxy on this machine says it
            return one.post(path, data={"username": "ada", "password": password}, headers=headers)

        assert [tried("s3cret").status_code for _ in range(page_login.FAILURES + 3)] == [200] * (
            page_login.FAILURES + 3
        )
        assert [tried("wrong").status_code for _ in range(page_login.FAILURES)] == [400] * page_login.FAILURES
        for path in ("login", "login/"):
            refused = tried("s3cret", path=path)
            assert refused.status_code == 429 and 0 < int(refused.headers["Retry-After"]) <= 12
            assert refused.json()["detail"].startswith("Too many wrong logins: try again in ")
            assert "Content-Security-Policy" in refused.headers
        assert one.get("").status_code == 200  # the page of who is logged in already
        assert tried("s3cret", "192.0.2.1").status_code == 200
        for number in range(page_login.FAILURES + 1):  # of one customer's network
            status = tried("wrong", f"2001:db8::{number}").status_code
        assert status == 429 and tried("s3cret", "2001:db8:0:1::1").status_code == 200


@pytest.mark.parametrize(("proxies", "status"), [("192.0.2.0/24", 429), ("192.0.2.0/24,127.0.0.0/8", 200)])
def test_only_a_proxy_that_is_named_says_whose_logins_are_wrong(
    proxies: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", proxies)
    with (
        fake() as server,
        app.launch(server.url, logins=("ada:s3cret",)) as page,
        httpx.Client(base_url=page.url, trust_env=False) as proxy,
    ):

        def tried(password: str, address: str) -> int:
            login = {"username": "ada", "password": password}
            return proxy.post("login", data=login, headers={"X-Forwarded-For": address}).status_code

        assert [tried("wrong", "198.51.100.1") for _ in range(page_login.FAILURES)] == [400] * page_login.FAILURES
        assert tried("wrong", "198.51.100.1") == 429
        assert tried("s3cret", "198.51.100.2") == status


def test_a_limit_is_each_clients_own_and_fills_up_again() -> None:
    now = [100.0]
    limit = rate_limit.RateLimit(5, clock=lambda: now[0])
    assert [limit.take("a") for _ in range(6)] == [0, 0, 0, 0, 0, 12] and limit.take("b") == 0
    now[0] += 9
    assert limit.take("a") == 3  # nothing was taken by the try before
    now[0] += 3
    assert limit.take("a") == 0 and limit.take("a") == 12
    limit.give_back("a")
    assert limit.take("a") == 0
    now[0] += 3600
    assert [limit.take("a") for _ in range(6)] == [0, 0, 0, 0, 0, 12]


def test_a_limit_forgets_the_quietest_and_not_those_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "REMEMBERED", 10)
    now = [0.0]
    limit = rate_limit.RateLimit(1, clock=lambda: now[0])
    for number in range(100):
        now[0] += 0.01
        assert limit.take("refused") == 0 or number
        assert limit.take(f"client {number}") == 0
        assert len(limit._buckets) <= 10
    assert limit.take("refused") > 0


def test_the_verb_refuses_a_page_for_everybody_in_three_lines() -> None:
    words = [sys.executable, "-m", "hubplugin", "chat", "http://127.0.0.1:1", "--host", "0.0.0.0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2 and "--open" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.browser
def test_a_reader_logs_in_and_asks(browser: Any) -> None:
    with fake() as server, app.launch(server.url, logins=("ada:s3cret",)) as page:
        tab = browser.new_page()
        asked: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.url)
        until(tab.get_by_text(page_login.HINT).is_visible)
        tab.get_by_label("username").fill("ada")
        tab.get_by_label("password").fill("s3cret")
        tab.get_by_role("button", name="Login").click()
        box = tab.locator("#box textarea")
        box.fill("What is a list?")
        until(lambda: tab.locator("#model input").first.input_value())
        box.press("Enter")
        until(lambda: "A list holds items in order." in tab.locator("#chat").inner_text())
        assert [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))] == []
        tab.close()
