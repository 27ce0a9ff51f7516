"""The worker of `viaduct capfilt`: captions of a shard's pictures are written, cleaned, judged."""

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from jobs.caption_roles import Judge, judge_name, tells_match
from jobs.compute import ComputeConfig
from jobs.shards import Made, Task
from model.checkpoint import Checkpoint
from model.checkpoint_models import load_stage1
from model.generation.settings import GenerationConfig
from model.generation.stage1 import write_captions
from model.judging import Stage1Judge
from model.pretrained.clip import Clip, ClipJudge
from model.stage1 import Stage1
from pipeline.accounting import Account
from pipeline.candidates import (
    ScoredCaption,
    candidate_rows,
    candidates_of,
    caption_account,
    texts_to_score,
    unscored,
    with_scores,
)
from pipeline.captioned_rows import CaptionedRows
from pipeline.dataset import Dataset, Shard, decode_row
from pipeline.errors import ConfigError
from pipeline.filters import Filter
from pipeline.loader import as_tensor
from pipeline.order import writing_seeds
from pipeline.schemas import ROWS_PER_BATCH
from pipeline.shard import commit_table
from pipeline.storage import Folder
from pipeline.token_reader import ShardTokens

_DECODE_THREADS = 2


@dataclass(frozen=True)
class CaptionWork:
    """What a worker is to make of a dataset's captions."""

    features: Dataset
    pairs: Dataset
    captions: Dataset
    """`pairs` once more, or `captions` of an earlier round."""
    out: Folder
    captioner: Checkpoint | None
    """Without one nothing is written."""
    judges: tuple[Judge, ...]
    generation: GenerationConfig
    filters: tuple[Filter, ...]
    """Of captions that were written."""
    split: str
    """Whose pictures are captioned, or `all`."""
    quota: Mapping[int, int] | None
    """Shard to how many of its `CaptionedRows` are captioned, the first ones; None takes all."""
    compute: ComputeConfig
    device: str

    def captioned_rows(self) -> CaptionedRows:
        """Of its datasets and split, before the quota."""
        beside = (self.captions, self.pairs)
        return CaptionedRows(self.features, beside, self.split)


Scores = list[list[tuple[float, float | None]]]
"""For each picture (itc, itm) of each of its texts."""

Scorer = Callable[["_Inputs", Sequence[int], Sequence[Sequence[str]]], Scores]
"""A shard, some of its rows and the texts of each, to their scores."""


