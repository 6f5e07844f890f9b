"""What the engine has done, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lora_jax.serving.engine import Engine


class _OfEngine(Collector):
    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """The counts of now."""
        counts, (running, waiting) = self._engine.counts, self._engine.load
        simple = {
            "requests": ("Requests taken.", counts.requests),
            "prompt_tokens": ("Tokens of prompts read.", counts.prompt_tokens),
            "completion_tokens": ("Tokens handed out.", counts.tokens),
            "batch_calls": ("Calls that continue all rows.", counts.calls),
            "batch_rows": ("Rows in use in those calls, summed.", counts.rows),
        }
        for name, (text, value) in simple.items():
            yield CounterMetricFamily(f"lora_jax_{name}", text, value=value)
        ended = CounterMetricFamily("lora_jax_finished", "Requests that ended.", labels=["reason"])
        for reason, value in dict(counts.finished).items():
            ended.add_metric([reason], value)
        yield ended
        yield GaugeMetricFamily("lora_jax_running", "Requests being answered.", value=running)
        yield GaugeMetricFamily("lora_jax_waiting", "Requests that wait.", value=waiting)
        adapters = len(self._engine.names)
        yield GaugeMetricFamily("lora_jax_adapters", "Adapters that are served.", value=adapters)


def registry(engine: Engine) -> CollectorRegistry:
    """The counts of an engine, ready to be written."""
    made = CollectorRegistry()
    made.register(_OfEngine(engine))
    return made
