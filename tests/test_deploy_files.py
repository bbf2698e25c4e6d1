"""docs/deploy, held against the command line and the routes that there are. No container is run."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from hubplugin import cli
from hubplugin.errors import ServeError
from hubplugin.verbs.application import app as verbs
from serve import engine
from serve.endpoint import app, command
from serve.endpoint.guard import Guard
from serve.endpoint.pool import Pool

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docs" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
assert cli.app is verbs, "every verb has registered itself"


def instructions(name: str) -> list[str]:
    """What follows an instruction of the Dockerfile, each time that it stands there."""
    joined = re.sub(r"\\\n", " ", DOCKERFILE)
    return [line.split(" ", 1)[1].strip() for line in joined.splitlines() if line.startswith(f"{name} ")]


def compose() -> dict[str, Any]:
    """The one service."""
    (service,) = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"].values()
    assert isinstance(service, dict)
    return service


def kubernetes() -> dict[str, dict[str, Any]]:
    """Objects by their kind."""
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))
    assert len({each["kind"] for each in found}) == len(found) == 4
    return {each["kind"]: each for each in found}


def container() -> dict[str, Any]:
    (only,) = kubernetes()["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def parsed(words: list[str]) -> dict[str, Any]:
    """By the real parser, which refuses what it does not know."""
    serve = typer.main.get_command(verbs).commands["serve"]  # type: ignore[attr-defined]
    with serve.make_context("serve", list(words)) as context:
        return dict(context.params)


def routes(folder: Path) -> set[str]:
    made = app.make(Pool([], [], 1, folder), Guard())
    return {resource.canonical for resource in made.router.resources()}


def test_the_image_is_that_of_the_vllm_which_is_pinned_and_holds_the_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (pin,) = [each.split(";")[0].removeprefix("vllm==") for each in extras["gpu"] if each.startswith("vllm==")]
    assert instructions("FROM") == [f"vllm/vllm-openai:v{pin}"]
    assert any("'.[gpu]'" in each for each in instructions("RUN"))
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["hubplugin", "serve"]
    kept = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    copied = {word for each in instructions("COPY") for word in each.split()[:-1]}
    assert copied == kept and all((ROOT / name).exists() for name in copied)


def test_compose_names_options_ports_and_paths_that_there_are(tmp_path: Path) -> None:
    service = compose()
    said = parsed(service["command"])
    assert said["keys"] == Path("/run/secrets") / service["secrets"][0] and said["host"] == "0.0.0.0"
    (port,) = service["ports"]
    assert port == f"127.0.0.1:{said['port']}:{said['port']}", "open on loopback alone"
    (url,) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", service["healthcheck"]["test"][-1])
    assert url == (str(said["port"]), "/ready") and "/ready" in routes(tmp_path)
    compile(service["healthcheck"]["test"][-1], "healthcheck", "exec")
    assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    (volume,) = service["volumes"]
    assert volume.split(":")[1] in instructions("VOLUME")
    assert int(service["stop_grace_period"].removesuffix("s")) > said["drain"] + 4 * engine.GRACE


def test_kubernetes_names_options_ports_and_paths_that_there_are(tmp_path: Path) -> None:
    spec, own, objects = kubernetes()["Deployment"]["spec"]["template"]["spec"], container(), kubernetes()
    said = parsed(own["args"])
    (port,) = own["ports"]
    assert (
        port["containerPort"] == said["port"] and objects["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    )
    probes = {name: own[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {name: each["path"] for name, each in probes.items()} == {
        "startupProbe": "/health",
        "livenessProbe": "/health",
        "readinessProbe": "/ready",
    }
    assert {each["path"] for each in probes.values()} <= routes(tmp_path)
    assert {each["port"] for each in probes.values()} == {port["name"]}
    assert spec["terminationGracePeriodSeconds"] > said["drain"] + 4 * engine.GRACE
    mounts = {each["name"]: each["mountPath"] for each in own["volumeMounts"]}
    assert {each["name"] for each in spec["volumes"]} == set(mounts)
    assert said["keys"] == Path(mounts["keys"]) / "keys" and mounts["cache"] in instructions("VOLUME")
    volumes = {each["name"]: each for each in spec["volumes"]}
    assert volumes["keys"]["secret"]["secretName"] == objects["Secret"]["metadata"]["name"]
    claim = volumes["cache"]["persistentVolumeClaim"]["claimName"]
    assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service"]["spec"]["selector"] == objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert str(spec["securityContext"]["runAsUser"]) == instructions("USER")[0]


def test_as_they_stand_nobody_gets_in_with_a_key_that_everybody_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    keys = tmp_path / "keys"
    keys.write_text(kubernetes()["Secret"]["stringData"]["keys"])
    with pytest.raises(ServeError, match="holds no key"):
        command.keys(keys)
