"""Times the storing of twelve-megapixel JPEGs, beside full decodes, and compares what is stored.

    python benchmarks/decode.py FOLDER [--megapixels 12] [--short-side-px 256]

FOLDER holds JPEG photos (such as `coco_cc/images`), which are enlarged. Prints a line of JSON: CPU
seconds a picture both ways, their ratio, and the least SSIM of a stored picture to that of the full
decode.
"""

import argparse
import io
import json
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.pictures import PictureConfig, StoredPicture, decode_stored, store


def enlarged(file: Path, megapixels: float) -> bytes:
    """The photo as a JPEG of so many million pixels, quality 90."""
    picture = Image.open(file).convert("RGB")
    scale = (megapixels * 1e6 / (picture.width * picture.height)) ** 0.5
    size = (round(picture.width * scale), round(picture.height * scale))
    buffer = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def ssim(one: StoredPicture, other: StoredPicture, side: int = 7) -> float:
    """Mean structural similarity of the greys (Wang et al. 2004), uniform windows."""

    def mean(values: np.ndarray) -> np.ndarray:
        sums = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        rows = sums[side:] - sums[:-side]
        return (rows[:, side:] - rows[:, :-side]) / side**2

    x, y = (np.asarray(decode_stored(p.jpeg).convert("L"), float) for p in (one, other))
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(likeness.mean())


def timed(data: bytes, config: PictureConfig) -> tuple[StoredPicture, float]:
    begun = time.process_time()
    return store(data, config), time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megapixels", type=float, default=12.0, help="of the enlarged photos")
    parser.add_argument("--short-side-px", type=int, default=256, help="as of ingest")
    options = parser.parse_args()
    config = PictureConfig(short_side_px=options.short_side_px)
    likeness, reduced_s, full_s = [], [], []
    for file in sorted(options.folder.glob("*.jpg")):
        data = enlarged(file, options.megapixels)
        reduced, seconds = timed(data, config)
        reduced_s.append(seconds)
        with patch.object(JpegImageFile, "draft", lambda *_: None):
            full, seconds = timed(data, config)
        full_s.append(seconds)
        likeness.append(ssim(reduced, full))
    print(
        json.dumps(
            {
                "pictures": len(likeness),
                "reduced_s": round(float(np.mean(reduced_s)), 4),
                "full_s": round(float(np.mean(full_s)), 4),
                "speedup": round(float(np.sum(full_s) / np.sum(reduced_s)), 2),
                "least_ssim": round(min(likeness), 4),
            }
        )
    )


if __name__ == "__main__":
    main()
