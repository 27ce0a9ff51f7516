"""The pictures of a run: those that were captioned, and those that searches found."""

import base64
import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from jobs.report.contents import reading
from pipeline.pictures import PictureConfig, PictureFault, store
from pipeline.storage import Folder

_SMALL = PictureConfig(short_side_px=192, jpeg_quality=85)


@dataclass
class Captioned:
    """A picture with what the web says of it and what was written for it."""

    picture: str | None
    """As a data URI; None where it is not there any more."""
    name: str
    told: list[str]
    """Captions that came with it."""
    written: list[tuple[str, str]] = field(default_factory=list)
    """By whom, and the caption."""


@dataclass(frozen=True)
class Result:
    """A picture that a search found."""

    picture: str | None
    rank: int
    score: float
    captions: list[str]
    url: str


@dataclass(frozen=True)
class Query:
    """A search: by a text, by a picture, or by both."""

    text: str
    picture: str | None
    by_picture: bool
    results: list[Result]


@dataclass(frozen=True)
class Gallery:
    """All of them, and how many were left out."""

    captioned: list[Captioned]
    queries: list[Query]
    num_left_out: int

    @property
    def is_empty(self) -> bool:
        return not (self.captioned or self.queries)


def read_gallery(run: Folder, places: list[tuple[str, Folder]], limit: int) -> Gallery:
    """Read captions and searches in a run's folders, with their pictures made small.

    Args:
        run: folder that relative names of pictures are looked up in first.
        places: folders to look for captions*.json and results.json in.
        limit: pictures captioned, and searches, at most.

    Raises:
        DatasetError: a file is damaged; it is named.
    """
    captioned: dict[str, list[tuple[str, str]]] = {}
    queries: list[Query] = []
    num_queries = 0
    for _, folder in places:
        for file in folder.files():
            if fnmatch.fnmatch(file, "captions*.json"):
                for picture, by, text in _written(folder, file):
                    captioned.setdefault(picture, []).append((by, text))
        found = folder.read_json("results.json")
        if isinstance(found, dict) and "searches" in found:
            with reading(f"{folder}/results.json"):
                searches = [one for one in found["searches"] if "captions" not in one]
                num_queries += len(searches)
                queries += [_query(run, folder, s) for s in searches[:limit]]
    shown = [
        Captioned(picture, name, told, captioned[name])
        for name in list(captioned)[:limit]
        for picture, told in [_as_given(run, name)]
    ]
    left_out = len(captioned) - len(shown) + num_queries - len(queries[:limit])
    return Gallery(shown, queries[:limit], left_out)


def _written(folder: Folder, file: str) -> Iterator[tuple[str, str, str]]:
    """Picture, captioner and caption; nothing where the file is no job's."""
    value = folder.read_json(file)
    if not (isinstance(value, dict) and "checkpoint" in value):
        return
    with reading(f"{folder}/{file}"):
        by = f"stage {int(value['stage'])}"
        for one in value["captions"]:
            yield str(one["picture"]), by, str(one["caption"])


def _query(run: Folder, folder: Folder, search: dict[str, Any]) -> Query:
    image = search.get("image")
    results = [
        Result(
            picture=_within(folder, result.get("file")),
            rank=int(result["rank"]),
            score=float(result["score"]),
            captions=[str(text) for text in result["captions"]],
            url=str(result["url"]),
        )
        for result in search["results"]
    ]
    if image is None:
        return Query(str(search["text"]), None, False, results)
    asked = f"{image}, with the words: {search['text']}" if "text" in search else str(image)
    return Query(asked, _as_given(run, str(image))[0], True, results)


def _within(folder: Folder, name: str | None) -> str | None:
    """A picture below a folder; a name that leads out of it is none."""
    if not name or name.startswith("/") or ".." in PurePosixPath(name).parts:
        return None
    return _small(folder, name)


def _as_given(run: Folder, name: str) -> tuple[str | None, list[str]]:
    """A picture of the user's and the captions beside it, from the run's folder or from here."""
    path = PurePosixPath(name)
    parents = [Folder.at(str(path.parent))]
    if not path.is_absolute():
        parents.insert(0, run if str(path.parent) == "." else run / str(path.parent))
    for parent in parents:
        picture = _small(parent, path.name)
        if picture is not None:
            beside = f"{path.stem}.txt"
            told = parent.read(beside) if parent.size(beside) is not None else b""
            return picture, told.decode(errors="replace").splitlines()
    return None, []


def _small(folder: Folder, name: str) -> str | None:
    """A picture in a folder: decoded and stored anew, so that only a picture can get in."""
    return None if folder.size(name) is None else as_small(folder.read(name))


def as_small(data: bytes) -> str | None:
    """A picture's bytes as a data URI of a small one; None where they cannot be decoded."""
    try:
        jpeg = store(data, _SMALL).jpeg
    except PictureFault:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
