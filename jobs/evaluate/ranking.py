"""Ranks by ITC and scores by ITM of a split's pictures and captions, spread over Ray's workers.

Each direction has tasks of its own: a worker reads the queries of a few shards and meets the items
of all shards one after the other, so a query's rank and its best candidates are complete where they
are computed, nothing is merged, and no worker holds more than its queries and one shard. For
re-ranking the candidates of both directions are one list of pairs, sorted by picture: a picture is
looked at once, by whichever worker has it, for the texts that found it and those that it found.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from indexes.ranking import Block, Ranking, Right, own_scores, rank, reranked
from indexes.recall import Ranks
from jobs.evaluate.held_out import HeldOut
from jobs.evaluate.workers import Workers
from jobs.shards import Task
from model.checkpoint import Checkpoint
from model.checkpoint_models import load_stage1
from model.reranking import match_scores
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.loader import as_tensor
from pipeline.token_reader import Presence, TokenReader

TIE = 1e-4
"""Match scores so far apart count as equal: float32 says them no more exactly."""
_PAIRS_A_TASK = 4096
_PAIRS_AT_ONCE = {"cpu": 64, "cuda": 256}
"""Pairs that ITM sees together: on a CPU few enough for its caches."""


@dataclass(frozen=True)
class Rankings:
    """What came of both directions by ITC."""

    of_pictures: Ranking
    """Of pictures among captions."""
    of_captions: Ranking
    """Of captions among pictures."""
    owners: np.ndarray
    """int64[M]: the picture of each caption."""

    @property
    def ranks(self) -> Ranks:
        """By ITC alone."""
        return Ranks(self.of_pictures.ranks, self.of_captions.ranks, self.owners)

    @property
    def candidates(self) -> np.ndarray:
        """int64[R, 2]: each pair of a picture and a caption of which one is among the other's
        best, once; sorted."""
        pictures, captions = self._candidates()
        keys = np.unique(np.concatenate([self._keys(*pictures), self._keys(*captions)]))
        return np.stack(np.divmod(keys, len(self.owners)), axis=1)

    def reranked(self, candidates: np.ndarray, logits: np.ndarray) -> Ranks:
        """Ranks by the match logit plus the cosine among the best by ITC.

        Args:
            candidates: as above.
            logits: float64[R], of "matched", of each pair.
        """
        keys = self._keys(*candidates.T)
        found = []
        for ranking, (pictures, captions) in zip(
            (self.of_pictures, self.of_captions), self._candidates(), strict=True
        ):
            is_there = ranking.items >= 0
            scores = np.full(ranking.items.shape, -np.inf)
            places = np.searchsorted(keys, self._keys(pictures, captions))
            scores[is_there] = logits[places] + ranking.scores[is_there]
            is_right = np.zeros_like(is_there)
            is_right[is_there] = self.owners[captions] == pictures
            found.append(reranked(ranking, is_right, scores, TIE))
        return Ranks(found[0], found[1], self.owners)

    def _candidates(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Picture and caption of each candidate of the two directions, row by row."""
        found = []
        for ranking in (self.of_pictures, self.of_captions):
            queries, places = np.nonzero(ranking.items >= 0)
            found.append((queries, ranking.items[queries, places]))
        (pictures, captions), (its_captions, its_pictures) = found
        return [(pictures, captions), (its_pictures, its_captions)]

    def _keys(self, pictures: np.ndarray, captions: np.ndarray) -> np.ndarray:
        return pictures * len(self.owners) + captions


def rank_held_out(held: HeldOut, k: int, workers: Workers) -> Rankings:
    """Rank captions for each picture and pictures for each caption, by ITC.

    Args:
        held: the split.
        k: candidates wanted of each.
        workers: who does it; errors are those of `Workers.all`.
    """
    tasks = []
    for number, group in enumerate(held.groups):
        num_pictures = sum(len(held.rows[shard]) for shard in group)
        num_captions = sum(int(held.counts[shard].sum()) for shard in group)
        tasks += [Task(2 * number, num_pictures), Task(2 * number + 1, num_captions)]
    found = workers.all(partial(_ranker, held, k), tasks, "rank", "queries")
    return Rankings(_joined(found[::2]), _joined(found[1::2]), held.owners)


