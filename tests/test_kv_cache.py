"""Data types of the KV cache: numbers worked out by hand, what an engine answers, settings, card, page, and when a run
measures them again. No engine is started."""

import json
import math
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import card_helpers
import httpx
import pytest
import test_speed
from speed_helpers import Run, runner

from hubplugin import report
from hubplugin.disk import digest
from hubplugin.errors import ManifestError, ServeError
from hubplugin.evaluation import quality_metrics
from hubplugin.evaluation.cards import card
from hubplugin.evaluation.pages import differences, page, runs
from hubplugin.evaluation.speed import kv_caches, machine
from hubplugin.evaluation.speed.kv_caches import Start, Text
from hubplugin.evaluation.speed.rounds import Answered, Subject, Turn
from hubplugin.manifest.reading import loading
from hubplugin.manifest.speed import KV_CACHES
from hubplugin.manifest.speed import Speed as Settings
from hubplugin.speed_record import KVCache
from serve import kv_cache, prompt_scores, token_divergence, vllm_metrics, vllm_options, vllm_settings
from serve.engine import Engine
from serve.scoring import Scored

# -- numbers by hand


def logs(**probabilities: float) -> dict[int, float]:
    """Log-probabilities by token id, from probabilities by a letter: a is token 0."""
    return {ord(name) - ord("a"): math.log(value) for name, value in probabilities.items()}


def test_kl_joins_all_that_not_both_list() -> None:
    p, q = logs(a=0.5, b=0.25), logs(a=0.25, b=0.5)  # 0.25 is left on both sides
    assert token_divergence.at_least(p, q) == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2))
    p, q = logs(a=0.5, b=0.3), logs(a=0.4, c=0.4)  # only a is listed by both: 0.5 and 0.5 against 0.4 and 0.6
    assert token_divergence.at_least(p, q) == pytest.approx(0.5 * math.log(0.5 / 0.4) + 0.5 * math.log(0.5 / 0.6))
    assert token_divergence.at_least(p, p) == 0


def test_what_is_listed_of_a_distribution_never_has_more_kl_than_all_of_it() -> None:
    p, q = (0.4, 0.3, 0.2, 0.06, 0.04), (0.1, 0.35, 0.05, 0.3, 0.2)
    whole = sum(one * math.log(one / other) for one, other in zip(p, q, strict=True))
    bounds = []
    for listed in range(1, 6):
        sides = (
            {token: math.log(side[token]) for token in sorted(range(5), key=lambda token: -side[token])[:listed]}
            for side in (p, q)
        )
        bounds.append(token_divergence.at_least(*sides) or 0.0)
    assert all(0 <= bound <= whole for bound in bounds) and bounds[0] == 0 and bounds[4] == pytest.approx(whole)
    assert 0 < bounds[1] < bounds[3] < whole


def test_a_rest_that_rounds_to_nothing_is_no_infinite_kl() -> None:
    p, q = logs(a=0.999), {0: 1e-8}  # float32's sum of all probabilities may be above 1
    assert token_divergence.at_least(p, q) == pytest.approx(
        0.001 * math.log(0.001 / token_divergence.LEAST_REST), rel=0.2
    )


def test_of_two_likeliest_tokens_the_lowest_id_counts_whatever_their_order() -> None:
    assert kv_caches.likeliest(logs(a=0.2, c=0.4, b=0.4)) == kv_caches.likeliest(logs(b=0.4, c=0.4)) == 1


def text(*places: tuple[int, dict[int, float]]) -> Text:
    return tuple(Scored(token, listed) for token, listed in places)


OWN = Start("bfloat16", 4608.0, (text((0, logs(a=0.5, b=0.25)), (1, logs(a=0.5, b=0.5))),), 40.0, 0.25)
OTHER = Start("fp8", 2304.0, (text((0, logs(a=0.25, b=0.5)), (1, logs(a=0.5, b=0.5))),), 30.0, 0.0)


