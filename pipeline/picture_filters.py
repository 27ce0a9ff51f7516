"""Filters of pictures; a picture that one of them refuses is dropped by ingest."""

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.filters import Filter, at_least

FACTS = pa.schema(
    [
        ("original_width_px", pa.int32()),
        ("original_height_px", pa.int32()),
        ("animated", pa.bool_()),
        ("colour_range", pa.int32()),
    ]
)
"""What picture filters read; see `pictures.StoredPicture`."""


@dataclass(frozen=True, kw_only=True)
class SideFilter:
    """Drops pictures too small to show much."""

    reason: ClassVar[str] = "dropped:too_small"

    min_side_px: int
    """Shorter side at least, in pixels, as it arrived."""

    def __post_init__(self) -> None:
        at_least("min_side_px", self.min_side_px, 1)

    def refuses(self, table: pa.Table) -> pa.ChunkedArray:
        return pc.less(_sides(table)[0], self.min_side_px)


@dataclass(frozen=True, kw_only=True)
class RatioFilter:
    """Drops strips and columns: banners, rules, skylines."""

    reason: ClassVar[str] = "dropped:too_elongated"

    max_ratio: float
    """Longer side over shorter side at most."""

    def __post_init__(self) -> None:
        at_least("max_ratio", self.max_ratio, 1)

    def refuses(self, table: pa.Table) -> pa.ChunkedArray:
        short, long = _sides(table)
        return pc.greater(pc.cast(long, pa.float64()), pc.multiply(short, self.max_ratio))


@dataclass(frozen=True, kw_only=True)
class AnimationFilter:
    """Drops animations, of which a dataset would show the first frame alone."""

    reason: ClassVar[str] = "dropped:animated"

    def refuses(self, table: pa.Table) -> pa.ChunkedArray:
        return table.column("animated")


@dataclass(frozen=True, kw_only=True)
class ColourFilter:
    """Drops pictures of one colour: placeholders, spacers, what is white on white."""

    reason: ClassVar[str] = "dropped:one_colour"

    max_range: int
    """Largest difference between two pixels in a channel, of 255, at which it is still one."""

    def __post_init__(self) -> None:
        at_least("max_range", self.max_range, 0)

    def refuses(self, table: pa.Table) -> pa.ChunkedArray:
        return pc.less_equal(table.column("colour_range"), self.max_range)


PICTURE_FILTERS: dict[str, tuple[Filter, ...]] = {
    "none": (),
    "default": (
        AnimationFilter(),
        SideFilter(min_side_px=32),
        RatioFilter(max_ratio=5.0),
        ColourFilter(max_range=8),
    ),
    "strict": (  # ALIGN (Jia et al. 2021, section 3) and DataComp's basic filter
        AnimationFilter(),
        SideFilter(min_side_px=200),
        RatioFilter(max_ratio=3.0),
        ColourFilter(max_range=24),
    ),
}
"""The named sets; a picture has the reason of the first that refuses it."""


def _sides(table: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    sides = table.column("original_width_px"), table.column("original_height_px")
    return pc.min_element_wise(*sides), pc.max_element_wise(*sides)
