"""What the server counts, for /metrics (Prometheus).

    metrics = Metrics()
    metrics.tokens.inc(3)
    metrics.text()          # -> b"# HELP nanochat_completion_tokens_total ..."

There is nothing to run here.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

PATHS = {"/", "/v1/models", "/v1/chat/completions", "/v1/completions", "/health", "/metrics", "/openapi.json"}
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """One server's counters, in a registry of their own: two servers in one process do not mix."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        ProcessCollector(registry=r)  # memory, CPU seconds, open files
        self.requests = Counter("nanochat_requests", "Requests answered.", ["path", "status"], registry=r)
        self.seconds = Histogram("nanochat_request_seconds", "Until the whole answer was sent.", ["path"],
                                 buckets=SECONDS, registry=r)
        self.first = Histogram("nanochat_first_token_seconds", "From a request to the first piece of its answer.",
                               buckets=SECONDS, registry=r)
        self.prompt_tokens = Counter("nanochat_prompt_tokens", "Tokens of prompts.", registry=r)
        self.tokens = Counter("nanochat_completion_tokens", "Tokens written.", registry=r)
        self.refused = Counter("nanochat_refused", "Requests refused since the queue was full.", registry=r)
        self.left = Counter("nanochat_left", "Requests whose client left before the answer was finished.", registry=r)
        self.restarts = Counter("nanochat_worker_restarts", "Workers that died and were started anew.", registry=r)
        self.rows = Gauge("nanochat_rows", "Answers being written, and waiting for a place.", ["worker", "state"],
                          registry=r)
        self.workers = Gauge("nanochat_workers", "Workers that are ready.", registry=r)

    def answered(self, path: str, status: str, seconds: float) -> None:
        """One request is over. Paths that we do not have are one label: anybody can make up new ones."""
        path = path if path in PATHS else "other"
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
