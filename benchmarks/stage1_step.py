"""Times a step of stage 1 beside the reference shape and beside the machine's peak.

    python benchmarks/stage1_step.py [--batch-size N] [--rounds N] [--no-encoder] [--compile]
                                    [--keep-memory]

Both compute the same three losses and gradients of one BERT-base Q-Former on 257 x 1408 tokens,
forward and backward, dropout off, attention by scaled_dot_product_attention.

reference   as LAVIS has it: a pass each for ITC's pictures, ITC's texts, ITM and ITG, texts
            padded to 32 tokens, keys and values of the pictures computed in each pass that needs
            them, and a gradient through the tokens to ln_vision.
ours        `model.stage1`.

They run in turn, each once unmeasured before it is measured, and the median over the rounds counts.
PyTorch manages memory as it comes; with --keep-memory both run with `jobs.malloc`, which helps
whoever has larger tensors most: the reference. What concerns our step alone, its share of the peak
and what the encoder would add to it, is measured after that with `jobs.malloc`, as `viaduct
train-stage1` runs. The peak is the median of large float32 matrix products between the steps; the
encoder's time is measured on two pictures and scaled. The last line is one JSON object.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F  # noqa: N812
from generate import random_stage1
from torch import Tensor
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from jobs.malloc import keep_memory
from model.itc import contrastive_loss, same_pairs, similarity
from model.itm import draw_negatives, match_loss
from model.layers import Attention
from model.objectives import ObjectivesConfig
from model.stage1 import Stage1, Stage1Batch

NUM_TOKENS, PADDED_TO = 257, 32
ENCODER = "eva_giant_patch14_clip_224"
CAPTION_TOKENS = (10, 11, 12, 12, 12, 13, 13, 13, 14, 14, 14, 15, 15, 16, 17, 21)
"""[CLS] and [SEP] included: the 16-quantiles of 255 captions of COCO 2017 (mean 14.1)."""
OBJECTIVES = ObjectivesConfig()
LARGEST_ERROR = 1e-4
"""Relative, of the loss and of each gradient, between the two forms."""


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""PyTorch counts the operations of attention on a GPU alone; masked positions count as computed."""