def _ranker(held: HeldOut, k: int) -> Callable[[Task], Ranking]:
    """Ranks for the pictures of a group of shards, or for its captions where the task is odd."""

    def work(task: Task) -> Ranking:
        number, of_captions = divmod(task.number, 2)
        group = held.groups[number]
        first_picture, pictures = _whole(held.picture_blocks(group))
        first_caption, texts = _whole(held.caption_blocks(group))
        captions = np.arange(len(texts))
        owners = held.owners[first_caption + captions] - first_picture
        own = own_scores(pictures, texts[:, 0], owners)
        if of_captions:
            right = Right(captions, first_picture + owners, own)
            return rank(texts, right, held.picture_blocks(), k)
        right = Right(owners, first_caption + captions, own)
        return rank(pictures, right, held.caption_blocks(), k)

    return work


def _whole(blocks: Iterable[Block]) -> Block:
    """Blocks that follow each other as one."""
    firsts, vectors = zip(*blocks, strict=True)
    return firsts[0], np.concatenate(vectors)


def _joined(found: list[Ranking]) -> Ranking:
    names = ("ranks", "items", "scores")
    return Ranking(*(np.concatenate([getattr(one, name) for one in found]) for name in names))


@dataclass(frozen=True)
class MatchWork:
    """What matches pictures with texts, and where."""

    held: HeldOut
    features: Dataset
    """Beside the embeddings."""
    checkpoint: Checkpoint
    batch_size: int
    """Pictures whose keys and values are in memory at once."""
    device: str


@dataclass(frozen=True, kw_only=True)
class MatchTask(Task):
    """Pairs to match."""

    pairs: np.ndarray
    """int64[R, 2], picture and caption, sorted."""


def match_logits(work: MatchWork, candidates: np.ndarray, workers: Workers) -> np.ndarray:
    """ITM's logit of "matched" of pairs of pictures and captions.

    Args:
        work: see there.
        candidates: int64[R, 2], picture and caption, sorted.
        workers: who does it; errors are those of `Workers.all` too.

    Returns:
        float64[R]

    Raises:
        ConfigError: a picture has no image tokens.
    """
    _check_tokens(work)
    tasks = [
        MatchTask(number=number, rows=len(part), pairs=part)
        for number, part in enumerate(_parts(candidates))
    ]
    found = workers.all(partial(_Matcher, work), tasks, "rerank", "pairs")
    return np.concatenate([np.zeros(0), *found])


def _check_tokens(work: MatchWork) -> None:
    presence = Presence(work.features)
    for number, rows in work.held.rows.items():
        if not presence(number)[rows].all():
            raise ConfigError(
                f"{work.features.folder}: other pictures were taken down than embedded"
            )


def _parts(pairs: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs in parts for workers; those of one picture stay together."""
    begin = 0
    for end in [*(np.flatnonzero(np.diff(pairs[:, 0])) + 1).tolist(), len(pairs)]:
        if end - begin >= _PAIRS_A_TASK or begin < end == len(pairs):
            yield pairs[begin:end]
            begin = end


class _Matcher:
    """Loads the model and the texts once, then matches pairs."""

    def __init__(self, work: MatchWork) -> None:
        self._work = work
        self._stage1 = load_stage1(work.checkpoint, work.device)
        self._tokens = TokenReader(work.features)
        self._texts = work.held.caption_texts()

    def __call__(self, task: MatchTask) -> np.ndarray:
        pictures, starts = np.unique(task.pairs[:, 0], return_index=True)
        places = self._work.held.places(pictures)
        captions = np.split(task.pairs[:, 1], starts[1:])
        found, at_once = [], self._work.batch_size
        pairs_at_once = _PAIRS_AT_ONCE[self._work.device]
        for begin in range(0, len(pictures), at_once):
            some = slice(begin, begin + at_once)
            tokens = as_tensor(self._tokens.read(places[some]))
            texts = [[self._texts[one] for one in its.tolist()] for its in captions[some]]
            found += match_scores(self._stage1, tokens, texts, pairs_at_once=pairs_at_once)
        return np.concatenate(found)
