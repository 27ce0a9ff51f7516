"""Captions written with what is kept of pictures and text, against all of it anew for each token.

    python benchmarks/generate.py

Stage 1 of BERT-base size with random weights and BERT's vocabulary writes ten nucleus captions of
20 tokens for each of two pictures of 257 x 1408 image tokens, in float32. The uncached form is that
of the reference: the image tokens are repeated for all captions, and for each token the Q-Former
looks at them and reads all of the text again. Both take turns; the ratio is that of the medians.

Both are the same model: greedily they must write the same tokens, and the uncached form must give
the drawn captions the log-probabilities that came with them. The last line is one JSON object.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor

from model.generation.nucleus import draw_nucleus
from model.generation.settings import GenerationConfig
from model.generation.stage1 import Caption, write_captions
from model.qformer import QFormerConfig
from model.stage1 import Stage1
from model.tokenizer import CaptionTokenizer

NUM_PICTURES = 2
NUM_IMAGE_TOKENS, VISION_WIDTH = 257, 1408
NUM_CAPTIONS = 10
NUM_TOKENS = 20
VOCAB_SIZE = 30_523
TOP_P = 0.9
ROUNDS = 3


def random_stage1(dropout: float = 0.1) -> Stage1:
    """Of BERT-base size, with a vocabulary of made-up words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = special + [f"w{number}" for number in range(VOCAB_SIZE - 1 - len(special))]
    vocabulary = {word: number for number, word in enumerate(words)}
    learned = BertWordPieceTokenizer(vocab=vocabulary).to_str()
    config = QFormerConfig(vision_width=VISION_WIDTH, vocab_size=VOCAB_SIZE, dropout=dropout)
    return Stage1(config, CaptionTokenizer.from_json(learned)).eval()


def settings(method: str) -> GenerationConfig:
    """NUM_TOKENS word pieces, no fewer and no more."""
    drawn = method == "nucleus"
    return GenerationConfig(
        method="nucleus" if drawn else "greedy",
        top_p=TOP_P,
        num_captions=NUM_CAPTIONS if drawn else 1,
        min_tokens=NUM_TOKENS + 1,
        max_tokens=NUM_TOKENS + 1,
    )


@torch.inference_mode()
def uncached_logits(stage1: Stage1, tokens: Tensor, ids: Tensor) -> Tensor:
    """Logits of what follows each of `ids` [R, T], with pictures [R, P, C]: all from scratch."""
    _, queries = stage1.qformer.see(stage1.image_keys(tokens))
    logits, _ = stage1.qformer.write(queries, ids, torch.ones_like(ids, dtype=torch.bool))
    return logits


@torch.inference_mode()
def uncached(stage1: Stage1, tokens: Tensor, num: int, draws: Tensor | None) -> Tensor:
    """Captions of the uncached form, `num` a picture, by `draws` [R, T] or greedily; ids [R, T]."""
    tokenizer = stage1.tokenizer
    tokens = tokens.repeat_interleave(num, dim=0)
    ids = torch.full((len(tokens), 1), tokenizer.dec)
    for step in range(NUM_TOKENS):
        scores = uncached_logits(stage1, tokens, ids)[:, -1]
        scores[:, [*tokenizer.unwritten, tokenizer.sep]] = float("-inf")
        chosen = scores.argmax(1) if draws is None else draw_nucleus(scores, draws[:, step], TOP_P)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
    return ids[:, 1:]


def wrong_tokens(stage1: Stage1, tokens: Tensor) -> int:
    """Tokens in which the two forms differ, greedily."""
    ours = [caption.tokens for (caption,) in write_captions(stage1, tokens, settings("greedy"))]
    return int((torch.tensor(ours) != uncached(stage1, tokens, 1, None)).sum())


def largest_error(stage1: Stage1, tokens: Tensor, captions: list[list[Caption]]) -> float:
    """Of the captions' log-probabilities, relative to those that the uncached form gives them."""
    worst = 0.0
    for token, its in zip(tokens, captions, strict=True):
        words = torch.tensor([caption.tokens for caption in its])
        ids = torch.cat([torch.full((len(its), 1), stage1.tokenizer.dec), words[:, :-1]], dim=1)
        logits = uncached_logits(stage1, token.expand(len(its), -1, -1), ids)
        given = logits.double().log_softmax(2).gather(2, words[:, :, None]).sum(dim=(1, 2))
        found = torch.tensor([caption.log_probability for caption in its])
        worst = max(worst, ((found - given) / given).abs().max().item())
    return worst


def timed(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main() -> None:
    torch.manual_seed(0)
    stage1 = random_stage1()
    tokens = torch.randn(NUM_PICTURES, NUM_IMAGE_TOKENS, VISION_WIDTH).half()
    draws = torch.rand(NUM_PICTURES * NUM_CAPTIONS, NUM_TOKENS, dtype=torch.float64)
    config = settings("nucleus")

    differing = wrong_tokens(stage1, tokens)
    error = largest_error(stage1, tokens, write_captions(stage1, tokens, config))
    if differing or error > 1e-4:
        sys.exit(f"the two forms differ: in {differing} tokens, by {error:.1e}")
    times: dict[str, list[float]] = {"uncached": [], "cached": []}
    for number in range(ROUNDS):
        times["cached"].append(timed(lambda: write_captions(stage1, tokens, config)))
        times["uncached"].append(timed(lambda: uncached(stage1, tokens, NUM_CAPTIONS, draws)))
        print(f"round {number + 1}: " + ", ".join(f"{k} {v[-1]:.2f} s" for k, v in times.items()))

    medians = {name: statistics.median(its) for name, its in times.items()}
    num = NUM_PICTURES * NUM_CAPTIONS
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {num} captions a round")
    for name, median in medians.items():
        print(f"{name:9}{median:8.2f} s{num / median:8.2f} captions/s")
    result = {
        "speedup": round(medians["uncached"] / medians["cached"], 2),
        **{f"{name}_s": round(median, 3) for name, median in medians.items()},
        "max_rel_error": error,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
