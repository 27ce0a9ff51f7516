"""Annotation files: the captions JSON of COCO, and Karpathy's splits, with a folder of pictures.

The whole JSON is in memory while it is read: they are of a few hundred megabytes at most.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError, first_line
from pipeline.extra import extra_column, text_fields
from pipeline.fetch import FetchConfig, Fetcher
from pipeline.picture_folders import folder_fetcher
from pipeline.source_files import SourceFile
from pipeline.source_rows import source_rows, text
from pipeline.uids import uid_of

_ROWS = 8192
"""Pictures a table."""


_Pair = tuple[str, list[str], dict[str, Any]]
"""Path, captions, and the entry of `images` that they are of."""


class AnnotationSource:
    """A row for each of `images`, with all its captions in the file's order.

    In COCO's format (https://cocodataset.org/#format-data) they are those of `annotations` whose
    `image_id` is the picture's. In Karpathy's each picture has its `sentences`, and `filepath` is
    the folder of its `filename`, where there is one. His `split` is left alone, for curate splits,
    unless only the pictures of one are asked for.
    """

    locations = "file"

    def __init__(
        self,
        file: SourceFile,
        folder: Path,
        keep: tuple[str, ...] = (),
        split: str | None = None,
    ) -> None:
        """Name the files; nothing is read yet.

        Args:
            file: the JSON.
            folder: in which the pictures lie.
            keep: further fields of each picture to carry along.
            split: of Karpathy's format the pictures of this split alone; None takes all.
        """
        self.file = file
        self.folder = folder
        self.extra = text_fields(keep)
        self.split = split

    @property
    def open_fetcher(self) -> Callable[[FetchConfig], Fetcher]:
        return folder_fetcher(self.folder)

    def digest(self) -> str:
        read_as = " ".join(["annotations", *(field.name for field in self.extra or ())])
        if self.split is not None:
            read_as += f" split={self.split}"
        return hashlib.sha256(f"{read_as} {self.file.digest()}".encode()).hexdigest()

    def tables(self) -> Iterator[pa.Table]:
        pairs = self._pairs()
        for start in range(0, len(pairs), _ROWS):
            paths, captions, images = zip(*pairs[start : start + _ROWS], strict=True)
            yield source_rows(paths, captions, uid_of, self._extra(images))

    def _extra(self, images: Sequence[dict[str, Any]]) -> pa.StructArray | None:
        if self.extra is None:
            return None
        names = [field.name for field in self.extra]
        return extra_column({n: [image.get(n) for image in images] for n in names}, self.extra)

    def splits(self) -> dict[str, int]:
        """How many pictures each split of Karpathy's has; nothing of COCO's format."""
        return dict(Counter(image["split"] for _, _, image in self._read() if "split" in image))

    def _pairs(self) -> list[_Pair]:
        """The path in the picture folder and the captions of each picture."""
        pairs = self._read()
        if self.split is not None:
            chosen = [pair for pair in pairs if pair[2].get("split") == self.split]
            if not chosen:
                there = sorted({str(image.get("split")) for _, _, image in pairs} - {"None"})
                known = f"there are {', '.join(there)}" if there else "its pictures have none"
                raise ConfigError(f"{self.file}: no picture of the split {self.split!r}; {known}")
            pairs = chosen
        for field in self.extra or ():
            if pairs and not any(field.name in image for _, _, image in pairs):
                raise self._error(f"no picture has the field {field.name!r}")
        return pairs

    def _read(self) -> list[_Pair]:
        try:
            with self.file.stream() as stream:
                content = json.loads(stream.read())
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{self.file}: cannot be read: {first_line(error)}") from error
        try:
            coco = "annotations" in _of(dict, content, "the file")
            return _coco(content) if coco else _karpathy(content)
        except _Malformed as error:
            raise self._error(str(error)) from None

    def _error(self, what: str) -> ConfigError:
        return ConfigError(f"{self.file}: {what}; COCO captions or Karpathy's format is needed")


class _Malformed(Exception):
    """What is wrong, and where."""


def _coco(content: dict[str, Any]) -> list[_Pair]:
    captions: dict[int, list[str]] = {}
    paths, images = [], _list(content, "images", "the file")
    for number, image in enumerate(images):
        where = f"images[{number}]"
        paths.append(_get(str, image, "file_name", where))
        key = _get(int, image, "id", where)
        if key in captions:
            raise _Malformed(f"{where}: another picture has the id {key}")
        captions[key] = []
    for number, annotation in enumerate(_list(content, "annotations", "the file")):
        where = f"annotations[{number}]"
        key = _get(int, annotation, "image_id", where)
        if key not in captions:
            raise _Malformed(f"{where}: no picture has the id {key}")
        captions[key].append(_text(annotation, "caption", where))
    return list(zip(paths, captions.values(), images, strict=True))


def _karpathy(content: dict[str, Any]) -> list[_Pair]:
    pairs = []
    for number, image in enumerate(_list(content, "images", "the file")):
        where = f"images[{number}]"
        sentences = _list(image, "sentences", where)
        name = _get(str, image, "filename", where)
        if "split" in image:
            _get(str, image, "split", where)
        below = _get(str, image, "filepath", where) if "filepath" in image else ""
        captions = [
            _text(sentence, "raw", f"{where}.sentences[{n}]")
            for n, sentence in enumerate(sentences)
        ]
        pairs.append((str(PurePosixPath(below) / name), captions, image))
    return pairs


def _list(item: Any, key: str, where: str) -> list[Any]:
    return _get(list, item, key, where)


def _text(item: Any, key: str, where: str) -> str:
    """A caption; half of a surrogate pair, which JSON can write, is replaced."""
    return text(_get(str, item, key, where))


def _get(kind: type, item: Any, key: str, where: str) -> Any:
    return _of(kind, _of(dict, item, where).get(key), f"{where}.{key}")


def _of(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, kind):
        what = "is missing" if value is None else f"is {type(value).__name__}"
        raise _Malformed(f"{where} {what}, not {kind.__name__}")
    return value
