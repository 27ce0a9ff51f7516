"""What a client may ask of the server, and for how long it may take to ask."""

from dataclasses import dataclass, fields

from pipeline.errors import ConfigError
from pipeline.pictures import PictureConfig


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """Bounds of what a client may ask for."""

    max_body_mib: int = 16
    """Largest picture that is taken, in MiB; a search without one may have 64 KiB."""

    max_pixels: int = 25_000_000
    """Largest picture that is decoded, in pixels, by its header; of WebP and AVIF half as many."""

    max_k: int = 100
    """Most results of a search."""

    max_rerank: int = 128
    """Most candidates that a search may have re-ranked; 0 offers no re-ranking."""

    max_searches: int = 64
    """Searches under way at once; whoever comes on top is told to come again (503)."""

    max_heavy: int = 16
    """Of these, searches with a picture or with re-ranking."""

    max_connections: int = 512
    """Connections at once. Where there are more, the one that has waited longest without asking for
    anything is closed."""

    search_timeout_s: float = 30.0
    """What a search may take, in seconds, before its client is told that it failed (503)."""

    request_timeout_s: float = 10.0
    """What a client may take to send the head of a request, and again to send its body (408)."""

    reading_timeout_s: float = 30.0
    """What a client may leave a response unread before its connection is cut."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value < 0 or (value == 0 and one.name != "max_rerank"):
                raise ConfigError(f"{one.name}: {value} is not positive")
        if self.max_rerank and self.max_rerank < self.max_k:
            raise ConfigError(f"max_rerank: {self.max_rerank} is less than max_k={self.max_k}")

    @property
    def max_body_bytes(self) -> int:
        """Of a picture."""
        return self.max_body_mib << 20

    @property
    def pictures(self) -> PictureConfig:
        """How pictures of clients are read: as they would be stored, within these bounds."""
        return PictureConfig(max_decoded_px=self.max_pixels)


MAX_HEAD_BYTES = 16 << 10
"""Of a request's headers, all together."""

MAX_JSON_BYTES = 64 << 10
"""Largest search without a picture."""

MAX_TEXT_CHARS = 2_000
"""Longest text that is searched for; a model reads some dozens of words of it."""

BODIES_AT_ONCE = 16
"""So many of the largest bodies are in memory at once; whoever comes on top is told to come again.
"""
