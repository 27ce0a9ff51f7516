"""The Q-Former: its size, who sees whom, and that it is the model others know."""

import math

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from model.itg import to_write
from model.packing import Repeated, Texts
from model.qformer import QFormer, QFormerConfig, Seen
from model.stage1 import Stage1
from model.start import StartConfig, start_stage1
from pipeline.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def scattered(module: nn.Module, seed: int = 0) -> nn.Module:
    """In float64, with weights large enough, biases and norms too, for every part to matter."""
    generator = torch.Generator().manual_seed(seed)
    module.double().eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.empty_like(parameter).normal_(0, 0.3, generator=generator)
            is_scale = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + noise if is_scale else noise)
    return module


NORM = scattered(nn.LayerNorm(10), seed=4)
"""Stands for ln_vision."""


@pytest.fixture
def qformer(tiny) -> QFormer:
    return scattered(QFormer(tiny()))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(3, 7, 10, generator=torch.Generator().manual_seed(1)).double()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(5, 40, (3, 6), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def present() -> Tensor:
    return torch.arange(6) < torch.tensor([6, 3, 5])[:, None]


# Size and start


@pytest.mark.parametrize(("width", "num"), [(1408, 186_705_470), (1024, 183_165_758)])
def test_stage_1_is_as_large_as_the_papers(tokenizer, width, num):
    with torch.device("meta"):
        stage1 = Stage1(QFormerConfig(vision_width=width), tokenizer)
    assert count(stage1) == num
    assert all(p.requires_grad for p in stage1.parameters())


def test_the_queries_side_is_as_large_as_the_papers():
    with torch.device("meta"):
        qformer = QFormer(QFormerConfig(vision_width=1408), with_text=False)
        assert count(qformer) + count(nn.LayerNorm(1408)) == 105_165_056
    assert not any("text" in name or "word" in name for name, _ in qformer.named_parameters())


@pytest.mark.parametrize(("every", "looking"), [(1, [0, 1, 2, 3]), (2, [0, 2]), (3, [0, 3])])
def test_every_nth_layer_looks_at_the_picture(tiny, every, looking):
    qformer = QFormer(tiny(num_layers=4, cross_attention_every=every))
    assert [n for n, layer in enumerate(qformer.layers) if layer.look is not None] == looking


def test_weights_start_as_in_bert():
    torch.manual_seed(0)
    qformer = QFormer(QFormerConfig(vision_width=64, vocab_size=500, num_layers=1))
    assert qformer.query_tokens.shape == (1, 32, 768)
    for name, parameter in qformer.named_parameters():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:  # queries, embeddings, cross-attention and all other matrices
            assert parameter.mean().abs() < 5 * 0.02 / math.sqrt(parameter.numel()), name
            assert parameter.std().item() == pytest.approx(0.02, rel=0.03), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "width: 24 is no multiple of num_heads=5"),
        ({"vision_width": 0}, "vision_width: 0 is not positive"),
        ({"dropout": 1.0}, r"dropout: 1\.0 is not in"),
        ({"dropout": -0.1}, r"dropout: -0\.1 is not in"),
        ({"max_text_tokens": 25}, r"max_text_tokens: 25.* max_positions=24"),
    ],
)
def test_a_size_that_cannot_be_is_named(tiny, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)


# Who sees whom


def plain_attention(part, rows: Tensor, source: Tensor, seen: Tensor) -> Tensor:
    """One head after the other, softmax written out; `seen` [B, R, S] is true where it may look."""
    width = rows.shape[-1] // part.num_heads
    query, key, value = part.query(rows), part.key(source), part.value(source)
    heads = []
    for start in range(0, rows.shape[-1], width):
        q, k, v = (x[..., start : start + width] for x in (query, key, value))
        weights = (q @ k.mT / math.sqrt(width)).masked_fill(~seen, -torch.inf).exp()
        heads.append(weights / weights.sum(-1, keepdim=True) @ v)
    return part.norm(rows + part.output(torch.cat(heads, -1)))


