"""The command line as a user meets it: three lines and exit code 2 for bad input, 130 for ctrl-C, no traceback."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pico
import pytest
import typer
from safetensors.torch import load_file, save_file

from hubplugin import cli, verbs
from serve import vllm_settings

MANIFEST = """\
model: ./base
calibrate: {files: [text.txt], samples: 4, tokens: 64}
variants:
  Int4:
    - {method: gptq, bits: 4, group_size: 32}
"""
TEXT = "The quick brown fox jumps over the lazy dog. " * 40


def hubplugin(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hubplugin", *words],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def place(tmp_path: Path, pico_folder: Path) -> Path:
    """A folder with a manifest, a base of its own and a text."""
    shutil.copytree(pico_folder, tmp_path / "base")
    (tmp_path / "m.yaml").write_text(MANIFEST, encoding="utf-8")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def rewrite(*changes: tuple[str, str]) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        text = (place / "m.yaml").read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (place / "m.yaml").write_text(text)

    return change


def truncate(place: Path) -> None:
    weights = place / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def corrupt(place: Path) -> None:
    weights = place / "base" / "model.safetensors"
    weights.write_bytes(b"\xff" * 64 + weights.read_bytes()[64:])


def missing_shard(place: Path) -> None:
    base = place / "base"
    names = load_file(base / "model.safetensors").keys()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    (base / "model.safetensors").unlink()


def nan_weights(place: Path) -> None:
    tensors = load_file(place / "base" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, place / "base" / "model.safetensors", metadata={"format": "pt"})


def unknown_family(place: Path) -> None:
    config = json.loads((place / "base" / "config.json").read_text())
    (place / "base" / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))


def remote_code(place: Path) -> None:
    config = json.loads((place / "base" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (place / "base" / "config.json").write_text(json.dumps(config))


def no_tokenizer(place: Path) -> None:
    for file in (place / "base").glob("tokenizer*"):
        file.unlink()


BAD: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "malformed YAML": (lambda p: (p / "m.yaml").write_text("model: [x\ncalibrate: {"), "m.yaml:", "not valid YAML"),
    "no manifest": (lambda p: (p / "m.yaml").unlink(), "m.yaml", "cannot be read"),
    "unknown key": (rewrite(("bits: 4", "bit: 4")), "variants.Int4[0].bit", ""),
    "wrong type": (rewrite(("samples: 4", "samples: many")), "calibrate.samples", ""),
    "forbidden group size": (rewrite(("group_size: 32", "group_size: 96")), "variants.Int4[0].group_size", ""),
    "group size that divides nothing": (rewrite(("group_size: 32", "group_size: 128")), "Int4", "128"),
    "ratio of 1.2": (rewrite(("gptq, bits: 4, group_size: 32", "prune, ffn: 1.2")), "variants.Int4[0].ffn", ""),
    "unknown family": (unknown_family, "model_type", "mamba"),
    "missing shard": (missing_shard, "model-00001-of-00002.safetensors", "missing"),
    "truncated shard": (truncate, "model.safetensors", ""),
    "corrupted shard": (corrupt, "model.safetensors", ""),
    "NaN weights": (nan_weights, "model.layers.1.mlp.up_proj.weight", "NaN"),
    "missing tokenizer": (no_tokenizer, "base", "tokenizer"),
    "remote code": (remote_code, "auto_map", "remote code"),
    "no base": (lambda p: shutil.rmtree(p / "base"), "base", ""),
    "empty calibration text": (lambda p: (p / "text.txt").write_text(""), "text.txt", ""),
    "short calibration text": (lambda p: (p / "text.txt").write_text("short"), "text.txt", "tokens"),
    "missing calibration text": (lambda p: (p / "text.txt").unlink(), "calibrate.files", "text.txt"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_three_lines_and_exit_code_2(name: str, place: Path) -> None:
    spoil, where, what = BAD[name]
    spoil(place)
    done = hubplugin("run", "m.yaml", "--out", "out", cwd=place)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.rstrip().splitlines()[-3:]
    assert [line.split(":")[0] for line in lines] == ["where", "what", "fix"], done.stderr
    assert where in lines[0] and what in lines[1], lines
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert not (place / "out" / "Int4").exists()


def test_a_folder_that_cannot_be_written_is_three_lines_too(place: Path) -> None:
    (place / "file").write_text("no folder")
    done = hubplugin("run", "m.yaml", "--out", "file/below", cwd=place)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-3].startswith("where: file/below"), done.stderr


def test_plan_reads_no_weights_and_prints_json(place: Path) -> None:
    done = hubplugin("plan", "m.yaml", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["variants"][0]["name"] == "Int4"
    table = hubplugin("plan", "m.yaml", cwd=place)
    assert table.returncode == 0 and "Int4" in table.stdout


def test_help_and_version_answer_without_torch(place: Path) -> None:
    code = "import sys; from hubplugin import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
    assert hubplugin("--version", cwd=place).stdout.strip() == "0.1.0"


def test_without_arguments_it_shows_its_help(place: Path) -> None:
    done = hubplugin(cwd=place)
    assert done.returncode == 2 and done.stdout == ""  # a script that forgot the verb must not go on
    assert done.stderr == hubplugin("--help", cwd=place).stdout


@pytest.mark.parametrize(
    ("words", "where", "what"),
    [
        (["fly"], "hubplugin", "fly"),
        (["--loud"], "hubplugin", "--loud"),
        (["plan"], "hubplugin plan", "MANIFEST"),
        (["plan", "m.yaml", "n.yaml"], "hubplugin plan", "n.yaml"),
        (["run", "m.yaml", "--ou", "x"], "hubplugin run", "--out"),
        (["hub"], "hubplugin hub", "--root"),
        (["chat", "--port"], "hubplugin chat", "--port"),
        (["chat", "--port", "http"], "hubplugin chat", "--port"),
    ],
)
def test_a_command_that_is_none_is_three_lines_and_exit_code_2(
    words: list[str], where: str, what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert ended.value.code == 2 and printed.out == "" and len(lines) == 3
    assert lines[0] == f"where: {where}" and what in lines[1] and lines[2] == f"fix:   see {where} --help"


def test_every_verb_shows_an_example_and_every_parameter_its_help() -> None:
    group = typer.main.get_command(verbs.app)
    making = ["plan", "run", "gate", "card", "publish", "verify", "report"]
    assert list(group.commands) == [*making, "register-cli", "serve", "chat", "space", "hub", "demo"]
    for name, command in group.commands.items():
        assert f"\n\nExample: hubplugin {name}" in command.help
        assert all(parameter.help for parameter in command.params), name
    assert all(parameter.help for parameter in group.params)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["plan", "m.yaml", "--json"]])
def test_a_closed_pipe_is_no_failure(words: list[str], place: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "hubplugin", *words]
    done = subprocess.run(command, cwd=place, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("statement", "status", "shown"),
    [("os.kill(os.getpid(), signal.SIGTERM)", 143, ""), ("1 / (len(token) - len(token))", 1, "ZeroDivisionError")],
)
def test_sigterm_is_exit_code_143_and_a_bug_shows_no_local_variable(
    statement: str, status: int, shown: str, place: Path
) -> None:
    code = f"""
