"""`viaduct search`: pictures by words, by picture or by both, and captions by picture."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, Any

import tyro

from indexes.retrieval import RetrievalIndex
from jobs.device import Device, torch_device
from jobs.search_models import CheckpointEmbedder, token_source
from jobs.search_output import save, show
from jobs.search_places import Places, PlacesConfig
from jobs.search_queries import Find, Query, Searcher, as_json
from pipeline.captions import normalise
from pipeline.errors import ConfigError
from pipeline.pictures import PictureConfig, read_picture
from pipeline.storage import Folder


@dataclass(frozen=True, kw_only=True)
class Search:
    """Find the pictures closest to texts or pictures among all that are indexed."""

    index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]
    """Folder or URI of an index."""

    texts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT")] = ()
    """What the pictures should show, one search a text."""

    image: tuple[str, ...] = ()
    """Picture files to find the like of, one search a file."""

    together: bool = False
    """Search for each text and each picture together: what is found is close to one thing that the
    picture shows, and to the words at once."""

    find: Find = "pictures"
    """What is found: pictures, or captions that fit the picture files."""

    k: int = 10
    """Results for each search."""

    rerank: int = 0
    """Candidates of each search that are looked at again beside the text (of captions: beside the
    picture), and put in order by ITM: its logit plus the cosine. 0 leaves the order to ITC. The
    paper takes 128."""

    json: bool = False
    """Print one JSON object instead of text."""

    save: str | None = None
    """Folder to write `results.json` and the pictures found into."""

    device: Device = "auto"
    """Where to compute; `auto` takes a GPU where there is one."""

    places: PlacesConfig = field(default_factory=PlacesConfig)

    def __post_init__(self) -> None:
        if not self.texts and not self.image:
            raise ConfigError("texts, image: give a text or a picture to search for")
        if not all(normalise(text) for text in self.texts):
            raise ConfigError("texts: one of them is empty")
        if self.k < 1:
            raise ConfigError(f"k: {self.k} is not positive")
        if self.rerank and self.rerank < self.k:
            raise ConfigError(f"rerank: {self.rerank} is less than k={self.k}")
        if self.together and not (self.texts and self.image):
            raise ConfigError("together: give a text and a picture")
        if self.find == "captions" and self.texts:
            raise ConfigError("find: captions are found for picture files; leave out the texts")
        if self.rerank and self.find == "pictures" and self.image and not self.together:
            raise ConfigError(
                "rerank: pictures found by a picture alone have no text to be matched with"
            )

    def run(self) -> None:
        """Print what was found, and save it."""
        index = RetrievalIndex.open(self.index)
        places = Places(index, self.places)
        pairs = places.open_pairs() if self.save is not None else ()
        searcher = self._searcher(index, places)
        results = {"index": index.digest, "searches": list(self._searches(searcher))}
        if self.save is not None:
            save(results, pairs, Folder.at(self.save))
        text = json.dumps(results, indent=1, ensure_ascii=False) if self.json else show(results)
        sys.stdout.write(text + "\n")

    def _searcher(self, index: RetrievalIndex, places: Places) -> Searcher:
        checkpoint = places.open_checkpoint()
        embedder = CheckpointEmbedder(checkpoint, self.places.weights, torch_device(self.device))
        if not self.rerank or self.find == "captions":
            return Searcher(index, embedder, None)
        features = places.open_features(checkpoint)
        pairs = places.open_pairs() if None in features else ()
        return Searcher(index, embedder, token_source(features, pairs, embedder))

    def _searches(self, searcher: Searcher) -> Iterator[dict[str, Any]]:
        """What results.json tells of each search: the query, and what it found."""
        asked = list(self._asked())
        config = PictureConfig()
        pictures = {file: read_picture(file, config) for file in dict.fromkeys(self.image)}
        queries = [
            Query(
                text=one.get("text"),
                picture=pictures[one["image"]] if "image" in one else None,
                k=self.k,
                rerank=self.rerank,
                find=self.find,
            )
            for one in asked
        ]
        kind = "results" if self.find == "pictures" else "captions"
        for one, answer in zip(asked, searcher.answers(queries), strict=True):
            yield one | {kind: as_json(answer, with_part=searcher.index.has_additions)}

    def _asked(self) -> Iterator[dict[str, str]]:
        """The text, the picture file or both of each search."""
        if self.together:
            yield from ({"text": t, "image": file} for t, file in product(self.texts, self.image))
            return
        yield from ({"text": text} for text in self.texts)
        yield from ({"image": file} for file in self.image)
