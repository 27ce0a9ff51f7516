"""`viaduct evaluate captions`: CIDEr and BLEU-4 of captions that a checkpoint wrote."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from jobs.evaluate.caption_scores import caption_scores
from jobs.evaluate.table import estimate_line
from jobs.results import place_of, publish_result
from pipeline.captions import kept_texts, open_captions
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EvaluateCaptions:
    """Measure captions against those that the pictures came with: CIDEr and BLEU-4.

    The captions are what `viaduct caption --features F --pairs P --split test --out FILE` wrote;
    of several a picture the first counts. Words are those of the Penn Treebank without punctuation;
    intervals are 95% by bootstrap over pictures. Needs `pip install 'viaduct[captions]'`.
    """

    written: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """JSON of `viaduct caption --out`."""

    captions: str
    """Dataset with the captions that the pictures came with: `pairs` or `captions`."""

    out: str | None = None
    """File to write the result to, as JSON."""

    json: bool = False
    """Print one JSON object instead of lines."""

    def run(self) -> None:
        """Measure, print, and write where asked to.

        Raises:
            ConfigError: the file is no such JSON, a picture is in no dataset, or there are fewer
                than two with captions of their own.
        """
        content = _read(self.written)
        written = _captions_by_uid(content, self.written)
        references, splits = _references(open_captions(self.captions), set(written))
        if missing := sorted(written.keys() - references.keys()):
            raise ConfigError(f"{self.written}: picture {missing[0]} is not in {self.captions}")
        told = [uid for uid, its in references.items() if its]
        scores = caption_scores([written[uid] for uid in told], [references[uid] for uid in told])
        result = {
            "checkpoint": content.get("checkpoint"),
            "split": "+".join(sorted({splits[uid] for uid in told})),
            "num_pictures": len(told),
            "num_references": sum(len(references[uid]) for uid in told),
            "num_without_reference": len(references) - len(told),
            **scores.to_json(),
        }
        if self.out is not None:
            publish_result(self.out, result)
        if self.json:
            print(json.dumps(result))
            return
        print(
            f"{result['split']}: {len(told):,} pictures, {result['num_references']:,} references; "
            "95% intervals"
        )
        print(estimate_line("CIDEr", scores.cider))
        print(estimate_line("BLEU-4", scores.bleu_4))


def _read(file: str) -> dict[str, Any]:
    """Raises ConfigError where it is no JSON of `viaduct caption`."""
    folder, name = place_of(file)
    if folder.size(name) is None:
        raise ConfigError(f"{file}: no such file")
    try:
        content = json.loads(folder.read(name))
    except ValueError as error:
        raise ConfigError(f"{file}: not JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("captions"), list):
        raise ConfigError(f"{file}: has no list `captions`, as `viaduct caption --out` writes it")
    return content


def _captions_by_uid(content: Mapping[str, Any], file: str) -> dict[str, str]:
    """Of each picture, by its uid in hexadecimal, the first caption."""
    found: dict[str, str] = {}
    for number, one in enumerate(content["captions"]):
        where = f"{file}: captions[{number}]"
        if not isinstance(one, dict) or not isinstance(one.get("caption"), str):
            raise ConfigError(f"{where}: has no text `caption`")
        if not isinstance(one.get("uid"), str):
            raise ConfigError(f"{where}: has no uid; caption pictures of --features, not files")
        if one["uid"] in found:
            raise ConfigError(f"{where}: picture {one['uid']} is there twice")
        found[one["uid"]] = one["caption"]
    return found


def _references(captions: Dataset, wanted: set[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Of each wanted picture that is there its captions in use, and its split."""
    references, splits = {}, {}
    for number in captions.records:
        shard = captions.shard(number, columns=["uid", "captions", "split"])
        table = shard.table.filter(shard.live)
        columns = (table.column(name).to_pylist() for name in ("uid", "split"))
        for uid, split, kept in zip(*columns, kept_texts(table.column("captions")), strict=True):
            if uid.hex() in wanted:
                references[uid.hex()] = [text for _, text in kept]
                splits[uid.hex()] = split
    return references, splits
