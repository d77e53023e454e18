"""Metrics of a server in the format of Prometheus."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServerMetrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.responses = Counter(
            "finetune_responses",
            "Responses by path and status.",
            ("path", "status"),
            registry=self.registry,
        )
        self.rejected = Counter(
            "finetune_rejected",
            "Requests and images that were rejected, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self.images = Counter(
            "finetune_images", "Images that were predicted.", registry=self.registry
        )
        self.request_seconds = Histogram(
            "finetune_request_seconds",
            "Time from the headers of a request to its response, by path.",
            ("path",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.decode_seconds = Histogram(
            "finetune_decode_seconds",
            "Time to decode and resize an image.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.network_seconds = Histogram(
            "finetune_network_seconds",
            "Time of the network for a batch.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_images = Histogram(
            "finetune_batch_images", "Images of a batch.", buckets=_IMAGES, registry=self.registry
        )
        self.queue_images = Gauge(
            "finetune_queue_images",
            "Images that are decoded, wait or are computed.",
            registry=self.registry,
        )

    def observe_batch(self, num_images: int, seconds: float) -> None:
        """Record a batch of the network."""
        self.images.inc(num_images)
        self.batch_images.observe(num_images)
        self.network_seconds.observe(seconds)

    def render(self) -> bytes:
        """Return all metrics as text."""
        return generate_latest(self.registry)