def test_a_record_holds_a_start_against_the_engines_own() -> None:
    found = kv_caches.record("fp8", OWN, OTHER)
    assert found.perplexity == pytest.approx(math.sqrt(4 * 2))  # of probabilities 1/4 and 1/2
    assert found.perplexity_ratio == pytest.approx(math.sqrt(2))  # the own ones are 1/2 and 1/2
    assert found.top1_agreement == 0.5  # a then b at the first place, a for both at the second
    assert found.mean_kl_top20 == pytest.approx(0.25 * math.log(2) / 2)
    assert (found.predicted_tokens, found.sequences, found.bytes_per_token) == (2, 1, 2304)
    own = kv_caches.record("auto", OWN, OWN)
    assert (own.perplexity_ratio, own.top1_agreement, own.mean_kl_top20, own.stored_as) == (1, 1, 0, "bfloat16")


SUBJECT = test_speed.subject("v")


def test_one_that_the_engine_refuses_is_a_line_that_says_why_without_a_folder() -> None:
    asked: list[tuple[str, int]] = []

    def serve(one: Subject, settings: Settings, dtype: str, sequences: Sequence[Sequence[int]]) -> Start:
        asked.append((dtype, len(sequences)))
        if dtype == "nvfp4":
            raise ServeError(str(one.folder), f"no nvfp4 for {one.folder}/config.json", "another machine")
        return OWN if dtype == "auto" else OTHER

    subject = test_speed.replace(SUBJECT, folder=Path("/some/where/.v.part"))
    found = kv_caches.measure(subject, Settings(kv_cache=("nvfp4", "fp8")), [[1, 2]] * 9, serve)
    assert asked == [("auto", 8), ("nvfp4", 8), ("fp8", 8)]
    assert [one.dtype for one in found] == ["auto", "nvfp4", "fp8"]
    assert found[1] == KVCache(dtype="nvfp4", not_measured="no nvfp4 for v/config.json (v)")
    assert found[2].bytes_per_token == 2304 and not found[2].not_measured
    assert kv_caches.measure(subject, Settings(), [[1, 2]], serve) == () and len(asked) == 3


def test_without_the_engines_own_there_is_nothing_to_compare_with() -> None:
    def serve(one: Subject, settings: Settings, dtype: str, sequences: Sequence[Sequence[int]]) -> Start:
        assert dtype == "auto"
        raise ServeError("v", "no memory", "close something")

    found = kv_caches.measure(SUBJECT, Settings(kv_cache=("fp8",)), [[1, 2]], serve)
    assert [one.not_measured for one in found] == ["no memory (v)", "nothing to compare it with: no memory (v)"]


# -- settings


def asked(tmp_path: Path, names: str) -> Settings:
    path = tmp_path / "m.yaml"
    speed = f"speed: {{kv_cache: {names}}}"
    lines = "model: o/m", "calibrate: {self: true}", "variants: {V: [{method: gptq, bits: 4}]}"
    path.write_text("\n".join((*lines, f"evaluate: {{perplexity: {{self: true, seed: 1}}, {speed}}}")), "utf-8")
    evaluate = loading.load(path).manifest.evaluate
    assert evaluate and evaluate.speed
    return evaluate.speed


def test_data_types_are_named_once_each_and_known(tmp_path: Path) -> None:
    assert asked(tmp_path, "[fp8, bfloat16]").kv_cache == ("fp8", "bfloat16") and Settings().kv_cache == ()
    for names, what, fix in (
        ("[fp9]", "'fp9' is no data type of a KV cache that is measured", "did you mean fp8?"),
        ("[turboquant_4bit_nc]", "'turboquant_4bit_nc' is no data type", "write some of float16, bfloat16"),
        ("[int8_per_token]", "'int8_per_token' is no", "did you mean int8_per_token_head?"),
        ("[fp8, fp8_e5m2, fp8]", "'fp8' stands there twice", "name it once"),
        ("[auto, fp8]", "'auto' is always measured", "leave it out"),
        ("fp8", "'fp8' is not what it takes", "a list of data types of vLLM's KV cache"),
    ):
        with pytest.raises(ManifestError) as error:
            asked(tmp_path, names)
        assert what in error.value.what and fix in error.value.fix, error.value
        assert "evaluate.speed.kv_cache" in error.value.where


