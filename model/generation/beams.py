"""Beam search, whoever gives the scores.

Captions are ranked by their mean score a token, the end among them: transformers' length_penalty 1.
The search of a picture is over when no caption that still runs could get better than those it is to
return, were all the rest of it certain: transformers' early_stopping "never", the exact one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GoOn = Callable[[Tensor, Tensor], Tensor]
"""Which of the rows before each row continues [R], and its next token [R], to logits [R, V]."""

Allowed = Callable[[Tensor, Tensor], Tensor]
"""Log-probabilities [R, V] after what is written [R, T], to scores of what may come next."""


@dataclass(frozen=True)
class Beams:
    """N captions for each of B pictures, with room for T tokens, filled up with the end token."""

    ids: Int[Tensor, "B N T"]
    score: Float[Tensor, "B N"]
    """What ranks them; -inf where there is none."""
    log_probability: Float[Tensor, "B N"]
    """What the logits alone give them, in nats."""

    @staticmethod
    def empty(first: Float[Tensor, "B V"], num: int, num_tokens: int, end: int) -> "Beams":
        """Room for captions that there are not yet."""
        ids = torch.full((len(first), num, num_tokens), end, device=first.device)
        score = first.new_full((len(first), num), -math.inf)
        return Beams(ids, score, torch.zeros_like(score))

    def scored(self, score: Float[Tensor, "B N"]) -> "Beams":
        """The same captions with other scores."""
        return Beams(self.ids, score, self.log_probability)

    def take(self, places: Int[Tensor, "B M"]) -> "Beams":
        """For each picture the captions in these places."""
        ids = self.ids.gather(1, places[:, :, None].expand(-1, -1, self.ids.shape[2]))
        return Beams(ids, self.score.gather(1, places), self.log_probability.gather(1, places))

    def of(self, pictures: Bool[Tensor, " B"]) -> "Beams":
        """The captions of some of the pictures."""
        return Beams(*(value[pictures] for value in vars(self).values()))

    def and_also(self, more: "Beams") -> "Beams":
        """These captions and more for the same pictures."""
        pairs = zip(vars(self).values(), vars(more).values(), strict=True)
        return Beams(*(torch.cat(pair, dim=1) for pair in pairs))

    def best(self, num: int) -> Int[Tensor, "B M"]:
        """Places of the highest scores, the highest first; all where there are fewer."""
        return self.score.topk(min(num, self.score.shape[1]), dim=1).indices

    def written(self) -> list[list[tuple[list[int], float]]]:
        """For each picture the captions that there are: ids, and their log-probability."""
        values = (value.tolist() for value in vars(self).values())
        return [
            [(ids, given) for ids, score, given in zip(*captions, strict=True) if score > -math.inf]
            for captions in zip(*values, strict=True)
        ]


def beam_search(
    first: Float[Tensor, "B V"],
    go_on: GoOn,
    allowed: Allowed,
    *,
    end: int,
    num_tokens: int,
    num_beams: int,
    num_best: int,
) -> list[list[tuple[list[int], float]]]:
    """The best captions of each picture, the best first; pictures that are done leave.

    Args:
        first: logits of the first token.
        go_on: see there; called with num_beams rows a picture (fewer if there are no more).
        allowed: see there; -inf where a token may not come next.
        end: the token that ends a caption.
        num_tokens: at most, the end among them; a caption that gets there is cut off.
        num_beams: captions that run at once.
        num_best: captions to return, at most num_beams.

    Returns:
        Ids, filled up with the end token to num_tokens, and log-probability, of num_best captions
        a picture, or of all if there are no more.
    """
    pictures = torch.arange(len(first), device=first.device)
    running = Beams.empty(first, 1, num_tokens, end)
    running.score.zero_()
    done = Beams.empty(first, num_best, num_tokens, end)
    logits = first
    found: dict[int, list[tuple[list[int], float]]] = {}
    for step in range(num_tokens):
        longer, parents = _longer(running, logits, allowed, step, 2 * num_beams)
        ends = longer.ids[:, :, step] == end
        if step + 1 == num_tokens:
            ends = torch.ones_like(ends)
        # Only the best num_beams may end here; the others are there in place of those that do.
        mean = (longer.score / (step + 1)).masked_fill(~ends, -math.inf)
        mean[:, num_beams:] = -math.inf
        done = done.and_also(longer.scored(mean))
        done = done.take(done.best(num_best))
        longer = longer.scored(longer.score.masked_fill(ends, -math.inf))
        places = longer.best(num_beams)
        rows = _rows(parents.gather(1, places), running.ids.shape[1])
        running = longer.take(places)

        hopeful = running.score[:, 0] / num_tokens > done.score[:, -1]
        found |= zip(pictures[~hopeful].tolist(), done.of(~hopeful).written(), strict=True)
        if not hopeful.any():
            break
        pictures, running, done = pictures[hopeful], running.of(hopeful), done.of(hopeful)
        logits = go_on(rows[hopeful].flatten(), running.ids[:, :, step].flatten())
    return [found[number] for number in range(len(first))]


def _longer(
    running: Beams, logits: Float[Tensor, "R V"], allowed: Allowed, step: int, num: int
) -> tuple[Beams, Int[Tensor, "B M"]]:
    """The best captions that are longer by a token, and which running one each continues."""
    given = logits.log_softmax(dim=1)
    scores = allowed(given, running.ids[:, :, :step].flatten(0, 1))
    scores = (running.score.flatten()[:, None] + scores).view(len(running.ids), -1)
    score, places = scores.topk(min(num, scores.shape[1]), dim=1)
    parents, chosen = places // logits.shape[1], places % logits.shape[1]
    longer = running.take(parents).scored(score)
    longer.ids[:, :, step] = chosen
    longer.log_probability.add_(given.view_as(scores).gather(1, places))
    return longer, parents


def _rows(places: Int[Tensor, "B N"], width: int) -> Int[Tensor, "B N"]:
    """Places in each picture as rows of them all."""
    return places + torch.arange(len(places), device=places.device)[:, None] * width
