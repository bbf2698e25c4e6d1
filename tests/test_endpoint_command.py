"""`hubplugin serve` as a process: signals, kills, keys, options of vLLM; with stand-ins where vLLM would be."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from endpoint_helpers import Stubs
from serve_helpers import session_of, until

from hubplugin import cli
from hubplugin.errors import ServeError
from serve import ports, vllm_settings
from serve.endpoint import command
from serve.endpoint.offer import Offer
from serve.endpoint.pool import Pool

ROOT = Path(__file__).parents[1]
# the command with stand-ins where vLLM would be
SCRIPT = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from endpoint_helpers import Stubs
from serve import vllm_settings
from serve.endpoint import pool
from hubplugin import cli
pool.Pool.__init__.__defaults__ = (*pool.Pool.__init__.__defaults__[:-1], Stubs())
vllm_settings.find_device = lambda: "cpu"
cli.main(["serve", *sys.argv[1:]])
"""


def start(folder: Path, *words: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
    """The command and the URL that it printed."""
    script = SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests"))
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words, "--port", str(ports.choose(ports.LOOPBACK, None))],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:") and url.endswith("/v1"), process.wait(10)
    return process, url


def supervisors(process: subprocess.Popen[str]) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_it_and_every_engine(number: int, code: int, tmp_path: Path, pico_folder: Path) -> None:
    process, url = start(tmp_path, str(pico_folder))
    (sockets,) = {Path(word).parent for pid in supervisors(process) for word in psutil.Process(pid).cmdline()[-1:]}
    assert sockets.stat().st_mode & 0o777 == 0o700, "others of this machine could ask the engine"
    assert httpx.post(f"{url}/completions", json={"model": "pico-llama", "prompt": "x"}).status_code == 200
    running = supervisors(process)
    process.send_signal(number)
    assert process.wait(60) == code
    assert [session_of(pid) for pid in running] == [[]] and not sockets.exists()


def test_a_second_signal_waits_for_nobody(tmp_path: Path, pico_folder: Path) -> None:
    process, url = start(tmp_path, str(pico_folder), "--drain", "600")
    body = {"model": "pico-llama", "stream": True, "n_events": 100_000, "wait": 0.1}
    with httpx.stream("POST", f"{url}/completions", json=body, timeout=60) as answer:
        pieces = answer.iter_bytes()
        next(pieces)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        next(pieces)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_no_engine_outlives_an_endpoint_that_is_killed(tmp_path: Path, pico_folder: Path) -> None:
    process, _ = start(tmp_path, str(pico_folder))
    running = supervisors(process)
    assert running
    process.kill()
    process.wait()
    until(lambda: not any(session_of(pid) for pid in running), 30)


def test_logs_stay_where_they_were_asked_for(tmp_path: Path, pico_folder: Path) -> None:
    process, url = start(tmp_path, str(pico_folder), "--logs", "logs", "--name", "mine")
    assert httpx.post(f"{url}/completions", json={"model": "mine", "prompt": "s3cret"}).status_code == 200
    process.terminate()
    assert process.wait(60) == 0
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["0-mine.log", "requests.jsonl"]
    (line,) = (tmp_path / "logs" / "requests.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["model"], entry["status"], entry["client"]) == ("mine", 200, "127.0.0.1") and "s3cret" not in line


def test_a_key_of_the_environment_or_a_file_is_asked_for_and_never_printed(tmp_path: Path, pico_folder: Path) -> None:
    (tmp_path / "keys").write_text("# who\nsk-file\n\n")
    process, url = start(tmp_path, str(pico_folder), "--keys", "keys", VLLM_API_KEY="sk-environment")
    try:
        words = " ".join(psutil.Process(process.pid).cmdline())
        for pid in supervisors(process):
            words += " ".join(psutil.Process(pid).cmdline())
        assert "sk-" not in words
        for key, status in (("sk-file", 200), ("sk-environment", 200), ("# who", 401), ("", 401)):
            answer = httpx.get(f"{url}/models", headers={"Authorization": f"Bearer {key}".strip()})
            assert answer.status_code == status, key
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize(
    ("words", "where", "what"),
    [
        (["{pico}", "{pico}"], "pico-llama", "is the name of two models"),
        (["{pico}", "--host", "0.0.0.0"], "0.0.0.0", "no API key is asked for"),
        (["{pico}", "--keys", "none"], "none", "cannot be read"),
        (["{pico}", "--keys", "empty"], "empty", "holds no key"),
        (["{pico}", "--memory", "0.001"], "pico-llama", "its engine takes"),
        (["{pico}", "{other}", "--name", "x"], "--name x", "2 models are served"),
        (["{pico}", "--", "--trust-remote-code"], "--trust-remote-code", "code of the model's repo"),
        (["{pico}", "--", "--port", "1"], "--port", "is set by hubplugin"),
        (["{pico}", "--", "--api-key=x"], "--api-key", "secrets"),
        (
            ["{pico}", "--", "--dtype", "float32", "--kv-cache-dtype=bfloat16"],
            "--kv-cache-dtype bfloat16",
            "wrong tokens",
        ),
        (["{pico}", "--", "--enable-sleep-mode"], "--enable-sleep-mode", "on a CPU"),
        (["{pico}", "--", "max-num-seqs"], "max-num-seqs", "is no option"),
    ],
)
def test_what_cannot_be_served_is_three_lines_before_anything_starts(
    words: list[str],
    where: str,
    what: str,
    tmp_path: Path,
    pico_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").write_text("\n# nothing\n")
    (tmp_path / "other").symlink_to(pico_folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setattr(vllm_settings, "find_device", lambda: "cpu")
    filled = [word.format(pico=pico_folder, other=tmp_path / "other") for word in words]
    before = [*filled[: filled.index("--")]] if "--" in filled else filled
    behind = filled[len(before) :]
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", *before, "--port", str(ports.choose(ports.LOOPBACK, None)), *behind])
    lines = capsys.readouterr().err.splitlines()[-3:]
    assert ended.value.code == 2 and [line.split(":")[0] for line in lines] == ["where", "what", "fix"], lines
    assert where in lines[0] and what in lines[1]


def test_a_first_engine_that_does_not_start_is_said_in_three_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubs: Any = Stubs(refuse={"a": "no kernel for it"})
    monkeypatch.setattr(command, "Pool", lambda *given: Pool(*given, start=stubs))
    monkeypatch.setattr(vllm_settings, "find_device", lambda: "cpu")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ServeError, match="no kernel for it") as caught:
        command.run_forever([Offer("a", tmp_path)], command.Settings(logs=tmp_path), ready=lambda url: None)
    assert caught.value.fix == "look at it"
