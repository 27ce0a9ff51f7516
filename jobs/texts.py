"""What models write of pictures: asked for a batch at a time, then told."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from jobs.progress import Progress
from jobs.results import publish_result
from jobs.subjects import Subjects

Writer = Callable[[Tensor], list[list[str]]]
"""Image tokens [B, P, C] to the texts of each picture, the best first."""


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """How texts are told."""

    json: bool = False
    """Print one JSON object instead of a line a text."""

    out: str | None = None
    """File to write the same JSON object to; it appears whole."""


def write_of(job: str, subjects: Subjects, batch_size: int, writer: Writer) -> list[list[str]]:
    """The texts of all pictures, with progress.

    Args:
        job: its name, for the progress.
        subjects: pictures.
        batch_size: pictures at once.
        writer: writes them.
    """
    progress = Progress(job, len(subjects), 0, "pictures")
    texts: list[list[str]] = []
    for start in range(0, len(subjects), batch_size):
        numbers = range(start, min(start + batch_size, len(subjects)))
        texts += writer(subjects.tokens(numbers))
        progress.advance(len(numbers))
    progress.close()
    return texts


def tell(
    config: OutputConfig,
    about: dict[str, Any],
    kind: str,
    names: list[dict[str, str]],
    texts: list[list[str]],
) -> None:
    """Print texts, and write them where asked to.

    Args:
        config: see there.
        about: what else the JSON holds.
        kind: of the texts: `caption` or `answer`.
        names: of the pictures.
        texts: of each picture, the best first; where there are several, all stand in the JSON.
    """
    plural = f"{kind}s"
    both = list(zip(names, texts, strict=True))
    told = [name | {kind: its[0]} | ({plural: its} if len(its) > 1 else {}) for name, its in both]
    result = about | {plural: told}
    if config.out is not None:
        publish_result(config.out, result)
    if config.json:
        print(json.dumps(result))
        return
    for name, its in both:
        for text in its:
            print(f"{name['picture']}\t{text}")