import os, signal
from hubplugin import api, cli
def planned(manifest):
    token = "hf_" + "s3cr3t"
    {statement}
api.plan = planned
cli.main(["plan", "m.yaml"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == status and shown in done.stderr and "hf_s3cr3t" not in done.stderr


def test_a_hub_on_a_port_in_use_says_so(place: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = hubplugin("hub", "--root", "hub", "--port", port, cwd=place)
    assert done.returncode == 2 and port in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("mark", ["calibration", "block 01", "block 02", 0.6, 1.2, 1.8, 2.4])
def test_ctrl_c_at_any_point_leaves_nothing_under_a_final_name(place: Path, mark: str | float) -> None:
    """Interrupted when `mark` appears on stderr, or after so many seconds, while Python still loads libraries."""
    words = [sys.executable, "-m", "hubplugin", "run", "m.yaml", "--out", "out"]
    process = subprocess.Popen(
        words, cwd=place, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    said = ""
    if isinstance(mark, float):
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(mark)
    else:
        while mark not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130, said + rest
    assert "Traceback" not in said + rest
    assert not (place / "out" / "Int4").exists()


@pytest.mark.slow
def test_kill_9_in_the_middle_leaves_no_half_folder_and_the_next_run_is_whole(place: Path) -> None:
    if vllm_settings.find_device() == "cpu":  # no kernel for 8 bits here: the gate takes a second
        rewrite(("gptq, bits: 4", "gptq, bits: 8"))(place)
    words = [sys.executable, "-m", "hubplugin", "run", "m.yaml", "--out", "out"]
    process = subprocess.Popen(words, cwd=place, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "block 01" not in (line := process.stderr.readline()):
        assert line
    process.kill()
    process.wait()
    process.stderr.close()
    assert not (place / "out" / "Int4").exists()
    whole = subprocess.run([*words], cwd=place, capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    assert sorted(path.name for path in (place / "out").iterdir()) == ["Int4"]


def test_a_secret_in_the_environment_reaches_neither_output_nor_files(place: Path) -> None:
    secret = "hf_" + "s3cr3t" * 5
    rewrite(("./base", "nobody/nothing"))(place)
    done = hubplugin("run", "m.yaml", cwd=place, HF_TOKEN=secret, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2, done.stderr
    assert secret not in done.stdout + done.stderr
    for path in place.rglob("*"):
        assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_pico_headers_are_those_of_the_base(place: Path) -> None:
    plan = json.loads(hubplugin("plan", "m.yaml", "--json", cwd=place).stdout)
    assert plan["parameters"] == sum(_count(shape) for _, shape in pico.headers(place / "base").values()), (
        "tied embeddings are stored, and counted, once"
    )


def _count(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
