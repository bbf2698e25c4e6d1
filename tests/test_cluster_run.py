"""Real Ray clusters on this machine: a folder of manifests, a gate that fails, a node that is lost, Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cluster_helpers
import psutil
import pytest

from hubplugin import report
from hubplugin.checkpoint import resume
from hubplugin.evaluation.cards import card

pytest.importorskip("ray")

PATIENCE = 400  # seconds until something is wrong; machines that build this are busy
LAYERS = 24  # a block takes a twentieth of a second: few would be over before a node is caught at one
REPORTS = (report.FILE_NAME, "README.md")
FAILING = "gate: {variants: {Int8-64: {mean_kl: 0.0000001}}}\n"

# in a process of its own: another number of threads sums in another order
LOCALLY = """
import contextlib, pathlib, sys
import hubplugin
manifests, out = map(pathlib.Path, sys.argv[1:])
for name in ("one", "two"):
    with contextlib.suppress(hubplugin.errors.GateError):
        hubplugin.run(manifests / f"{name}.yaml", out=out / name)
"""


def environment() -> dict[str, str]:
    """As a worker has it that Ray gives one CPU."""
    return {**os.environ, "PYTHONPATH": str(cluster_helpers.ROOT), "OMP_NUM_THREADS": "1"}


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The command as a user types it, in the background; what it says on stderr goes to folder/said."""
    with (folder / "said").open("w") as said, (folder / "printed").open("w") as printed:
        return subprocess.Popen(
            [sys.executable, "-m", "hubplugin", "run", *words],
            cwd=folder,
            env=environment(),
            stdout=printed,
            stderr=said,
            text=True,
            start_new_session=True,
        )


def blocks(out: Path, name: str) -> list[Path]:
    """The finished blocks of MANIFEST/VARIANT in the making."""
    manifest, _, variant = name.rpartition("/")
    return sorted((out / manifest / f".{variant}.part" / resume.BLOCKS).glob("block-*.safetensors"))


def _title(process: psutil.Process) -> str:
    """What a process calls itself; nothing where it has just ended."""
    try:
        return "".join(process.cmdline()[:1])
    except psutil.NoSuchProcess:
        return ""


def under_way(raylet: psutil.Process) -> list[str]:
    """The tasks that the workers of a node are at: Ray names the processes after them."""
    titles = [title for child in raylet.children() if (title := _title(child)).startswith("ray::")]
    return [title.removeprefix("ray::") for title in titles if "/" in title]


def lose(node: object, out: Path) -> str:
    """Kill a node, its workers with it, once the variant that it makes has a finished block. Returns the variant."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)  # type: ignore[attr-defined]
    deadline = time.monotonic() + PATIENCE
    while True:
        assert time.monotonic() < deadline, "no block was finished on the node"
        begun = [name for name in under_way(raylet) if blocks(out, name)]
        if begun:
            break
        time.sleep(0.05)
    for process in [raylet, *raylet.children(recursive=True)]:
        process.kill()
    return begun[0]


def same(made: Path, local: Path) -> None:
    """Two folders of a variant hold the same bytes, and reports and cards that say the same but for timings."""
    names = sorted(path.name for path in local.iterdir())
    assert sorted(path.name for path in made.iterdir()) == names
    for name in names:
        if name not in REPORTS:
            assert (made / name).read_bytes() == (local / name).read_bytes(), name
    here, there = report.read(made), report.read(local)
    for each, folder in ((here, made), (there, local)):
        assert (folder / "README.md").read_text("utf-8") == card.render(each)
    assert untimed(here) == untimed(there)


def untimed(made: report.Report) -> report.Report:
    """A report without what no two runs of one manifest have in common."""
    linears = tuple(linear.model_copy(update={"seconds": 0.0}) for linear in made.linears)
    return made.model_copy(update={"created": "", "seconds": {}, "peak_memory_bytes": 0, "linears": linears})


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_folder_of_manifests_on_two_nodes_one_of_which_is_lost(tmp_path: Path) -> None:
    texts = {"one": cluster_helpers.manifest(32, 64, gate=FAILING), "two": cluster_helpers.manifest(32)}
    manifests, out = cluster_helpers.place(tmp_path, layers=LAYERS, **texts), tmp_path / "out"
    with cluster_helpers.cluster() as running:
        words = [str(manifests), "--ray", running.address, "--out", str(out), "--cpus-per-variant", "1"]
        process = start(tmp_path, *words)
        try:
            lost = lose(running.worker_nodes.copy().pop(), out)
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
    said, printed = (tmp_path / "said").read_text(), (tmp_path / "printed").read_text()

    assert process.returncode == 2, said
    passed = [out / "one" / "Int8-32", out / "two" / "Int8-32"]
    assert printed.split() == list(map(str, passed)), said
    where, what, fix = said.rstrip().splitlines()[-3:]
    assert where == "where: 1 of 3 variants" and what.startswith("what:  one/Int8-64: gate: Int8-64: quality"), said
    assert fix.startswith("fix:") and "Traceback" not in said
    *_, header, first, second, third = said.split("where:")[0].rstrip().splitlines()
    assert header.split() == ["variant", "node", "seconds", "outcome"]
    assert [line.split()[0] for line in (first, second, third)] == ["one/Int8-32", "one/Int8-64", "two/Int8-32"]
    assert first.endswith("passed") and "quality" in second and third.endswith("passed")

    own = [line for line in said.splitlines() if line.startswith(f"({lost} ")]
    assert any("goes on after block" in line for line in own), f"{lost} began anew: {said}"
    assert any(f"block {LAYERS}/{LAYERS}" in line for line in own), said

    local = tmp_path / "local"
    subprocess.run([sys.executable, "-c", LOCALLY, manifests, local], env=environment(), check=True)
    for name, variants in {"one": ["Int8-32", "Int8-64"], "two": ["Int8-32"]}.items():
        assert sorted(path.name for path in (out / name).iterdir()) == variants, "nothing else is left"
        for variant in variants:
            same(out / name / variant, local / name / variant)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_cancels_and_says_what_is_kept(tmp_path: Path) -> None:
    manifests = cluster_helpers.place(tmp_path, layers=100, m=cluster_helpers.manifest(32))
    words = [str(manifests / "m.yaml"), "--ray", "local", "--out", "out", "--cpus-per-variant", "1"]
    process = start(tmp_path, *words)
    try:
        deadline = time.monotonic() + PATIENCE
        while not blocks(tmp_path / "out", "Int8-32") and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
    said = (tmp_path / "said").read_text()
    assert process.returncode == 130, said
    assert "1 tasks are cancelled" in said and "kept: Int8-32" in said and "of 100 blocks" in said, said
    assert "Traceback" not in said
    assert blocks(tmp_path / "out", "Int8-32") and not (tmp_path / "out" / "Int8-32").exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".Int8-32.part"]
