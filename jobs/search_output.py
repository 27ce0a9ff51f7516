"""How what was found is told: lines for people, and a folder with the pictures."""

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.dataset import Dataset
from pipeline.errors import DatasetError
from pipeline.storage import Folder

_LONGEST_CAPTION = 60
"""Characters of a caption that are printed."""


def save(results: dict[str, Any], pairs: Sequence[Dataset], folder: Folder) -> None:
    """Write the pictures found as `SEARCH-RANK.jpg`, and results.json, which names them.

    A picture that was taken down from its `pairs`, of which each part of the index has its own, has
    no file.

    Raises:
        ConfigError: the folder cannot be written.
        DatasetError: a shard of `pairs` is missing or damaged.
    """
    folder.create()
    for number, one in enumerate(results["searches"]):
        for result in one.get("results", ()):
            picture = _picture(pairs[result.get("part", 0)], result)
            if picture is not None:
                result["file"] = f"{number:02d}-{result['rank']:02d}.jpg"
                folder.publish(result["file"], picture)
    folder.publish_json("results.json", results)


def _picture(pairs: Dataset, result: dict[str, Any]) -> bytes | None:
    shard = pairs.shard(result["shard"])
    row = shard.table.slice(result["row"], 1).select(["uid", "picture"]).to_pylist()[0]
    if row["uid"].hex() != result["uid"]:
        raise DatasetError(f"{pairs.folder}: row {result['row']} is not picture {result['uid']}")
    return None if row["uid"] in shard.tombstones else row["picture"]


def show(results: dict[str, Any]) -> str:
    """The results as lines for people."""
    return "\n\n".join("\n".join(_lines(one)) for one in results["searches"])


def _lines(one: dict[str, Any]) -> Iterator[str]:
    yield _title(one)
    pictures = "results" in one
    found = one["results"] if pictures else one["captions"]
    if not found:
        yield "  nothing is indexed"
        return
    place = "part:shard:row" if "part" in found[0] else "shard:row"
    told = (place, "caption", "source") if pictures else ("picture", "caption")
    match = ("match",) if "match" in found[0] else ()
    rows = [("rank", "score", *match, *told), *map(_picture_row if pictures else _text_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        yield "  " + "  ".join([*cells, row[-1]])


def _title(one: dict[str, Any]) -> str:
    both = [_printable(one["text"])] if "text" in one else []
    return ", ".join(both + ([f"like {one['image']}"] if "image" in one else []))


def _picture_row(result: dict[str, Any]) -> tuple[str, ...]:
    return (
        *_scores(result),
        ":".join(str(result[name]) for name in ("part", "shard", "row") if name in result),
        _shortened(result["captions"]),
        _printable(result["url"]),
    )


def _text_row(result: dict[str, Any]) -> tuple[str, ...]:
    return *_scores(result), result["uid"], _shortened([result["text"]])


def _scores(result: dict[str, Any]) -> tuple[str, ...]:
    match = (f"{result['match']:.4f}",) if "match" in result else ()
    return str(result["rank"]), f"{result['score']:.4f}", *match


def _shortened(captions: Sequence[str]) -> str:
    if not captions:
        return "-"
    first = _printable(captions[0])
    if len(first) > _LONGEST_CAPTION:
        first = first[: _LONGEST_CAPTION - 3] + "..."
    return first + (f" (+{len(captions) - 1})" if len(captions) > 1 else "")


def _printable(text: str) -> str:
    """Without what a terminal would obey: the web's texts are anybody's."""
    return "".join(c if c.isprintable() else "?" for c in text)