class Reference:
    """The four passes of the reference shape, over the weights of a `Stage1`."""

    def __init__(self, stage1: Stage1) -> None:
        self.stage1 = stage1
        # Of a module's parts that may be missing, or be anything, the ones that are there.
        self._layers: list[Any] = list(stage1.qformer.layers)
        self._head: Any = stage1.qformer.head
        self._words: Any = stage1.qformer.embeddings.words
        self._positions: Any = stage1.qformer.embeddings.positions

    def losses(self, batch: Stage1Batch, uniform: Tensor) -> Tensor:
        """ITC + ITM + ITG of one rank."""
        stage1, size = self.stage1, len(batch.picture)
        dec, temperature = stage1.tokenizer.dec, stage1.temperature
        ids, present = (padded(x) for x in (batch.texts.ids, batch.texts.present))
        tokens = stage1.ln_vision(batch.tokens.float())

        queries, kept = self._pass(queries=size, tokens=tokens)
        text, _ = self._pass(ids=ids, mask=present[:, None, None, :])
        image = F.normalize(stage1.vision_proj(queries), dim=-1)
        words = F.normalize(stage1.text_proj(text[:, 0]), dim=-1)
        sim = similarity(image, words) / temperature
        keys = {"all_picture": batch.picture, "all_caption": batch.caption}
        same = same_pairs(batch.picture, batch.caption, **keys)
        itc = sum(contrastive_loss(s, same, first=0)[0] for s in (sim, sim.T)) / 2

        pictures, texts = (
            draw_negatives(s.detach(), same, hardness=1.0, uniform=u)[0]
            for s, u in zip((sim.T, sim), uniform, strict=True)
        )
        their_ids, there = (torch.cat([x, x, x[texts]]) for x in (ids, present))
        everyone = torch.cat([there.new_ones(3 * size, queries.shape[1]), there], dim=1)
        both, _ = self._pass(
            queries=3 * size,
            tokens=torch.cat([tokens, tokens[pictures], tokens]),
            ids=their_ids,
            mask=everyone[:, None, None, :],
        )
        logits = stage1.itm_head(both[:, : queries.shape[1]]).mean(dim=1)
        labels = torch.tensor([1] * size + [0] * 2 * size)
        total, _, count = match_loss(logits, labels, torch.ones(3 * size, dtype=torch.bool))

        written = torch.cat([torch.full_like(ids[:, :1], dec), ids[:, 1:]], dim=1)
        seen = torch.cat([present.new_ones(size, queries.shape[1]), present], dim=1)
        earlier = seen.new_ones(PADDED_TO, seen.shape[1]).tril(queries.shape[1])
        mask = seen[:, None, None, :] & earlier
        after, _ = self._pass(ids=written, mask=mask, past=kept)
        rows = self._head.norm(F.gelu(self._head.dense(after)))
        scores = F.linear(rows, self._words.weight, self._head.bias)
        targets = torch.cat(
            [ids[:, 1:].masked_fill(~present[:, 1:], -100), ids[:, :1] * 0 - 100], 1
        )
        itg = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), label_smoothing=0.1)
        return itc + total / count + itg

    def _pass(
        self,
        *,
        queries: int = 0,
        tokens: Tensor | None = None,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        past: list[tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """All layers over [queries; text], padding and all."""
        qformer = self.stage1.qformer
        parts = [qformer.query_tokens.expand(queries, -1, -1)] if queries else []
        if ids is not None:
            places = torch.arange(ids.shape[1])
            parts.append(self._words(ids) + self._positions(places))
        hidden = qformer.embeddings.norm(torch.cat(parts, dim=1))
        num = qformer.config.num_queries if queries else 0
        kept = []
        for number, layer in enumerate(self._layers):
            before = None if past is None else past[number]
            hidden, its = attend(layer.attention, hidden, hidden, mask, before)
            kept.append(its)
            rows = []
            if num:
                seeing = hidden[:, :num]
                if layer.look is not None and tokens is not None:
                    seeing, _ = attend(layer.look, seeing, tokens)
                rows.append(layer.query_feed_forward(seeing))
            if ids is not None:
                rows.append(layer.text_feed_forward(hidden[:, num:]))
            hidden = torch.cat(rows, dim=1)
        return hidden, kept


def attend(
    part: Attention,
    rows: Tensor,
    source: Tensor,
    mask: Tensor | None = None,
    past: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Attention of BERT over padded sequences; also its keys and values."""
    query, keys, values = (
        x.unflatten(-1, (part.num_heads, -1)).transpose(1, 2)
        for x in (part.query(rows), part.key(source), part.value(source))
    )
    its = keys, values
    if past is not None:
        keys, values = (torch.cat(both, dim=2) for both in zip(past, its, strict=True))
    attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
    return part.norm(rows + part.output(attended.transpose(1, 2).flatten(2))), its


def padded(values: Tensor) -> Tensor:
    return F.pad(values, (0, PADDED_TO - values.shape[1]))


def make_pairs(stage1: Stage1, num_pairs: int) -> Stage1Batch:
    """Pictures of noise, with captions as long as COCO's."""
    draws = torch.Generator().manual_seed(1)
    tokens = torch.randn(num_pairs, NUM_TOKENS, stage1.config.vision_width, generator=draws).half()
    lengths = [CAPTION_TOKENS[n % len(CAPTION_TOKENS)] - 2 for n in range(num_pairs)]
    words = [torch.randint(1000, 30_000, (n,), generator=draws).tolist() for n in lengths]
    keys = torch.arange(num_pairs)
    return stage1.batch(tokens, [" ".join(f"w{w}" for w in its) for its in words], keys, keys)


def step(stage1: Stage1, loss: Callable[[], Tensor]) -> float:
    """Seconds of forward and backward."""
    stage1.zero_grad(set_to_none=True)
    begun = time.monotonic()
    loss().backward()
    return time.monotonic() - begun


def gradients(stage1: Stage1, loss: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and a copy of its gradients."""
    stage1.zero_grad(set_to_none=True)
    found = loss()
    found.backward()
    named = stage1.named_parameters()
    return found.detach(), {n: p.grad.clone() for n, p in named if p.grad is not None}


def product_gflops(size: int = 4096, times: int = 5) -> list[float]:
    """GFLOP/s of a square float32 matrix product, some times."""
    left, right, out = (torch.randn(size, size) for _ in range(3))
    rates = []
    for _ in range(times):
        begun = time.monotonic()
        torch.mm(left, right, out=out)
        rates.append(2 * size**3 / (time.monotonic() - begun) / 1e9)
    return rates


@torch.inference_mode()
def encoder_seconds() -> float:
    """Of the frozen encoder, a picture, forward."""
    encoder = timm.create_model(ENCODER, pretrained=False).eval()
    pictures = torch.randn(2, 3, 224, 224)
    begun = time.monotonic()
    encoder.forward_features(pictures)
    return (time.monotonic() - begun) / len(pictures)


def largest_difference(
    theirs: tuple[Tensor, dict[str, Tensor]], ours: tuple[Tensor, dict[str, Tensor]]
) -> float:
    """Of the loss and of any gradient, relative; a gradient that is but rounding counts little."""
    (their_loss, their_grads), (our_loss, our_grads) = theirs, ours
    longest = max(grad.norm() for grad in their_grads.values())
    found = [abs(our_loss / their_loss - 1)]
    for name, grad in their_grads.items():
        found.append((our_grads[name] - grad).norm() / (grad.norm() + 1e-4 * longest))
    return max(found).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-encoder", action="store_true", help="leave the encoder out")
    parser.add_argument("--compile", action="store_true", help="ours with torch.compile")
    parser.add_argument("--keep-memory", action="store_true", help="both as training does")
    arguments = parser.parse_args()
    begun = time.monotonic()
    if arguments.keep_memory:
        keep_memory()

    torch.manual_seed(0)
    stage1 = random_stage1(dropout=0.0).train()
    batch = make_pairs(stage1, arguments.batch_size)
    uniform = torch.rand(2, arguments.batch_size, dtype=torch.float64)
    shapes: dict[str, Callable[[], Tensor]] = {
        "reference": lambda: Reference(stage1).losses(batch, uniform),
        "ours": lambda: stage1(batch, OBJECTIVES, 1.0, uniform)["loss"],
    }
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        step(stage1, shapes["ours"])
    gflop = counter.get_total_flops() / 1e9
    if arguments.compile:
        stage1.qformer.compile_layers()
    error = largest_difference(*(gradients(stage1, loss) for loss in shapes.values()))
    if error > LARGEST_ERROR:
        sys.exit(f"losses or gradients differ by {error:.2g}, more than {LARGEST_ERROR}")
    seconds: dict[str, list[float]] = {name: [] for name in shapes}
    products: list[float] = []
    for number in range(arguments.rounds):
        for name, loss in shapes.items():
            step(stage1, loss)  # in training, too, a step finds memory as one of its kind left it
            products += product_gflops()
            seconds[name].append(step(stage1, loss))
            print(f"round {number + 1} {name}: {seconds[name][-1]:.2f} s", flush=True)
    medians = {name: statistics.median(its) for name, its in seconds.items()}
    keep_memory()
    step(stage1, shapes["ours"])
    trained = []
    for _ in range(arguments.rounds):
        products += product_gflops()
        trained.append(step(stage1, shapes["ours"]))
        print(f"ours as in training: {trained[-1]:.2f} s", flush=True)
    as_trained = statistics.median(trained)
    rate, peak = gflop / as_trained, statistics.median(products)
    result: dict[str, Any] = {
        "speedup": round(medians["reference"] / medians["ours"], 3),
        "peak_share": round(rate / peak, 3),
        "max_rel_error": float(f"{error:.2g}"),
    }
    print(
        f"captions of {len(batch.texts.places) / arguments.batch_size:.1f} tokens; "
        f"{gflop / arguments.batch_size:.0f} GFLOP a pair, {rate:.0f} of {peak:.0f} GFLOP/s "
        f"(the fastest product: {max(products):.0f})"
    )
    if not arguments.no_encoder:
        with_encoder = as_trained + arguments.batch_size * encoder_seconds()
        result["speedup_with_encoder"] = round(with_encoder / as_trained, 3)
    print(f"PyTorch {torch.__version__}; {time.monotonic() - begun:.0f} s in all")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