class CaptionWorker:
    """Loads the captioner and its judges once, then captions shard after shard.

    A picture's captions depend on its tokens, its uid and the seed, not on its neighbours.
    """

    def __init__(self, work: CaptionWork) -> None:
        if work.device == "cpu":
            torch.set_num_threads(work.compute.threads)
        elif not torch.cuda.is_available():
            raise ConfigError("device: 'cuda', but the worker sees no GPU; set --gpus-per-worker")
        self._work = work
        self._decoding = ThreadPoolExecutor(_DECODE_THREADS)
        self._captioned_rows = work.captioned_rows()
        loaded: dict[str, Stage1] = {}
        self._captioner = None if work.captioner is None else self._load(work.captioner, loaded)
        self._scorers = [(judge_name(its), self._scorer(its, loaded)) for its in work.judges]

    def __call__(self, task: Task) -> Made:
        """Commit a shard of `candidates`; tells the seconds of writing and of judging."""
        inputs = _Inputs(self._work, task.number)
        sums: defaultdict[str, float] = defaultdict(float)
        rows = self._rows(task.number)
        with _timed(sums, "writing_s"):
            written = self._written(inputs, rows)
        found = candidates_of(
            [inputs.captions[row] or [] for row in rows], written, self._work.filters
        )
        with _timed(sums, "judging_s"):
            for name, scorer in self._scorers:
                found = self._judged(inputs, rows, found, name, scorer)
        captions = [unscored(its) for its in inputs.captions]
        for row, its in zip(rows, found, strict=True):
            captions[row] = its
        table = candidate_rows(inputs.uids, captions, inputs.splits)
        record = commit_table(
            self._work.out,
            task.number,
            table,
            ROWS_PER_BATCH["candidates"],
            pictures=Account.all_kept(table.num_rows),
            captions=caption_account(table),
        )
        sums["pictures_captioned"] = len(rows)
        sums["captions_written"] = sum(map(len, written))
        return Made(record, sums)

    def _rows(self, number: int) -> list[int]:
        """The rows of a shard that are captioned."""
        quota = None if self._work.quota is None else self._work.quota.get(number, 0)
        return [] if quota == 0 else self._captioned_rows.of(number)[:quota].tolist()

    def _load(self, checkpoint: Checkpoint, loaded: dict[str, Stage1]) -> Stage1:
        """Its model; that of a captioner which is its own judge is loaded once."""
        if checkpoint.digest not in loaded:
            loaded[checkpoint.digest] = load_stage1(checkpoint, self._work.device)
        return loaded[checkpoint.digest]

    def _scorer(self, judge: Judge, loaded: dict[str, Stage1]) -> Scorer:
        if isinstance(judge, Clip):
            return partial(self._by_clip, ClipJudge(judge, self._work.device))
        stage1 = Stage1Judge(self._load(judge, loaded), tells_match=tells_match(judge))
        return partial(self._by_stage1, stage1)

    def _written(self, inputs: "_Inputs", rows: list[int]) -> list[list[str]]:
        """What the captioner says of some rows."""
        config = self._work.generation
        if self._captioner is None:
            return [[] for _ in rows]
        written: list[list[str]] = []
        for some in self._batches(rows):
            seeds = writing_seeds(config.seed, [inputs.uids[row] for row in some])
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            tokens = self._tokens(inputs, some)
            captions = write_captions(self._captioner, tokens, config, generators)
            for row, its in zip(some, captions, strict=True):
                told = [caption.log_probability for caption in its]
                _check_finite("the captioner", inputs.uids[row], told)
                written.append([caption.text for caption in its])
        return written

    def _judged(
        self,
        inputs: "_Inputs",
        rows: list[int],
        found: list[list[ScoredCaption]],
        name: str,
        scorer: Scorer,
    ) -> list[list[ScoredCaption]]:
        """The captions of some rows with what one more judge says of them."""
        texts = [texts_to_score(its) for its in found]
        scores: Scores = []
        for some in self._batches(range(len(rows))):
            scores += scorer(inputs, [rows[at] for at in some], [texts[at] for at in some])
        for row, told in zip(rows, scores, strict=True):
            both = [value for pair in told for value in pair if value is not None]
            _check_finite(name, inputs.uids[row], both)
        return [with_scores(its, name, told) for its, told in zip(found, scores, strict=True)]

    def _by_stage1(
        self,
        judge: Stage1Judge,
        inputs: "_Inputs",
        rows: Sequence[int],
        texts: Sequence[Sequence[str]],
    ) -> Scores:
        fits = judge.scores(self._tokens(inputs, rows), texts)
        return [[(fit.itc, fit.itm) for fit in its] for its in fits]

    def _by_clip(
        self,
        judge: ClipJudge,
        inputs: "_Inputs",
        rows: Sequence[int],
        texts: Sequence[Sequence[str]],
    ) -> Scores:
        pictures = list(self._decoding.map(partial(decode_row, inputs.pictures), rows))
        return [[(cosine, None) for cosine in its] for its in judge.similarities(pictures, texts)]

    def _tokens(self, inputs: "_Inputs", rows: Sequence[int]) -> Float[Tensor, "B P C"]:
        return as_tensor(inputs.tokens.read(list(rows))).to(self._work.device)

    def _batches(self, rows: Sequence[int]) -> Iterator[Sequence[int]]:
        size = self._work.compute.batch_size
        return (rows[start : start + size] for start in range(0, len(rows), size))


class _Inputs:
    """A shard of all that captions are made from.

    Args:
        work: see there.
        number: of the shard.
    """

    def __init__(self, work: CaptionWork, number: int) -> None:
        columns = ["uid", "captions", "split"]
        of_their_own = work.captions.kind != "pairs"  # whose pictures would be read with them
        shard = work.captions.shard(number, columns=columns, verify=of_their_own)
        beside = work.pairs.shard(number, columns=["uid"])
        live = np.asarray(shard.live) & np.asarray(beside.live)
        self.uids: list[bytes] = shard.table.column("uid").to_pylist()
        self.captions, self.splits = (
            [its if here else None for its, here in zip(column.to_pylist(), live, strict=True)]
            for column in (shard.table.column("captions"), shard.table.column("split"))
        )
        """Of each row; None where its picture was taken down."""
        self._work, self._number = work, number

    @cached_property
    def tokens(self) -> ShardTokens:
        """The image tokens, read and compared with their digest once somebody looks at them."""
        features = self._work.features
        return ShardTokens(
            features.shard(self._number, verify=True), features.manifest.rows_per_batch
        )

    @cached_property
    def pictures(self) -> Shard:
        """The shard of `pairs`, for a judge that looks at the pictures themselves."""
        return self._work.pairs.shard(self._number, verify=True)


def _check_finite(who: str, uid: bytes, values: Sequence[float]) -> None:
    """Raises ConfigError where what a model says of a picture is no number."""
    if not all(map(math.isfinite, values)):
        raise ConfigError(
            f"picture {uid.hex()}: {who} gives it {values}: its weights are no good, or the tokens"
        )


@contextlib.contextmanager
def _timed(sums: defaultdict[str, float], name: str) -> Iterator[None]:
    """Add the seconds that pass within to a sum."""
    begun = time.perf_counter()
    yield
    sums[name] += time.perf_counter() - begun
