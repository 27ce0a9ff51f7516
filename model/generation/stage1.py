"""Captions out of stage 1's caption head: beam search, nucleus sampling, greedy.

A picture is looked at once, and [DEC] is read once, for all its captions; from there on each token
is read once, for what is kept of the queries and of the text before it stays (`QFormer.write`).
Captions that have ended leave the batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float, Float64, Int, Shaped
from torch import Tensor

from model.generation.beams import beam_search
from model.generation.nucleus import draw_nucleus
from model.generation.settings import GenerationConfig
from model.stage1 import Stage1
from model.tokenizer import CaptionTokenizer
from pipeline.errors import ConfigError

Generators = torch.Generator | Sequence[torch.Generator]
"""Of the draws, on the CPU: one for all pictures in turn, or one for each picture."""


@dataclass(frozen=True)
class Caption:
    """A caption that was written."""

    text: str
    tokens: tuple[int, ...]
    """Its word pieces, without [DEC] and [SEP]."""
    log_probability: float
    """Of its tokens, [SEP] among them if it ended, in nats: what the model gives them, before the
    repetition penalty, the nucleus and what is forbidden."""
    ended: bool
    """By [SEP]; otherwise it was cut off at max_tokens."""


@torch.inference_mode()
def write_captions(
    stage1: Stage1,
    tokens: Float[Tensor, "B P C"],
    config: GenerationConfig,
    generator: Generators | None = None,
) -> list[list[Caption]]:
    """Captions of each picture.

    What a picture gets depends on its tokens and its draws alone, not on its neighbours. Its draws
    are num_captions times max_tokens - 1 numbers, however long its captions get: one generator
    gives them to the pictures in turn, whatever the batches; with one for each picture, their order
    is free too.

    Beam search ranks by the mean log-probability of a caption's tokens, [SEP] among them, with the
    repetition penalty (`model.generation.beams`).

    Args:
        stage1: in eval mode.
        tokens: image tokens as cached.
        config: see there.
        generator: of nucleus sampling; None makes one from the seed in `config`.

    Returns:
        For each picture num_captions captions: of a beam search the best first (and fewer if
        there are no more), of draws in their order.

    Raises:
        ConfigError: there are not so many positions.
        ValueError: generators and pictures differ in number.
    """
    if config.max_tokens > stage1.config.max_positions:
        raise ConfigError(
            f"max_tokens: {config.max_tokens}, but max_positions={stage1.config.max_positions}"
        )
    if not len(tokens):
        return []
    writer = _Writer(stage1, tokens)
    if config.method == "nucleus":
        draws = _draws(generator, len(tokens), config).to(tokens.device)
        return _follow(writer, config, draws)
    if config.method == "greedy" or config.num_beams == 1:
        return _follow(writer, config, None)
    found = beam_search(
        writer.first,
        writer.take_and_read,
        lambda scores, written: _allowed(scores, written, config, writer.tokenizer),
        end=writer.tokenizer.sep,
        num_tokens=config.max_tokens - 1,
        num_beams=config.num_beams,
        num_best=config.num_captions,
    )
    return [[writer.caption(*best) for best in captions] for captions in found]


class _Writer:
    """Captions being written, one a row: what is kept of their pictures and of their tokens."""

    def __init__(self, stage1: Stage1, tokens: Float[Tensor, "B P C"]) -> None:
        self.tokenizer = stage1.tokenizer
        self._qformer = stage1.qformer
        _, self._past = stage1.qformer.see(stage1.image_keys(tokens))
        self._length = 0
        start = torch.full((len(tokens),), self.tokenizer.dec, device=tokens.device)
        self.first = self.read(start)
        """Logits of the first token of each picture, [B V]."""

    def take(self, rows: Shaped[Tensor, " R"]) -> None:
        """Go on with these rows in this order, by number or by mask; one may be named often."""
        self._past = [(keys[rows], values[rows]) for keys, values in self._past]

    def read(self, ids: Int[Tensor, " R"]) -> Float[Tensor, "R V"]:
        """Each row goes on by a token; logits of the next."""
        self._length += 1
        present = torch.ones(len(ids), self._length, dtype=torch.bool, device=ids.device)
        logits, self._past = self._qformer.write(self._past, ids[:, None], present)
        return logits[:, -1].float()

    def take_and_read(self, rows: Int[Tensor, " R"], ids: Int[Tensor, " R"]) -> Tensor:
        """Both, as a search needs it."""
        self.take(rows)
        return self.read(ids)

    def caption(self, ids: list[int], log_probability: float) -> Caption:
        """A row that is finished; the first [SEP] ends it."""
        ended = self.tokenizer.sep in ids
        words = ids[: ids.index(self.tokenizer.sep)] if ended else ids
        return Caption(self.tokenizer.decode(words), tuple(words), log_probability, ended)


def _allowed(
    scores: Float[Tensor, "R V"],
    written: Int[Tensor, "R T"],
    config: GenerationConfig,
    tokenizer: CaptionTokenizer,
) -> Float[Tensor, "R V"]:
    """Scores with the repetition penalty, and -inf where a token may not come next.

    As in transformers, the scores are logits where tokens are chosen one by one. In beam search
    they are log-probabilities, of which what is forbidden keeps its share: a caption that the model
    would end, but that may not end yet, does not rise by that. transformers penalises the start
    token too, which makes no difference, for no caption holds another [DEC].
    """
    if config.repetition_penalty != 1:
        again, penalty = scores.gather(1, written), config.repetition_penalty
        again = torch.where(again < 0, again * penalty, again / penalty)
        scores = scores.scatter(1, written, again)
    never = list(tokenizer.unwritten)
    if 1 + written.shape[1] < config.min_tokens:
        never.append(tokenizer.sep)
    return scores.index_fill(1, torch.tensor(never, device=scores.device), -math.inf)


def _follow(
    writer: _Writer, config: GenerationConfig, draws: Float64[Tensor, "B N T"] | None
) -> list[list[Caption]]:
    """Each caption goes its own way, by its draws or by the most probable token."""
    num, num_tokens = config.num_captions, config.max_tokens - 1
    pictures = torch.arange(len(writer.first), device=writer.first.device)
    pictures = pictures.repeat_interleave(num)
    writer.take(pictures)
    logits = writer.first[pictures]
    ids = torch.full((len(logits), num_tokens), writer.tokenizer.sep, device=logits.device)
    log_probability = torch.zeros_like(logits[:, 0])
    rows = torch.arange(len(logits), device=logits.device)  # of `ids`: those that go on
    for step in range(num_tokens):
        scores = _allowed(logits, ids[rows, :step], config, writer.tokenizer)
        if draws is None:
            chosen = scores.argmax(dim=1)
        else:
            chosen = draw_nucleus(scores, draws.flatten(0, 1)[rows, step], config.top_p)
        ids[rows, step] = chosen
        log_probability[rows] += logits.log_softmax(dim=1).gather(1, chosen[:, None])[:, 0]
        goes_on = chosen != writer.tokenizer.sep
        if step + 1 == num_tokens or not goes_on.any():
            break
        if not goes_on.all():
            writer.take(goes_on)
            rows, chosen = rows[goes_on], chosen[goes_on]
        logits = writer.read(chosen)
    written = map(writer.caption, ids.tolist(), log_probability.tolist())
    return [list(islice(written, num)) for _ in writer.first]


def _draws(
    generator: Generators | None, num_pictures: int, config: GenerationConfig
) -> Float64[Tensor, "B N T"]:
    """Numbers in [0, 1) for all that the captions could need, so that none depends on another."""
    if generator is None:
        generator = torch.Generator().manual_seed(config.seed)
    if isinstance(generator, torch.Generator):
        generator = [generator] * num_pictures
    if len(generator) != num_pictures:
        raise ValueError(f"{len(generator)} generators for {num_pictures} pictures")
    shape = (config.num_captions, config.max_tokens - 1)
    return torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in generator])
