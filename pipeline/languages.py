"""The filter of languages: captions that are surely in another one are rejected."""

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import pyarrow as pa

from pipeline.errors import ConfigError

_CHARS = 500
"""Of a caption that are looked at."""


@dataclass(frozen=True, kw_only=True)
class LanguageFilter:
    """Rejects captions in other languages, as py3langid judges, which comes with its model.

    Raises:
        ConfigError: py3langid is not installed, or does not know a language.
    """

    reason: ClassVar[str] = "rejected:language"

    languages: tuple[str, ...]
    """Languages kept, by their codes in ISO 639-1."""

    min_probability: float = 0.01
    """Least probability that a caption is in one of them, 0 to 1; low, as two words tell little."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_probability <= 1:
            raise ConfigError(f"min_probability: {self.min_probability} is not between 0 and 1")
        known = _identifier().labels
        for language in self.languages:
            if language not in known:
                raise ConfigError(f"languages: {language!r} is none of {' '.join(sorted(known))}")

    def refuses(self, table: pa.Table) -> pa.BooleanArray:
        wanted = set(self.languages)
        return pa.array(
            [
                # Summed in a fixed order, so that a caption on the edge falls to one side always.
                sum(p for language, p in sorted(_ranked(text)) if language in wanted)
                < self.min_probability
                for text in table.column("text").to_pylist()
            ],
            pa.bool_(),
        )


def _ranked(text: str) -> list[tuple[str, float]]:
    """Languages with their probabilities; of a text without any evidence, all alike."""
    return _identifier().rank(text[:_CHARS])


@cache
def _identifier() -> Any:
    try:
        from py3langid import langid
    except ImportError:
        raise ConfigError(
            "languages: the package py3langid is needed: pip install 'viaduct[language]'"
        ) from None
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
