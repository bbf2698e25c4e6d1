"""What the page's buttons do, without the page: limits, visitors' folders, and whose token goes where."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from huggingface_hub import HfApi
from serve_helpers import until

from hubplugin.errors import HubPluginError
from hubplugin.space.desk import FIELDS, Desk, Shown
from hubplugin.space.options import TEXT, Options
from hubplugin.space.runs.job import Job
from hubplugin.space.runs.visitors import MOST_ASKED, Visitors

SMALL: dict[str, Any] = {"model": "local/pico", "bits": 8, "group_size": 32, "samples": 4, "sequence_length": 64}


def values(file: str | None = None, **chosen: Any) -> list[Any]:
    """The values of the page's components."""
    options = Options(**{**SMALL, **chosen})
    return [*(getattr(options, name) for name in FIELDS), file]


async def compress(desk: Desk, session: str, token: str, chosen: list[Any], cancel_at: str = "") -> list[Shown]:
    """All that the page shows of a run, which is cancelled where its log says so."""
    shown = []
    async for state in desk.compress(session, None, token, *chosen):
        shown.append(state)
        if cancel_at and cancel_at in state.log:
            shown.append(await asyncio.to_thread(desk.cancel, session))
            break
    return shown


@pytest.fixture
def desk() -> Any:
    with contextlib.closing(Desk(own_machine=False, max_parameters=100_000)) as made:
        yield made


def test_a_model_that_is_too_large_or_too_private_is_refused_with_the_reason(desk: Desk, hub: HfApi) -> None:
    text, shown = desk.plan("a", None, "", *values())
    assert "GPTQ-Int8" in shown and "vLLM, cpu" in shown and text.startswith("model: local/pico\n")
    desk.max_parameters = 1000
    _, shown = desk.plan("a", None, "", *values())
    assert "takes models of up to 1.00K" in shown and "--max-parameters" in shown
    hub.update_repo_settings("local/pico", private=True)
    _, shown = desk.plan("a", None, "", *values())  # HF_TOKEN is this machine's, and not for visitors
    assert "no such repo" in shown and "give a token on this page" in shown
    desk.max_parameters = 100_000
    assert "GPTQ-Int8" in desk.plan("a", None, str(hub.token), *values())[1]


@pytest.mark.parametrize("model", ["/etc", "./x", "o", "o/m/n", "http://127.0.0.1:1/o/m"])
def test_a_path_or_an_address_is_no_model(desk: Desk, model: str) -> None:
    text, shown = desk.plan("a", None, "", *values(model=model))
    assert text == "" and "is no model of the Hub" in shown


