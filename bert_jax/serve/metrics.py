"""What /metrics says, in Prometheus' text format."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from bert_jax.serve.served import Slot

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)
_INPUTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The metrics of one server. Labels are names of models and routes of its own, never what a client sent."""

    def __init__(self):
        self._registry = own = CollectorRegistry()
        by_route, by_model = ("model", "route"), ("model",)
        self._requests = Counter("bert_requests", "Requests answered", (*by_route, "status"), registry=own)
        self._latency = Histogram(
            "bert_request_seconds",
            "From the first byte of a request to its answer, of those that succeeded",
            by_route,
            buckets=_SECONDS,
            registry=own,
        )
        self._tokens = Histogram("bert_batch_tokens", "Tokens of a batch", by_route, buckets=_TOKENS, registry=own)
        self._inputs = Histogram("bert_batch_inputs", "Inputs of a batch", by_route, buckets=_INPUTS, registry=own)
        self._run = Counter("bert_run_seconds", "Time in which batches ran", by_route, registry=own)
        self._queue = {
            name: Gauge(f"bert_queue_{name}", f"{name.capitalize()} that wait for a batch", by_model, registry=own)
            for name in ("tokens", "inputs")
        }
        self._active = Gauge("bert_active_requests", "Requests that are being answered", registry=own)
        self._step = Gauge("bert_checkpoint_step", "Step of the checkpoint that answers", by_model, registry=own)

    def request(self, model: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(model, route, str(status)).inc()
        if status == 200:
            self._latency.labels(model, route).observe(seconds)

    def batch(self, model: str, route: str, inputs: int, tokens: int, seconds: float) -> None:
        self._tokens.labels(model, route).observe(tokens)
        self._inputs.labels(model, route).observe(inputs)
        self._run.labels(model, route).inc(seconds)

    def watch(self, model: str, slot: Slot) -> None:
        """Lets the gauges of a model have the values of the moment in which they are read."""
        worker = slot.worker
        assert worker is not None
        self._queue["tokens"].labels(model).set_function(lambda: worker.queued_tokens)
        self._queue["inputs"].labels(model).set_function(lambda: worker.queued_inputs)
        self._step.labels(model).set_function(lambda: slot.step)

    def watch_active(self, count: Callable[[], int]) -> None:
        self._active.set_function(count)

    def text(self) -> bytes:
        return generate_latest(self._registry)
