"""What Prometheus reads: vLLM's samples of every engine, each with the model's name as `variant`, and the endpoint's.

Knows Prometheus' text; nothing of HTTP.
"""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from serve.endpoint.pool import Slot, State

CONTENT_TYPE = CONTENT_TYPE_LATEST
VARIANT = "variant"
SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 120, 300, 600)  # edges of the histogram


class Measures:
    """The endpoint's own counts."""

    def __init__(self) -> None:
        self._own = CollectorRegistry()
        labels = [VARIANT, "path", "status"]
        self._requests = Counter("hubplugin_requests", "Requests, by status", labels, registry=self._own)
        self._seconds = Histogram(
            "hubplugin_request_seconds",
            "From a request's head to its end",
            [VARIANT],
            buckets=SECONDS,
            registry=self._own,
        )

    def count(self, name: str, path: str, status: int, seconds: float) -> None:
        """A request that is over; without a model's name those that were for none."""
        self._requests.labels(name, path, str(status)).inc()
        if name:
            self._seconds.labels(name).observe(seconds)

    def exposed(self, slots: Iterable[Slot], texts: Mapping[str, str]) -> bytes:
        """Everything in Prometheus' text format. `texts`: of /metrics of each running engine."""
        engines = CollectorRegistry(auto_describe=False)
        engines.register(_Engines(slots, texts))
        return bytes(generate_latest(self._own)) + bytes(generate_latest(engines))


class _Engines(Collector):
    """Engines' states, and their own samples with one label more."""

    def __init__(self, slots: Iterable[Slot], texts: Mapping[str, str]) -> None:
        self._slots, self._texts = list(slots), texts

    def describe(self) -> Iterator[Metric]:
        """Nothing in advance: what engines have differs."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Families, merged over engines."""
        state = GaugeMetricFamily("hubplugin_engine_ready", "1 where an engine is ready", labels=[VARIANT])
        active = GaugeMetricFamily("hubplugin_engine_active_requests", "Being answered", labels=[VARIANT])
        restarts = CounterMetricFamily("hubplugin_engine_restarts", "After it died", labels=[VARIANT])
        for slot in self._slots:
            state.add_metric([slot.offer.name], float(slot.state is State.READY))
            active.add_metric([slot.offer.name], slot.active)
            restarts.add_metric([slot.offer.name], slot.restarts)
        yield from (state, active, restarts)
        families: dict[str, Metric] = {}
        for name, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                known.samples += [sample._replace(labels={**sample.labels, VARIANT: name}) for sample in family.samples]
        yield from families.values()