def test_a_folder_of_the_server_is_never_taken_for_a_model(
    desk: Desk, hub: HfApi, tmp_path: Path, pico_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(pico_folder)
    monkeypatch.chdir(tmp_path)
    assert "no such repo" in desk.plan("a", None, "", *values(model="models/mine"))[1]


def test_without_its_text_a_run_does_not_begin(desk: Desk) -> None:
    *_, last = asyncio.run(compress(desk, "a", "", values(calibration=TEXT)))
    assert "no text file is there" in last.status and not last.running


def test_a_file_of_the_server_is_not_taken_for_one_that_was_uploaded(tmp_path: Path) -> None:
    from hubplugin.space import app

    secret = tmp_path / "secret.txt"
    secret.write_text("of the server")
    with app.launch() as page, httpx.Client(base_url=page.url, trust_env=False, timeout=30) as http:
        events = http.get("/config").json()["dependencies"]
        number = next(one["id"] for one in events if len(one["inputs"]) == len(FIELDS) + 2 and len(one["outputs"]) == 2)
        file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
        asked = {"data": ["", *values(), file], "fn_index": number, "session_hash": "a"}
        asked["data"].pop(-2)  # the place of the file
        http.post("/gradio_api/queue/join", json=asked).raise_for_status()
        with http.stream("GET", "/gradio_api/queue/data", params={"session_hash": "a"}) as answers:
            said = next(line for line in answers.iter_lines() if "process_completed" in line)
        assert '"success":false' in said and "GPTQ" not in said
        assert not page.desk.visitors._open


def test_a_visitor_who_has_left_has_no_folder_and_no_way_back() -> None:
    visitors = Visitors(shared=True)
    here, there = visitors.of("a"), visitors.of("../b")
    assert here.folder.parent == there.folder.parent == visitors._root and "b" not in visitors._open
    job = visitors.begin("a", "model: o/m\n")
    assert job.manifest.is_file() and visitors.cache(here) == here.folder / "hub" / "hub"
    visitors.begin("a", "model: o/n\n")
    assert not job.manifest.exists()  # of the run before, nothing is kept
    visitors.leave("a")
    assert not here.folder.exists() and there.folder.exists()
    with pytest.raises(HubPluginError, match="its session has ended"):
        visitors.begin("a", "model: o/m\n")
    visitors.close()
    assert not visitors._root.exists()


@pytest.fixture
def sleeping(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A desk whose runs sleep until they are cancelled."""

    def begun(job: Job) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(["sleep", "60"], start_new_session=True, **pipes)

    monkeypatch.setattr(Job, "_begun", begun)
    monkeypatch.setattr(Desk, "_base_token", lambda *_: None)
    return desk


async def shows(run: AsyncIterator[Shown], what: str) -> Shown:
    """The first state of a run that shows this."""
    async with asyncio.timeout(30):
        return await anext(state async for state in run if what in state.status)


def test_runs_take_turns_and_one_that_waits_can_be_cancelled_and_asked_for_again(sleeping: Desk) -> None:
    async def visit() -> None:
        a, b, c = (sleeping.compress(name, None, "", *values()) for name in "abc")
        assert (await shows(a, "starting")).running
        assert (await shows(b, "before it: 1")).running and (await shows(c, "before it: 2")).running
        waits = sleeping.visitors.of("b").job
        assert "cancelled" in sleeping.cancel("b").status and waits and waits.pid is None
        assert (await shows(c, "before it: 1")).running
        again = sleeping.compress("b", None, "", *values())  # now the last
        assert (await shows(again, "before it: 2")).running
        assert [state async for state in b] == []  # the page shows what was asked for later
        first = sleeping.visitors.of("a").job
        assert "cancelled" in sleeping.cancel("a").status and first and first.pid and not psutil.pid_exists(first.pid)
        assert not (await shows(a, "cancelled")).running
        assert (await shows(c, "starting")).running and (await shows(again, "before it: 1")).running
        await c.aclose()  # its page has lost the server
        assert (await shows(again, "starting")).running
        await again.aclose()

    asyncio.run(visit())
    assert not any(one.job and one.job.running for one in sleeping.visitors._open.values())


def test_too_many_runs_are_refused_and_those_that_fail_leave_the_line() -> None:
    with contextlib.closing(Visitors(shared=True)) as visitors:
        jobs = [visitors.begin(str(number), "model: o/m\n") for number in range(MOST_ASKED)]
        assert [visitors.before(job) for job in jobs] == list(range(MOST_ASKED))
        with pytest.raises(HubPluginError, match="16 runs of other visitors come first"):
            visitors.begin("one more", "model: o/m\n")
        assert visitors.begin("3", "model: o/n\n") and jobs[3].cancelled  # another plan takes the place of its first
        visitors.leave("0")
        assert visitors.before(jobs[1]) == 0
        visitors.begin("one more", "model: o/m\n")


def test_cancelling_what_has_ended_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    monkeypatch.setattr(Job, "_begun", lambda job: subprocess.Popen(["true"], **pipes))
    job = Job(tmp_path / "manifest.yaml", tmp_path / "out")
    job.start()
    until(lambda: job.ended)
    job.cancel()
    assert not job.cancelled and job.error() is None
    early = Job(tmp_path / "manifest.yaml", tmp_path / "out")
    early.cancel()
    early.start()
    assert early.ended and early.pid is None


SCRIPT = """
import os, sys, time
from pathlib import Path
from hubplugin.space.runs.job import Job
job = Job(Path(sys.argv[1]), Path(sys.argv[1]).parent / "out")
job.start("hf_of_a_visitor")
print(job.pid, flush=True)
while not job.lines:
    time.sleep(0.05)
print("said", flush=True)
if sys.argv[2] == "cancel":
    job.cancel()
    print(job.running, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["cancel", "killed"])
def test_a_run_ends_when_it_is_cancelled_and_when_the_page_is_killed(how: str, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(Options(**SMALL).text())
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a Hub that never answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        page = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(manifest), how],
            env={**os.environ, "HF_ENDPOINT": address},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert page.stdout is not None
            run = psutil.Process(int(page.stdout.readline()))
            assert page.stdout.readline() == "said\n" and run.is_running()
            assert "hf_of_a_visitor" not in str(run.environ()) + str(run.cmdline())
            if how == "cancel":
                assert page.stdout.readline() == "False\n"
            page.kill()
            page.wait()
            until(lambda: not run.is_running() or run.status() == psutil.STATUS_ZOMBIE)
        finally:
            page.kill()


@pytest.mark.slow
def test_a_private_base_is_read_with_the_visitors_token_which_stays_nowhere(
    hub: HfApi, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.update_repo_settings("local/pico", private=True)
    token = str(hub.token)
    monkeypatch.delenv("HF_TOKEN")
    text = tmp_path / "any name.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    with contextlib.closing(Desk(own_machine=False)) as desk:
        chosen = values(str(text), calibration=TEXT, owner="local")
        seen = asyncio.run(compress(desk, "a", token, chosen, cancel_at="hub "))
        assert "cancelled" in seen[-1].status, seen[-1]
        job = desk.visitors.of("a").job
        assert job and job.pid and not job.running and not psutil.pid_exists(job.pid)
        *_, last = asyncio.run(compress(desk, "a", token, chosen))
        assert "finished" in last.status and last.publishable and "GPTQ-Int8" in last.result, last.status
        assert "nobody is signed in" in desk.publish("a", None, "").published
        done = desk.publish("a", None, token)
        assert "published: " in done.published, done.published
        assert "report.json" in hub.list_repo_files("local/pico-GPTQ-Int8")
        root = desk.visitors._root
        files = [path for path in root.rglob("*") if path.is_file()]
        assert [path for path in files if token.encode() in path.read_bytes()] == []
        own = Path(os.environ["HF_HOME"])
        assert not any("pico" in str(path) for path in own.rglob("*"))  # nor is its base in the machine's own cache
    said = capfd.readouterr()
    assert token not in said.out + said.err + last.log + last.card and not root.exists()