def plain_feed_forward(net, rows: Tensor) -> Tensor:
    up = net.up(rows)
    return net.norm(rows + net.down(up * (1 + torch.erf(up / math.sqrt(2))) / 2))


def plain(qformer: QFormer, tokens: Tensor, ids: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Query and text outputs of one pass over [queries; text]; `seen` [B, Q + T, Q + T]."""
    num_queries = qformer.config.num_queries
    embeddings = qformer.embeddings
    text = embeddings.words.weight[ids] + embeddings.positions.weight[: ids.shape[1]]
    queries = qformer.query_tokens.repeat(len(ids), 1, 1)
    hidden = embeddings.norm(torch.cat([queries, text], dim=1))
    tokens = NORM(tokens)
    whole = torch.ones(len(ids), num_queries, tokens.shape[1], dtype=torch.bool)
    for number, layer in enumerate(qformer.layers):
        hidden = plain_attention(layer.attention, hidden, hidden, seen)
        queries, text = hidden[:, :num_queries], hidden[:, num_queries:]
        if number % qformer.config.cross_attention_every == 0:
            queries = plain_attention(layer.look, queries, tokens, whole)
        queries = plain_feed_forward(layer.query_feed_forward, queries)
        hidden = torch.cat([queries, plain_feed_forward(layer.text_feed_forward, text)], dim=1)
    return hidden[:, :num_queries], hidden[:, num_queries:]


def plain_scores(qformer: QFormer, text: Tensor) -> Tensor:
    up = qformer.head.dense(text)
    hidden = qformer.head.norm(up * (1 + torch.erf(up / math.sqrt(2))) / 2)
    return hidden @ qformer.embeddings.words.weight.T + qformer.head.bias


def blocks(present: Tensor, *, text_to_queries: bool, queries_to_text: bool, causal: bool):
    """Who may see whom in [4 queries; text], padding apart."""
    num_pairs, num_tokens = present.shape
    seen = torch.ones(num_pairs, 4 + num_tokens, 4 + num_tokens, dtype=torch.bool)
    seen[:, :4, 4:] = queries_to_text
    seen[:, 4:, :4] = text_to_queries
    if causal:
        seen[:, 4:, 4:] = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()
    seen[:, :, 4:] &= present[:, None]
    return seen


@torch.no_grad()
def test_see_and_read_apart_are_one_pass_in_which_neither_sees_the_other(
    qformer, tokens, ids, present
):
    seen = blocks(present, text_to_queries=False, queries_to_text=False, causal=False)
    queries, text = plain(qformer, tokens, ids, seen)
    torch.testing.assert_close(qformer.see(qformer.image_keys(tokens, NORM))[0], queries)
    torch.testing.assert_close(qformer.read(Texts.packed(ids, present)), text[present])


@torch.no_grad()
def test_see_and_read_together_are_one_pass_in_which_all_see_all(qformer, tokens, ids, present):
    seen = blocks(present, text_to_queries=True, queries_to_text=True, causal=False)
    queries, _ = plain(qformer, tokens, ids, seen)
    both = qformer.see_and_read(
        [Seen(qformer.image_keys(tokens, NORM))], Texts.packed(ids, present)
    )
    torch.testing.assert_close(both, queries)


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_texts_that_are_equal_are_read_as_each_alone(tiny, ids, present, num_layers, padding):
    """Also where their padding is kept, since nobody knows how long they are."""
    qformer = scattered(QFormer(tiny(num_layers=num_layers)))
    which = torch.tensor([2, 0, 0, 1, 2])
    distinct, read = Texts.packed(ids, present), Texts.packed(ids[which], present[which])
    kept = read.widened(6 + padding)
    kept = Texts(kept.ids, kept.present, torch.arange(kept.ids.numel())) if padding else read
    tokens = torch.randn(5, 7, 10, generator=torch.Generator().manual_seed(1)).double()
    found = []
    for texts, repeated in ((read, None), (kept, Repeated(distinct, which))):
        qformer.zero_grad()
        images = [Seen(qformer.image_keys(tokens, NORM))]
        outputs = qformer.see_and_read(images, texts, repeated)
        outputs.pow(3).sum().backward()
        slopes = {
            name: p.grad.to_dense() for name, p in qformer.named_parameters() if p.grad is not None
        }
        found.append((outputs, slopes))
    torch.testing.assert_close(*found)


@torch.no_grad()
def test_write_is_one_pass_in_which_text_sees_the_queries_and_the_text_before(
    qformer, tokens, ids, present
):
    seen = blocks(present, text_to_queries=True, queries_to_text=False, causal=True)
    queries, text = plain(qformer, tokens, ids, seen)
    outputs, kept = qformer.see(qformer.image_keys(tokens, NORM))
    torch.testing.assert_close(outputs, queries)
    scores, _ = qformer.write(kept, ids, present)
    torch.testing.assert_close(scores[present], plain_scores(qformer, text)[present])


@torch.no_grad()
def test_one_pass_sees_reads_and_writes_as_each_alone(qformer, tokens, ids, present):
    image, texts = qformer.image_keys(tokens, NORM), Texts.packed(ids, present)
    written, targets = to_write(ids, present, dec=39)
    assert len(targets) == 11
    outputs, kept = qformer.see(image)
    first = qformer.read(texts)[texts.first]
    scores, _ = qformer.write(kept, written.ids, present)
    found = qformer.see_read_and_write(image, texts, written)
    torch.testing.assert_close(found[0], outputs)
    torch.testing.assert_close(found[1], first)
    torch.testing.assert_close(qformer.scores(found[2]), scores[written.present])
    without = qformer.see_read_and_write(image, texts)
    torch.testing.assert_close(without[0], outputs)
    torch.testing.assert_close(without[1], first)
    assert without[2] is None


@torch.no_grad()
@pytest.mark.parametrize("num_layers", [2, 3])  # the last looks at the picture, or does not
def test_one_pass_sees_and_writes_as_both_alone(tiny, tokens, ids, present, num_layers):
    qformer = scattered(QFormer(tiny(num_layers=num_layers)))
    written, _ = to_write(ids, present, dec=39)
    _, kept = qformer.see(qformer.image_keys(tokens, NORM))
    scores, _ = qformer.write(kept, written.ids, present)
    image = qformer.image_keys(tokens, NORM, last=False)
    assert len(image) == 1
    rows = qformer.see_and_write(image, written)
    torch.testing.assert_close(qformer.scores(rows), scores[written.present])


@torch.no_grad()
def test_changing_the_text_changes_no_query_output(qformer, tokens, ids, present):
    """Nor scores of what is written before it; in the one pass, to the last bit."""
    image = qformer.image_keys(tokens, NORM)

    def one_pass(read: Tensor, write: Tensor):
        written, _ = to_write(write, present, dec=39)
        seen, first, rows = qformer.see_read_and_write(image, Texts.packed(read, present), written)
        return (seen, first, qformer.scores(rows)), written

    (queries, first, scores), written = one_pass(ids, ids)
    without, _, _ = qformer.see_read_and_write(image, Texts.packed(ids, present))
    changed = (ids + 1) % 38
    (others, other_first, other_scores), _ = one_pass(changed, changed)
    assert torch.equal(others, queries)
    without_other, _, _ = qformer.see_read_and_write(image, Texts.packed(changed, present))
    assert torch.equal(without_other, without)
    assert ((other_first - first).abs().amax(dim=1) > 1e-6).all()
    assert ((other_scores - scores).abs().amax(dim=1) > 1e-6)[written.position > 0].all()
    # What is read and what is written do not see each other.
    (others, other_first, other_scores), _ = one_pass(changed, ids)
    assert torch.equal(others, queries)
    assert torch.equal(other_scores, scores)
    assert ((other_first - first).abs().amax(dim=1) > 1e-6).all()
    for place in range(1, 6):
        later = ids.clone()
        later[:, place] = changed[:, place]
        (others, other_first, other_scores), _ = one_pass(ids, later)
        assert torch.equal(others, queries)
        assert torch.equal(other_first, first)
        earlier = written.position < place
        # A text that has no such token does not change at all; nobody writes its last one.
        same = earlier | (place >= written.present.sum(dim=1))[written.text]
        assert torch.equal(other_scores[same], scores[same])
        assert ((other_scores - scores).abs().amax(dim=1) > 1e-6)[~same].all()
        assert earlier.any()


@torch.no_grad()
@pytest.mark.parametrize("steps", [[1] * 6, [4, 2], [3, 1, 2]])
def test_writing_in_steps_is_writing_at_once(qformer, tokens, ids, present, steps):
    _, past = qformer.see(qformer.image_keys(tokens, NORM))
    at_once, whole_past = qformer.write(past, ids, present)
    parts, done = [], 0
    for num in steps:
        stop = done + num
        scores, past = qformer.write(past, ids[:, done:stop], present[:, :stop])
        parts.append(scores)
        done = stop
    torch.testing.assert_close(torch.cat(parts, dim=1)[present], at_once[present])
    assert past[0][0].shape == whole_past[0][0].shape == (3, 4 + 6, 24)


@torch.no_grad()
def test_a_token_sees_nothing_that_comes_after_it(qformer, tokens, ids):
    _, kept = qformer.see(qformer.image_keys(tokens, NORM))
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    before, _ = qformer.write(kept, ids, everywhere)
    for place in range(6):
        changed = ids.clone()
        changed[:, place] = (changed[:, place] + 1) % 40
        after, _ = qformer.write(kept, changed, everywhere)
        assert torch.equal(after[:, :place], before[:, :place])
        assert ((after[:, place:] - before[:, place:]).abs().amax(dim=2) > 1e-6).all()


@torch.no_grad()
def test_padding_changes_nothing(qformer, tokens, ids, present):
    wide = torch.cat([ids, torch.full((3, 5), 7)], dim=1).masked_fill(
        ~nn.functional.pad(present, (0, 5)), 9
    )
    image = qformer.image_keys(tokens, NORM)
    _, kept = qformer.see(image)
    more = nn.functional.pad(present, (0, 5))
    torch.testing.assert_close(
        qformer.read(Texts.packed(wide, more)), qformer.read(Texts.packed(ids, present))
    )
    everywhere = Texts(wide, more, torch.arange(wide.numel()))  # as on a GPU
    found = qformer.read(everywhere)[more.flatten()]
    torch.testing.assert_close(found, qformer.read(Texts.packed(ids, present)))
    torch.testing.assert_close(
        qformer.see_and_read([Seen(image)], Texts.packed(wide, more)),
        qformer.see_and_read([Seen(image)], Texts.packed(ids, present)),
    )
    torch.testing.assert_close(
        qformer.write(kept, wide, more)[0][more], qformer.write(kept, ids, present)[0][present]
    )


@torch.no_grad()
def test_writing_goes_on_after_padding_that_it_does_not_see(qformer, tokens, ids, present):
    _, kept = qformer.see(qformer.image_keys(tokens, NORM))
    there = present.clone()
    there[:, 5] = True  # what is written after the padding of shorter prompts
    before, _ = qformer.write(kept, ids, there)
    after, _ = qformer.write(kept, ids.masked_fill(~there, 9), there)
    torch.testing.assert_close(after[:, 5], before[:, 5])
    seen, _ = qformer.write(kept, ids, torch.ones_like(there))
    assert ((seen - before)[:, 5].abs().amax(dim=1) > 1e-6).tolist() == [False, True, False]


@torch.no_grad()
def test_queries_and_text_see_each_other_when_read_together(qformer, tokens, ids, present):
    image = qformer.image_keys(tokens, NORM)
    before = qformer.see_and_read([Seen(image)], Texts.packed(ids, present))
    for pair, last in enumerate([5, 2, 4]):
        changed = ids.clone()
        changed[pair, last] = (changed[pair, last] + 1) % 40
        differs = (
            qformer.see_and_read([Seen(image)], Texts.packed(changed, present)) - before
        ).abs().amax(dim=2) > 1e-6
        assert differs[pair].all()
        assert differs.sum() == 4  # the other pairs see nothing of it
    # Text sees queries: with text blind to them, the queries would get other text back.
    blind = blocks(present, text_to_queries=False, queries_to_text=True, causal=False)
    assert (plain(qformer, tokens, ids, blind)[0] - before).abs().amax() > 1e-3
    assert (qformer.see(image)[0] - before).abs().amax() > 1e-3


@torch.no_grad()
def test_seeing_needs_no_text(tiny, qformer, tokens):
    queries_side = QFormer(tiny(), with_text=False).double().eval()
    told = queries_side.load_state_dict(qformer.state_dict(), strict=False)
    assert told.missing_keys == []
    assert {key.split(".")[0] for key in told.unexpected_keys} == {"embeddings", "layers", "head"}
    outputs, kept = qformer.see(qformer.image_keys(tokens, NORM))
    alone, kept_alone = queries_side.see(queries_side.image_keys(tokens, NORM))
    assert torch.equal(alone, outputs)
    for (key, value), (other_key, other_value) in zip(kept, kept_alone, strict=True):
        assert torch.equal(key, other_key)
        assert torch.equal(value, other_value)


def test_a_qformer_without_text_neither_reads_nor_writes(tiny, tokens, ids, present):
    queries_side = QFormer(tiny(), with_text=False).double()
    image = queries_side.image_keys(tokens, NORM)
    _, kept = queries_side.see(image)
    for call in (
        lambda: queries_side.read(Texts.packed(ids, present)),
        lambda: queries_side.write(kept, ids, present),
        lambda: queries_side.see_and_read([Seen(image)], Texts.packed(ids, present)),
    ):
        with pytest.raises(TypeError, match="without text cannot"):
            call()


@torch.no_grad()
def test_shapes_are_as_written(checked, tiny, tokens, ids, present):
    qformer = checked.qformer.QFormer(checked.qformer.QFormerConfig(**vars(tiny()))).double()
    image = qformer.image_keys(tokens, NORM)
    texts = checked.packing.Texts.packed(ids, present)
    outputs, kept = qformer.see(image)
    assert outputs.shape == (3, 4, 24)
    assert qformer.read(texts).shape == (14, 24)
    to_write, _ = checked.itg.to_write(ids, present, 3)
    first, words, written = qformer.see_read_and_write(image, texts, to_write)
    assert (first.shape, words.shape, written.shape) == ((3, 4, 24), (3, 24), (11, 24))
    assert qformer.scores(written).shape == (11, qformer.config.vocab_size)
    assert qformer.see_and_read([checked.qformer.Seen(image)], texts).shape == (3, 4, 24)
    assert qformer.see_and_write(image, to_write).shape == written.shape
    scores, past = qformer.write(kept, ids[:, :2], present[:, :2])
    assert scores.shape == (3, 2, qformer.config.vocab_size)
    assert qformer.write(past, ids[:, 2:], present)[0].shape == (3, 4, qformer.config.vocab_size)


# The model others know


@torch.no_grad()
def test_text_is_read_and_guessed_as_by_the_bert_it_starts_from(tmp_path, tokenizer, ids, present):
    config = BertConfig(
        vocab_size=len(tokenizer) - 1,  # without [DEC]
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=24,
    )
    bert = scattered(BertForMaskedLM(config)).float()
    bert.save_pretrained(tmp_path)
    start = StartConfig(start=f"hf:{tmp_path}", max_text_tokens=20)
    qformer = start_stage1(start, tokenizer, vision_width=10, seed=0).qformer.eval()
    told = bert(ids, attention_mask=present.long(), output_hidden_states=True)
    text = qformer.read(Texts.packed(ids, present))
    torch.testing.assert_close(text, told.hidden_states[-1][present])
    scores = qformer.scores(text)[..., : config.vocab_size]
    torch.testing.assert_close(scores, told.logits[present])
