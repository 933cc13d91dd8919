"""Counts of what the API answered, in the text format of Prometheus on request."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class Counters:
    """Plain numbers on the hot path; the exposition library is imported at the first scrape."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, int], int] = {}
        self._seconds: dict[str, float] = {}

    def count(self, route: str, status: int, took_s: float) -> None:
        """One request was answered."""
        key = (route, status)
        self._requests[key] = self._requests.get(key, 0) + 1
        self._seconds[route] = self._seconds.get(route, 0.0) + took_s

    def render(self, status: dict[str, Any]) -> bytes:
        """These counters and the gauges of a daemon's status."""
        from prometheus_client import CollectorRegistry, generate_latest

        class Collector:
            def collect(_self) -> Iterator[Metric]:
                yield from self._families()
                yield from _gauges(status)

        registry = CollectorRegistry()
        registry.register(Collector())
        return generate_latest(registry)

    def _families(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily

        requests = CounterMetricFamily("agentlab_requests", "Requests answered.", labels=["route", "status"])
        for (route, status), count in sorted(self._requests.items()):
            requests.add_metric([route, str(status)], count)
        seconds = CounterMetricFamily("agentlab_request_seconds", "Time spent on requests.", labels=["route"])
        for route, total in sorted(self._seconds.items()):
            seconds.add_metric([route], total)
        yield requests
        yield seconds


def _gauges(status: dict[str, Any]) -> Iterator[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    for name, doc in (("sandboxes", "Sandboxes that live."), ("jobs", "Jobs that have not ended.")):
        family = GaugeMetricFamily(f"agentlab_{name}", doc, labels=["state"])
        for state, count in status.get(name, {}).items():
            family.add_metric([state], count)
        yield family
    for name, doc in (
        ("uptime_s", "Seconds since the daemon started."),
        ("disk_free_bytes", "Free bytes where the daemon keeps its state."),
        ("memory_bytes", "The daemon's greatest resident memory."),
        ("last_event", "The newest event's sequence number."),
        ("reconcile_ticks", "Observations of the world so far."),
        ("reconcile_last_ms", "How long the last observation took."),
    ):
        if name in status:
            yield GaugeMetricFamily(f"agentlab_{name}", doc, value=status[name])
