"""Counts what each filter drops of a folder with pairs.jsonl; docs/filters.md has it for clipart.

    python benchmarks/filters.py FOLDER [--examples] [--languages en ...]

Each filter is asked alone, of all pictures or captions, and then the set as the jobs apply it, the
first filter that refuses one giving the reason. Pictures are decoded as ingest does, equal ones are
united as curate does, and captions are counted over what the picture filters of the set keep.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.caption_filters import CAPTION_FILTERS, JUDGED
from pipeline.captions import judge, web_caption
from pipeline.filters import Filter, judged
from pipeline.languages import LanguageFilter
from pipeline.picture_filters import FACTS, PICTURE_FILTERS
from pipeline.pictures import PictureConfig, PictureFault, decode_stored, pixel_digest, store
from pipeline.schemas import KEPT
from pipeline.sources import open_source
from pipeline.url_tables import SourceColumns


def pictures(folder: str) -> Iterator[tuple[bytes, tuple[int, int, bool, int], list[str]]]:
    """Pixel digest, facts and captions of each picture that can be decoded."""
    source = open_source(folder, SourceColumns())
    for table in source.tables():
        for path, captions in zip(
            *(table.column(n).to_pylist() for n in ("url", "captions")), strict=True
        ):
            try:
                stored = store(Path(folder, path).read_bytes(), PictureConfig())
            except PictureFault:
                continue
            facts = (*stored.original_size_px, stored.animated, stored.colour_range)
            yield pixel_digest(decode_stored(stored.jpeg)), facts, captions


def texts_of(rows: Sequence[tuple[bytes, list[str]]]) -> list[str]:
    """The captions of united pictures, each text once a picture, empty ones left out."""
    united: dict[bytes, dict[str, None]] = {}
    for digest, captions in rows:
        kept = united.setdefault(digest, {})
        for caption in map(judge, map(web_caption, captions)):
            if caption["status"] == KEPT:
                kept[caption["text"]] = None
    return [text for texts in united.values() for text in texts]


def show(name: str, table: pa.Table, filters: Sequence[Filter], examples: Sequence[str]) -> None:
    """A line for each filter: refused alone, refused as one of the set, some that are."""
    outcomes = judged(table, filters, KEPT)
    counts = Counter(outcomes)
    print(f"\n{name}: {table.num_rows:,} in, {counts[KEPT]:,} kept\n")
    print("| reason | alone | in the set |", "examples |" if examples else "")
    print("|---|---|---|", "---|" if examples else "")
    for each in filters:
        alone = sum(each.refuses(table).to_pylist())
        some = [text for text, o in zip(examples, outcomes, strict=False) if o == each.reason]
        shown = " / ".join(some[:: max(1, len(some) // 3)][:3])
        line = f"| `{each.reason}` | {alone:,} | {counts[each.reason]:,} |"
        print(line, f"{shown} |" if examples else "")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", help="folder with pairs.jsonl and pictures")
    parser.add_argument(
        "--examples", action="store_true", help="show three captions of each reason"
    )
    parser.add_argument("--languages", nargs="*", default=(), help="those of curate, such as en")
    options = parser.parse_args()
    language = (LanguageFilter(languages=tuple(options.languages)),) if options.languages else ()
    rows = list(pictures(options.folder))
    facts = pa.table([list(c) for c in zip(*(row[1] for row in rows), strict=True)], schema=FACTS)
    for name in ("default", "strict"):
        show(f"pictures, {name}", facts, PICTURE_FILTERS[name], ())
        outcomes = judged(facts, PICTURE_FILTERS[name], KEPT)
        kept = [(r[0], r[2]) for r, outcome in zip(rows, outcomes, strict=True) if outcome == KEPT]
        texts = texts_of(kept)
        often = Counter(texts)
        columns = [pa.array(texts, pa.string()), [often[text] for text in texts]]
        table = pa.table(columns, schema=JUDGED)
        show(
            f"captions, {name}",
            table,
            (*CAPTION_FILTERS[name], *language),
            texts if options.examples else (),
        )


if __name__ == "__main__":
    main()
