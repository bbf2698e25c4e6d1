"""What a run on Ray asks for, checks and says, as far as it needs no cluster."""

import os
import pickle
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hubplugin
from hubplugin import api, cli
from hubplugin.cluster import checks, connection, manifests, outcome, probe, resources
from hubplugin.cluster.outcome import Outcome
from hubplugin.cluster.resources import Node, Resources
from hubplugin.errors import ClusterError, GateError, HubPluginError, ManifestError
from hubplugin.manifest.reading import loading
from hubplugin.plan.costs.estimates import Memory
from hubplugin.plan.variant_plan import VariantPlan

GB = 10**9
BASE: dict[str, Any] = {
    "model": "./base",
    "calibrate": {"files": ["text.txt"], "samples": 4, "sequence_length": 64},
    "variants": {f"V{bits}": [{"method": "gptq", "bits": bits, "group_size": 32}] for bits in (2, 3, 4, 8)},
}


def node(cpus: int = 8, gpus: int = 0, memory: int = 16 * GB, name: str = "n") -> Node:
    return Node(id=name, name=name, cpus=cpus, gpus=gpus, memory=memory)


@pytest.fixture
def variants(pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[VariantPlan, ...]:
    """Four variants, each of which takes 2 GB, or 1 GB with activations on disk."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a text")
    planned = hubplugin.plan({**BASE, "model": str(pico_folder)}).variants
    memory = Memory(peak=2 * GB, spilled=GB, disk=0, device=0)
    return tuple(replace(each, memory=memory) for each in planned)


@pytest.mark.parametrize(
    ("nodes", "asked"),
    [
        ([node(cpus=32), node(cpus=32)], Resources(16, 0, 2 * GB)),  # two at a time on each
        ([node(cpus=32)], Resources(8, 0, 2 * GB)),
        ([node(cpus=6)], Resources(4, 0, 2 * GB)),  # no fewer than four: the others wait
        ([node(cpus=2), node(cpus=16)], Resources(2, 0, 2 * GB)),
        ([node(cpus=32, memory=5 * GB)], Resources(16, 0, 2 * GB)),  # memory for two at a time
        ([node(cpus=32, memory=GB)], Resources(32, 0, GB)),  # activations on disk
        ([node(cpus=64), node(cpus=32, gpus=2)], Resources(16, 1, 2 * GB)),  # GPUs for two at a time, on one node
    ],
)
def test_a_task_asks_for_its_share_of_a_node(
    nodes: list[Node], asked: Resources, variants: tuple[VariantPlan, ...]
) -> None:
    assert resources.of(variants, nodes) == [asked] * len(variants)
    assert [each.cpus for each in resources.of(variants, nodes, cpus=1)] == [1] * len(variants)


@pytest.mark.parametrize(
    ("nodes", "cpus", "what", "fix"),
    [
        ([node(memory=GB // 2)], None, "1.0 GB, and no node has that: at most 8 CPUs and 0.5 GB", "ray start --memory"),
        ([node(cpus=4)], 8, "8 CPUs, 2.0 GB, and no node has that: at most 4 CPUs", "--cpus-per-variant"),
        ([], None, "no node with a CPU", ""),
    ],
)
def test_what_no_node_has_is_said_before_any_work(
    nodes: list[Node], cpus: int | None, what: str, fix: str, variants: tuple[VariantPlan, ...]
) -> None:
    with pytest.raises(ClusterError) as refusal:
        resources.of(variants, nodes, cpus)
    assert refusal.value.where == "V2" and what in refusal.value.what and fix in refusal.value.fix


def test_a_folder_stands_for_its_manifests(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.yml", ".hidden.yaml", "notes.md"):
        (tmp_path / name).write_text("")
    (tmp_path / "other").mkdir()
    assert manifests.expanded(tmp_path) == [("a", tmp_path / "a.yml"), ("b", tmp_path / "b.yaml")]
    both = [str(tmp_path), Path("c.yaml")]
    assert [name for name, _ in manifests.expanded(both)] == ["a", "b", "c"]
    assert manifests.expanded("c.yaml") == [("", "c.yaml")] and manifests.expanded(BASE) == [("", BASE)]
    for given, what in (
        (tmp_path / "other", "holds no manifest"),
        ([tmp_path, "x/b.yaml"], "and both would be written into one folder"),
        ([BASE, BASE], "has no name"),
        ([], "none is given"),
    ):
        with pytest.raises(ManifestError, match=what):
            manifests.expanded(given)  # type: ignore[arg-type]


@pytest.fixture
def placed(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "text.txt").write_text("a text")
    return tmp_path


def test_a_node_that_sees_the_same_is_accepted_and_marks_go_away(placed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(placed)
    with checks.marked([loading.from_mapping(BASE)], [placed / "out"]) as shared:
        assert shared.files == (str(placed / "base"), str(placed / "text.txt"))
        checks.compare("n", shared.seen(), shared.seen())
        assert len(list((placed / "out").iterdir())) == 1
    assert not list((placed / "out").iterdir())


def test_a_task_of_the_manifest_and_its_data_must_be_there_too(placed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(placed)
    (placed / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\n"
    )
    (placed / "rows.jsonl").write_text("{}\n")
    text = {"files": ["text.txt"], "samples": 4, "sequence_length": 64}
    evaluate = {"perplexity": text, "tasks": ["arc_easy", "./mine.yaml"]}
    found = [Path(path).name for path in checks.local_files(loading.from_mapping({**BASE, "evaluate": evaluate}))]
    assert found[-2:] == ["mine.yaml", "rows.jsonl"] and set(found[:-2]) == {"base", "text.txt"}


DIFFERENCES: dict[str, tuple[Callable[[Path, dict[str, Any]], object], str]] = {
    "another release": (lambda p, seen: seen["versions"].update(torch="1.0"), "has torch 1.0, and this machine has 2."),
    "not installed": (lambda p, seen: seen["versions"].update(hubplugin=""), "has no hubplugin"),
    "its own folder": (
        lambda p, seen: seen["marks"].update(dict.fromkeys(seen["marks"])),
        "does not see the folder .*/out of this machine",
    ),
    "read only": (lambda p, seen: seen["writable"].update(dict.fromkeys(seen["writable"])), "may not write to .*/out"),
    "no base": (lambda p, seen: seen["files"].update({str(p / "base"): None}), "has no .*/base"),
    "another text": (
        lambda p, seen: seen["files"].update({str(p / "text.txt"): [("text.txt", 7)]}),
        "has other files in .*text.txt",
    ),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_node_that_sees_something_else_is_named(name: str, placed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(placed)
    change, what = DIFFERENCES[name]
    with checks.marked([loading.from_mapping(BASE)], [placed / "out"]) as shared:
        there = shared.seen()
        change(placed, there)
        with pytest.raises(ClusterError, match=f"node n: {what}") as refusal:
            checks.compare("n", shared.seen(), there)
    assert refusal.value.fix


def test_the_probe_needs_nothing_of_ours() -> None:
    code = Path(probe.__file__).read_text(encoding="utf-8") + "\nimport sys; look([], [])\n"
    code += "assert not [name for name in sys.modules if name.startswith(('hubplugin', 'torch'))]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_ray_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ClusterError, match=r"not installed \(pip install 'hubplugin\[cluster\]'"),
        connection.connected(""),
    ):
        raise AssertionError


class Web(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(1024)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


@pytest.fixture
def web_server() -> Iterator[str]:
    util = pytest.importorskip("ray.util")
    # Ray takes a loopback address to be this machine's own
    with socketserver.TCPServer((util.get_node_ip_address(), 0), Web) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"{server.server_address[0]}:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("127.0.0.1:9", "cannot be reached: .*refused"),
        ("auto", "cannot be reached: .*refused"),  # RAY_ADDRESS
        ("nowhere.invalid:6379", "cannot be reached"),
        ("nonsense", "cannot be reached"),
        ("ray://127.0.0.1:10001", "Ray Client"),
        ("web server", "is no Ray cluster"),
    ],
)
def test_a_cluster_that_cannot_be_reached_is_said_within_seconds(
    address: str, what: str, web_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(ClusterError, match=what) as refusal,
        connection.connected(address.replace("web server", web_server)),
    ):
        raise AssertionError
    assert refusal.value.where.startswith("Ray cluster") and refusal.value.fix
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_summary_has_a_line_for_each_and_the_error_names_all_that_failed(tmp_path: Path) -> None:
    made = Outcome("m/Int8", "Int8", tmp_path / "Int8", "host", 61.4)
    failed = replace(made, name="m/Int4", seconds=2.0, error=outcome.parts(GateError("gate", "Int4: no", "mend it")))
    lost = replace(made, name="m/Int2", node="", error=outcome.parts(ValueError("a\nbug")))
    assert outcome.summary([made, failed, lost]).splitlines() == [
        "variant  node  seconds  outcome",
        "m/Int8   host       61  passed",
        "m/Int4   host        2  gate: Int4: no",
        "m/Int2   -          61  ValueError: a bug",
    ]
    assert made.passed and not failed.passed
    outcome.refuse_failed([made])
    with pytest.raises(ClusterError) as one:
        outcome.refuse_failed([made, failed])
    assert one.value.lines() == "where: 1 of 2 variants\nwhat:  m/Int4: gate: Int4: no\nfix:   mend it"
    with pytest.raises(ClusterError, match="2 of 3 variants: m/Int4: gate: Int4: no; m/Int2: ValueError: a bug"):
        outcome.refuse_failed([made, failed, lost])
    full = outcome.parts(OSError(28, "No space left on device", "/x"))
    assert full == ("/x", "No space left on device", "check that it can be written and has room")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["a.yaml", "b.yaml"], "several manifests"),
        (["."], "is a folder"),
        (["a.yaml", "--cpus-per-variant", "2"], "--cpus-per-variant"),
    ],
)
def test_what_is_for_ray_only_says_so(words: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", *words])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 3 and what in lines[1] and "--ray local" in lines[2]


def test_no_token_is_sent_and_what_is_sent_says_the_same_on_arrival(
    pico_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hubplugin.cluster import fan_out

    secret = "hf_" + "s3cr3t" * 5
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.chdir(tmp_path)
    mapping = {**BASE, "model": str(pico_folder)}
    (tmp_path / "text.txt").write_text("a text")
    planned = replace(api.plan(mapping), revision="0" * 40)
    requests = fan_out.Asked("m", api.document(mapping), planned, Path("out")).requests()
    assert [each.name for each in requests] == ["m/V2", "m/V3", "m/V4", "m/V8"]
    for each in requests:
        sent = pickle.dumps(each)
        assert secret.encode() not in sent
        arrived = pickle.loads(sent)
        assert arrived == each and arrived.folder == tmp_path / "out" / each.variant
        assert list(arrived.document.manifest.variants) == [each.variant] and arrived.planned.revision == "0" * 40
        assert arrived.document.folder == tmp_path and arrived.document.sha256 == api.document(mapping).sha256


def test_every_manifest_is_planned_before_a_cluster_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("model: [")
    with pytest.raises(HubPluginError, match="not valid YAML"):
        hubplugin.run_on_ray(os.fspath(tmp_path), address="nowhere")