# -- what vLLM is told, and what it answers


@pytest.mark.parametrize("dtype", sorted({*KV_CACHES} - {*vllm_options.KV_CACHES_ON_CPU}))
def test_what_cpu_attention_takes_for_another_data_type_is_refused_there(dtype: str) -> None:
    """vLLM 0.32.0 starts with these and answers with a perplexity of 63 where the model has 20."""
    with pytest.raises(ServeError, match="answers with wrong tokens") as error:
        vllm_settings.refuse_unservable("cpu", {}, "m", ("--kv-cache-dtype", dtype))
    assert error.value.where == f"--kv-cache-dtype {dtype}" and "fp8_e5m2" in error.value.fix
    vllm_settings.refuse_unservable("cuda", {}, "m", ("--kv-cache-dtype", dtype))
    vllm_settings.refuse_unservable("cpu", {}, "m", ("--kv-cache-dtype", "fp8"))


SHAPE = {"num_attention_heads": 6, "hidden_size": 384, "num_hidden_layers": 6, "num_key_value_heads": 3}


def test_a_cache_that_is_measured_holds_whole_blocks_of_the_engines_own_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_settings.cpu_features, "has", lambda feature: True)
    block = 2 * 6 * 3 * 64 * 2 * 128  # keys and values, layers, heads, width, bytes, tokens
    few = vllm_settings.measured_kv_cache(SHAPE, 512, 1)
    assert few == 64 * block  # 32 MiB would hold 56.9
    many = vllm_settings.measured_kv_cache(SHAPE, 512, 32)
    assert many == (32 * 4 + 1) * block
    monkeypatch.setattr(vllm_settings.cpu_features, "has", lambda feature: False)
    assert vllm_settings.measured_kv_cache(SHAPE, 512, 32) == 2 * many  # in float32
    assert vllm_settings.measured_kv_cache({}, 512, 1) == 2 * 2**30


INFO = (
    'vllm:cache_config_info{block_size="128",cache_dtype="DTYPE",kv_cache_size_tokens="8192",skip="[\'a\\"}\']"} 1.0\n'
)


def test_settings_are_read_from_the_labels_of_a_sample() -> None:
    said = vllm_metrics.labels("# HELP vllm:cache_config_info x\n" + INFO, kv_cache.SETTINGS)
    assert said["kv_cache_size_tokens"] == "8192" and said["skip"] == "['a\"}']" and len(said) == 4
    assert vllm_metrics.labels('vllm:cache_config_info_other{a="1"} 1\n', kv_cache.SETTINGS) == {}


def place(**listed: float) -> dict[str, dict[str, object]]:
    """A place of a prompt as vLLM says it."""
    return {name[1:]: {"logprob": value, "rank": 1, "decoded_token": "x"} for name, value in listed.items()}


class Handler(BaseHTTPRequestHandler):
    """Answers as vLLM does: prompts of three tokens, and settings of the KV cache."""

    places: list[object]
    info: str
    bodies: list[dict[str, object]]

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._send(json.dumps({"choices": [{"index": 0, "prompt_logprobs": self.places}]}))

    def do_GET(self) -> None:
        self._send(self.info)

    def _send(self, content: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def running(tmp_path: Path):
    """An engine whose answers are a test's."""
    Handler.places = [None, place(_7=-0.5, _2=-3.0), place(_7=-0.25)]
    Handler.info, Handler.bodies = INFO.replace("DTYPE", "auto"), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "log").write_text("Initializing a V1 LLM engine with config: dtype=torch.bfloat16, max_seq_len=513\n")
    yield Engine(f"http://127.0.0.1:{server.server_port}", "m", None, None, tmp_path / "log")  # type: ignore[arg-type]
    server.shutdown()
    server.server_close()


