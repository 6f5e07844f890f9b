"""What an engine has done, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lora_jax.serving import classifier, engine

AnyEngine = engine.Engine | classifier.ClassifierEngine


class _OfEngine(Collector):
    def __init__(self, of: AnyEngine):
        self._engine = of

    def collect(self) -> Iterator[Metric]:
        """The counts of now."""
        counts, (running, waiting) = self._engine.counts, self._engine.load
        for name, (text, value) in _simple(counts).items():
            yield CounterMetricFamily(f"lora_jax_{name}", text, value=value)
        ended = CounterMetricFamily(
            "lora_jax_finished", "Requests, or texts, that ended.", labels=["reason"]
        )
        for reason, value in dict(counts.finished).items():
            ended.add_metric([reason], value)
        yield ended
        yield GaugeMetricFamily("lora_jax_running", "Being answered.", value=running)
        yield GaugeMetricFamily("lora_jax_waiting", "Waiting.", value=waiting)
        adapters = len(self._engine.names)
        yield GaugeMetricFamily("lora_jax_adapters", "Adapters that are served.", value=adapters)


def _simple(counts: engine.Counts | classifier.Counts) -> dict[str, tuple[str, int]]:
    requests = {"requests": ("Requests taken.", counts.requests)}
    if isinstance(counts, engine.Counts):
        return {
            **requests,
            "prompt_tokens": ("Tokens of prompts read.", counts.prompt_tokens),
            "completion_tokens": ("Tokens handed out.", counts.tokens),
            "batch_calls": ("Calls that continue all rows.", counts.calls),
            "batch_rows": ("Rows in use in those calls, summed.", counts.rows),
        }
    return {
        **requests,
        "inputs": ("Texts taken.", counts.examples),
        "batches": ("Batches run.", counts.batches),
        "batch_inputs": ("Texts in those batches, summed.", counts.answered),
        "batch_tokens": ("Tokens of those texts.", counts.tokens),
        "batch_padding": (
            "Places without a token in those batches.",
            counts.places - counts.tokens,
        ),
    }


def registry(of: AnyEngine) -> CollectorRegistry:
    """The counts of an engine, ready to be written."""
    made = CollectorRegistry()
    made.register(_OfEngine(of))
    return made
