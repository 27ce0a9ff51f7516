"""Which planted near-duplicates of real pictures `viaduct curate` would unite with them.

    python benchmarks/planted_pictures.py RAW_OR_PAIRS [--every 4] [--bits 16] [--colours 20]

Of every few pictures: the picture as a JPEG of quality 50, at half its size, at 1.3 times its size,
without 2% and without 5% of its sides. It is found if it is alike to what it was made of. The last
line is one JSON object: the share found of each kind.
"""

import argparse
import io
import json
from collections.abc import Iterator

import numpy as np
from PIL import Image

from pipeline.dataset import Dataset, decode_row
from pipeline.hashes import coarse_colours, perceptual_hash
from pipeline.near_duplicates import NearDuplicateConfig, near_pairs


def variants(picture: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """What the web makes of a picture, all as JPEGs."""
    yield "quality 50", encoded(picture, 50)
    for name, scale in (("half size", 0.5), ("1.3 times", 1.3)):
        size = [max(1, round(side * scale)) for side in picture.size]
        yield name, encoded(picture.resize((size[0], size[1]), Image.Resampling.BICUBIC), 85)
    for percent in (2, 5):
        x, y = (round(side * percent / 200) for side in picture.size)
        box = (x, y, picture.width - x, picture.height - y)
        yield f"without {percent}%", encoded(picture.crop(box), 85)


def encoded(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def is_alike(one: Image.Image, other: Image.Image, config: NearDuplicateConfig) -> bool:
    hashes = [perceptual_hash(picture) for picture in (one, other)]
    known = b"".join(its for its in hashes if its is not None)
    if len(known) < 64:
        return False
    colours = coarse_colours(one) + coarse_colours(other)
    arrays = [np.frombuffer(its, np.uint8).reshape(2, -1) for its in (known, colours)]
    return len(near_pairs(arrays[0], arrays[1], config)) == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="a dataset with pictures")
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--bits", type=int, default=NearDuplicateConfig.near_bits)
    parser.add_argument("--colours", type=int, default=NearDuplicateConfig.near_colours)
    arguments = parser.parse_args()
    config = NearDuplicateConfig(near_bits=arguments.bits, near_colours=arguments.colours)
    found: dict[str, int] = {}
    count = flat = 0
    for shard in Dataset.open(arguments.dataset).shards():
        for row in range(0, shard.table.num_rows, arguments.every):
            if not shard.live[row].as_py():
                continue
            picture = decode_row(shard, row)
            count += 1
            flat += perceptual_hash(picture) is None
            for name, variant in variants(picture):
                found[name] = found.get(name, 0) + is_alike(picture, variant, config)
    shares = {name: round(number / count, 3) for name, number in found.items()}
    print(json.dumps({"pictures": count, "flat": flat, "found": shares}))


if __name__ == "__main__":
    main()