def test_a_prompts_tokens_are_scored_from_the_second_on(running: Engine) -> None:
    (scored,) = prompt_scores.ask(running, [[4, 2, 7]])
    assert [one.token for one in scored] == [2, 7] and [one.logprob for one in scored] == [-3.0, -0.25]
    assert scored[0].listed == {7: -0.5, 2: -3.0}
    (body,) = Handler.bodies
    assert body["prompt"] == [4, 2, 7] and body["prompt_logprobs"] == 20 and body["max_tokens"] == 1


@pytest.mark.parametrize(
    "places",
    [
        [None, place(_7=-0.5)],  # too few
        [None, place(_7=-0.5), place(_7=-0.1)],  # the second token is 2
        None,
        [None, {"2": None}, {"7": None}],
    ],
)
def test_scores_of_another_prompt_are_an_error(running: Engine, places: object) -> None:
    Handler.places = places  # type: ignore[assignment]
    with pytest.raises(ServeError, match="did not say how likely a text is"):
        prompt_scores.ask(running, [[4, 2, 7]])


def test_what_the_cache_holds_is_vllms_own_word(running: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kv_cache._settings(running) == ("bfloat16", 8192)
    Handler.info = INFO.replace("DTYPE", "fp8")
    assert kv_cache._settings(running) == ("fp8", 8192)
    Handler.info = "nothing"
    with pytest.raises(ServeError, match="how large its KV cache is"):
        kv_cache._settings(running)

    def refused(*given: object, **more: object) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(httpx, "get", refused)
    with pytest.raises(ServeError, match="how large its KV cache is"):
        kv_cache._settings(running)


# -- card and page

LINES = (
    kv_caches.record("auto", OWN, OWN),
    kv_caches.record("fp8", OWN, OTHER),
    KVCache(dtype="nvfp4", not_measured="no such KV cache on a CPU (--kv-cache-dtype nvfp4)"),
)


def with_caches(*lines: KVCache) -> report.Report:
    return card_helpers.report(speed=test_speed.measured().model_copy(update={"kv_caches": lines}))


def test_the_card_has_a_line_for_each_data_type() -> None:
    shown = card.render(with_caches(*LINES))
    assert "| auto (bfloat16) | 4,608 | 2.000 | 1.0000 | 100.00 % | 0 | 40.0 | 25.00 % |" in shown
    assert "| fp8 | 2,304 | 2.828 | 1.4142 | 50.00 % | ≥ 0.087 | 30.0 | 0.00 % |" in shown
    assert "| nvfp4: not measured, no such KV cache on a CPU (--kv-cache-dtype nvfp4) | | | | | | | |" in shown
    assert (
        "output tokens per second, 8 at once | other processes meanwhile |\n" in shown
        and "of 2 tokens of the evaluation's main text" in shown
    )
    assert "KL is a lower bound" in shown
    assert "KV cache |" not in card.render(with_caches())
    refused = card.render(with_caches(*(KVCache(dtype=name, not_measured="no") for name in ("auto", "fp8"))))
    assert "| auto: not measured, no | | | | | | | |" in refused and "KL is a lower bound" not in refused


def test_the_page_shows_the_same_and_what_differs_between_two_runs(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "v"
    folder.mkdir(parents=True)
    report.write(with_caches(*LINES), folder)
    shown = page.render(runs.read([tmp_path / "out"]))
    assert "auto (bfloat16)" in shown and "2,304" in shown and "nvfp4: not measured" in shown and "1.4142" in shown
    before, after = with_caches(LINES[0]), with_caches(*LINES)
    found = {one.what: one for one in differences.compare(before, after).figures}
    assert found["KV cache fp8, perplexity ratio"].new == "1.4142" and "KV cache auto, perplexity ratio" not in found
    worse = LINES[1].model_copy(update={"mean_kl_top20": 0.2})
    found = {one.what: one for one in differences.compare(after, with_caches(LINES[0], worse, LINES[2])).figures}
    assert list(found) == ["KV cache fp8, KL at least"] and found["KV cache fp8, KL at least"].better is False


# -- runs


class Doubles:
    """Engines that serve nothing and say what they were asked."""

    def __init__(self) -> None:
        self.turns: list[str] = []
        self.caches: list[str] = []
        self.sequences: Sequence[Sequence[int]] = ()
        self.fails = False
        self.lacks: set[str] = set()

    def take(self, subject: Subject, settings: Settings, number: int) -> Turn:
        self.turns.append(subject.name)
        if self.fails:
            raise ServeError(subject.name, "no kernel", "another machine")
        return Turn("engine 1", "float32", 1.0, 100, (Answered(2, 4, 0.1, 0.01, 10.0),))

    def serve(self, subject: Subject, settings: Settings, dtype: str, sequences: Sequence[Sequence[int]]) -> Start:
        assert subject.name == "Thin" and (subject.folder / "config.json").is_file()
        self.caches.append(dtype)
        self.sequences = sequences
        if dtype in self.lacks:
            raise ServeError(subject.name, "no kernel", "another machine")
        return OWN if dtype == "auto" else OTHER


@pytest.fixture
def engines() -> Doubles:
    return Doubles()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engines: Doubles) -> Run:
    run = runner(tmp_path, monkeypatch, engines.take, engines.serve)

    def go(*caches: str, text: str = "text.txt") -> report.Report:
        return run({"rounds": 1, **({"kv_cache": [*caches]} if caches else {})}, text)

    return go


def test_a_run_measures_them_after_its_rounds_on_the_main_text_and_again_when_asked_otherwise(
    make: Run, engines: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = make()
    assert without.speed and without.speed.kv_caches == () and engines.caches == []
    # what was measured before there were KV caches is not measured again for their sake
    asked = digest('{"prompt_tokens":8,"output_tokens":4,"concurrency":[2],"rounds":1}')
    assert without.speed.measured_from["speed"] == asked
    monkeypatch.setattr(quality_metrics, "reference", lambda *given: pytest.fail("the base was evaluated again"))
    made = make("fp8")
    assert made.speed and [one.dtype for one in made.speed.kv_caches] == ["auto", "fp8"]
    assert made.speed.kv_caches == LINES[:2] and made.evaluation == without.evaluation
    assert engines.caches == ["auto", "fp8"] and engines.turns == ["Thin", "base"] * 2
    assert [len(row) for row in engines.sequences] == [32] * 8  # of ten, whole; the engine's module cuts them
    assert make("fp8") == made and len(engines.caches) == 2
    more = make("fp8", "fp8_e5m2")
    assert more.speed and len(more.speed.kv_caches) == 3 and engines.caches[2:] == ["auto", "fp8", "fp8_e5m2"]


def test_on_another_text_they_are_measured_again_and_speed_alone_is_not(make: Run, engines: Doubles) -> None:
    make()
    make(text="other.txt")
    assert engines.turns == ["Thin", "base"]
    first = make("fp8", text="other.txt")
    seen = [list(row) for row in engines.sequences]
    make("fp8")
    assert engines.caches == ["auto", "fp8"] * 2 and [list(row) for row in engines.sequences] != seen
    assert first.speed and "text" in first.speed.measured_from


def test_what_a_machine_does_not_have_is_tried_again_on_another_with_all_else(
    make: Run, engines: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines.lacks = {"fp8"}
    made = make("fp8")
    assert made.speed and made.speed.kv_caches[1].not_measured
    turns = len(engines.turns)
    assert make("fp8") == made and engines.caches == ["auto", "fp8"]
    engines.lacks = set()
    other = made.speed.machine.model_copy(update={"accelerators": ("a GPU",)})
    with monkeypatch.context() as patched:
        patched.setattr(machine, "describe", lambda: other)
        again = make("fp8")
    assert again.speed and again.speed.machine == other and again.speed.kv_caches == LINES[:2]
    assert len(engines.turns) == 2 * turns and engines.caches == ["auto", "fp8"] * 2
    assert make("fp8") == again  # where nothing is missing, another machine changes nothing


def test_where_the_variant_cannot_be_served_no_cache_is_tried(make: Run, engines: Doubles) -> None:
    make()
    engines.fails = True
    made = make("fp8")
    assert made.speed and made.speed.not_measured and made.speed.kv_caches == () and engines.caches == []
