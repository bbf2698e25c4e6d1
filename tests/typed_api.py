"""What a type checker knows of the Python API. Never run: mypy reads it with the sources (`make check`)."""

from pathlib import Path
from typing import Any, assert_type

import hubplugin
from hubplugin import FileChange, Outcome, Plan, Pushed, Report, Verification, plan


def types(manifest: dict[str, Any], dry: bool) -> None:
    assert_type(hubplugin.plan(manifest), Plan)
    assert_type(plan("m.yaml", token=False), Plan)
    assert_type(hubplugin.run(Path("m.yaml"), out="out", only="Int4", revision="main"), list[Report])
    assert_type(hubplugin.run_on_ray(["a.yaml", "b.yaml"], address="auto", cpus_per_variant=4), list[Outcome])
    assert_type(hubplugin.publish(manifest, force=True, token="hf_"), list[Pushed])
    assert_type(hubplugin.publish(manifest, dry_run=True), list[FileChange])
    assert_type(hubplugin.publish(manifest, dry_run=dry), list[Pushed] | list[FileChange])
    assert_type(hubplugin.verify("owner/name", base=Path("base"), quality=True, public_key="key.pub"), Verification)
    assert_type(hubplugin.verify("out/Int4", quality=True, speed=True, texts=["a.txt", Path("b.txt")]), Verification)
    assert_type(hubplugin.load_report("out/Int4"), Report)
    assert_type(hubplugin.load_report("out/Int4").passed, bool)


def refused() -> None:
    hubplugin.plan(4)  # type: ignore[arg-type]
    hubplugin.run("m.yaml", "out")  # type: ignore[call-arg]
    hubplugin.fly()  # type: ignore[attr-defined]
