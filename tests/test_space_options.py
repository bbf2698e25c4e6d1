"""The page's options as a manifest, whose models a visitor may name, and whose token a request carries."""

import itertools
from pathlib import Path

import pytest
import yaml

from hubplugin.errors import HubError, HubPluginError, ManifestError
from hubplugin.hub import client
from hubplugin.manifest.reading import loading
from hubplugin.space import options, tokens
from hubplugin.space.options import Options
from hubplugin.space.runs import job

SECRET = "hf_" + "s3cr3t" * 6


def test_the_manifest_of_every_combination_is_valid() -> None:
    names = set()
    for method, bits, size, symmetric, source, owner in itertools.product(
        options.METHODS, options.BITS, options.GROUP_SIZES, (True, False), options.CALIBRATIONS, ("", "me")
    ):
        chosen = Options(
            model="o/m@v1.0",
            method=method,
            bits=bits,
            group_size=size,
            symmetric=symmetric,
            calibration=source,
            owner=owner,
            accept_license=symmetric,
        )
        document = loading.from_mapping(chosen.manifest())
        assert yaml.safe_load(chosen.text()) == yaml.safe_load(document.text)
        assert list(document.manifest.variants) == [chosen.variant]
        assert (document.manifest.publish is not None) == bool(owner)
        names.add(chosen.variant)
    assert {"GPTQ-Int4", "Pruned-20", "Pruned-20-GPTQ-Int2"} <= names and len(names) == 9


@pytest.mark.parametrize(
    "model",
    [
        "",
        "gpt2",
        "/etc",
        "/etc/passwd",
        "./out",
        "../m",
        "o/../m",
        "../..",
        "~/m",
        "o/m/n",
        "o/.m",
        "o--x/m",
        "https://example.com/o/m",
        "example.com:80/m",
        "o/m@",
        "o/m@../x",
        "o/m\nx",
        "o/m extra",
        "datasets/o/m",
        "_variants/GPTQ-Int4",
        "o/m@refs/pr/1",
        "ö/m",
        "o/" + "m" * 97,
    ],
)
def test_what_is_no_model_of_the_hub_is_refused_in_three_parts(model: str) -> None:
    with pytest.raises(ManifestError) as caught:
        Options(model=model).manifest()
    assert caught.value.where == "model" and caught.value.what and caught.value.fix
    assert "\n" not in caught.value.what


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 5},
        {"group_size": 48},
        {"method": "awq"},
        {"calibration": "/etc/passwd"},
        {"ratio": 0.95},
        {"samples": 10**9},
        {"sequence_length": 10**6},
        {"samples": None},
        {"owner": "a/b"},
        {"owner": "../x"},
        {"owner": "me: {x: 1}"},
    ],
)
def test_values_that_the_page_does_not_offer_are_refused_too(change: dict) -> None:
    with pytest.raises(ManifestError):
        Options(**{"model": "o/m", **change}).manifest()


def test_a_visitor_has_their_own_token_and_never_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_machine")
    assert tokens.of_visitor("", None, own_machine=True) is None  # this machine's
    assert tokens.of_visitor("", None, own_machine=False) is False
    assert tokens.of_visitor(f" {SECRET}\n", None, own_machine=False) == SECRET
    assert tokens.of_visitor("typed", SECRET, own_machine=False) == SECRET
    with pytest.raises(HubError) as caught:
        tokens.of_visitor(f"{SECRET} {SECRET}", None, own_machine=True)
    assert SECRET not in str(caught.value)


def test_requests_carry_the_token_of_the_block_they_are_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_machine")
    assert client.token_in_use() == "hf_machine" and client.connect().token is None
    with client.acting_for(SECRET, tmp_path):
        assert client.token_in_use() == SECRET == client.connect().token and client.cache_folder() == tmp_path
        assert client.headers()["authorization"] == f"Bearer {SECRET}"
        with client.acting_for(False):
            assert client.token_in_use() is None and client.connect().token is False
            assert "authorization" not in client.headers() and client.cache_folder() == tmp_path
            with pytest.raises(HubError):
                client.user_name()
        assert client.token_in_use() == SECRET
    assert client.headers()["authorization"] == "Bearer hf_machine" and client.cache_folder() != tmp_path


def test_the_environment_of_a_run_holds_nothing_secret(tmp_path: Path) -> None:
    own = {
        "HF_TOKEN": SECRET,
        "HUGGING_FACE_HUB_TOKEN": SECRET,
        "OAUTH_CLIENT_SECRET": SECRET,
        "VLLM_API_KEY": SECRET,
        "HUBPLUGIN_QUIET": "1",
        "PATH": "/bin",
        "HF_HOME": "/own",
        "HF_HUB_CACHE": "/own/cache",
    }
    given = job.environment(own, tmp_path)
    assert SECRET not in str(given) and "HUBPLUGIN_QUIET" not in given and given["PATH"] == "/bin"
    assert (given["HF_HOME"], given["HF_HUB_CACHE"]) == (str(tmp_path), str(tmp_path / "hub"))
    assert job.environment(own, None)["HF_HUB_CACHE"] == "/own/cache"


def test_an_error_is_an_error_of_three_parts_without_folders_of_this_machine() -> None:
    from hubplugin.space import view

    fault = HubPluginError("/srv/x/manifest.yaml: <b>", "a & b", "set HF_TOKEN to a token of that account")
    shown = view.error(HubError(fault.where, fault.what, fault.fix), Path("/srv/x"))
    assert "/srv" not in shown and "<b>" not in shown and "a &amp; b" in shown and "HF_TOKEN" not in shown
