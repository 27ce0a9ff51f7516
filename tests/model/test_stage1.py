"""Stage 1: its losses against passes of their own for each pair, and what it embeds."""

import itertools
import math
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from model import stage1 as under_test
from model.itg import to_write
from model.layers import Attention
from model.objectives import ObjectivesConfig
from model.optimizer import OptimizerConfig, make_optimizer, update
from model.packing import Texts
from model.qformer import Seen
from model.stage1 import TEMPERATURE_RANGE, Stage1, Stage1Batch

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER = ObjectivesConfig()


@pytest.fixture
def stage1(scattered_stage1) -> Stage1:
    return scattered_stage1().eval()


@pytest.fixture
def batch(stage1, tokenizer, captions) -> Stage1Batch:
    """Six pairs; 0 and 2 have the same picture, 1 and 4 the same caption."""
    tokens = torch.randn(6, 7, 10, generator=torch.Generator().manual_seed(1))
    tokens[2] = tokens[0]
    captions[4] = captions[1]
    ids, present = tokenizer.encode(captions, 14)
    assert not present.all()
    assert present[3].all()  # this one is cut
    picture, caption = torch.tensor([9, 8, 9, 6, 5, 4]), torch.tensor([1, 7, 3, 4, 7, 6])
    return batch_of(stage1, tokens, ids, present, picture, caption)


def batch_of(stage1: Stage1, tokens, ids, present, picture, caption) -> Stage1Batch:
    written = to_write(ids, present, stage1.tokenizer.dec)
    return Stage1Batch(tokens, Texts.packed(ids, present), *written, picture, caption)


def part(stage1: Stage1, batch: Stage1Batch, pairs: list[int]) -> Stage1Batch:
    columns = (batch.tokens, batch.texts.ids, batch.texts.present, batch.picture, batch.caption)
    return batch_of(stage1, *(column[pairs] for column in columns))


def numbers(count: int) -> Tensor:
    return torch.rand(2, count, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


# The losses, pair by pair


def keys_of(stage1: Stage1, tokens: Tensor):
    return stage1.image_keys(tokens[None])


def alone(ids: Tensor) -> Texts:
    return Texts.packed(ids[None], torch.ones(1, len(ids), dtype=torch.bool))


def slow_cosine(stage1: Stage1, tokens: Tensor, ids: Tensor) -> float:
    """Of one picture and one caption without padding."""
    outputs, _ = stage1.qformer.see(keys_of(stage1, tokens))
    text = stage1.qformer.read(alone(ids))
    word = stage1.text_proj(text[0])
    return max(float(F.cosine_similarity(stage1.vision_proj(q), word, 0)) for q in outputs[0])


def slow_itc(rows: list[list[float]], same: list[list[bool]], smoothing: float) -> float:
    nats = 0.0
    for own, row in enumerate(rows):
        there = [s for c, s in enumerate(row) if c == own or not same[own][c]]
        total = math.log(sum(map(math.exp, there)))
        nats += total - (1 - smoothing) * row[own] - smoothing * sum(there) / len(there)
    return nats / len(rows)


def slow_itg(stage1: Stage1, tokens: Tensor, ids: Tensor, smoothing: float) -> tuple[float, int]:
    """Token by token: each time all that stands before the next one is written anew."""
    _, past = stage1.qformer.see(keys_of(stage1, tokens))
    text = torch.cat([torch.tensor([stage1.tokenizer.dec]), ids[1:]])
    nats = 0.0
    for place in range(1, len(text)):
        before = text[None, :place]
        scores, _ = stage1.qformer.write(past, before, torch.ones_like(before, dtype=torch.bool))
        nats += F.cross_entropy(scores[0, -1], text[place], label_smoothing=smoothing).item()
    return nats, len(text) - 1


def slow_draw(row: list[float], same: list[bool], hardness: float, number: float) -> int:
    allowed = [c for c, forbidden in enumerate(same) if not forbidden]
    total = sum(math.exp(row[c]) for c in allowed)
    reached = 0.0
    for c in allowed:
        reached += hardness * math.exp(row[c]) / total + (1 - hardness) / len(allowed)
        if reached > number:
            return c
    return allowed[-1]


def slow_itm(stage1: Stage1, tokens: Tensor, ids: Tensor, label: int) -> tuple[float, bool]:
    outputs = stage1.qformer.see_and_read([Seen(keys_of(stage1, tokens))], alone(ids))
    logits = sum(stage1.itm_head(q) for q in outputs[0]) / outputs.shape[1]
    return F.cross_entropy(logits, torch.tensor(label)).item(), int(logits.argmax()) == label


@torch.no_grad()
def slow_losses(stage1: Stage1, batch: Stage1Batch, hardness: float, smoothing: float) -> dict:
    """Every picture and every caption by itself, without padding."""
    pairs = range(len(batch.texts.ids))
    texts = [ids[there] for ids, there in zip(batch.texts.ids, batch.texts.present, strict=True)]
    sims = [[slow_cosine(stage1, t, text) for text in texts] for t in batch.tokens]
    sims = [[s / stage1.temperature.item() for s in row] for row in sims]
    back = [list(column) for column in zip(*sims, strict=True)]
    picture, caption = batch.picture.tolist(), batch.caption.tolist()
    same = [[picture[i] == picture[j] or caption[i] == caption[j] for j in pairs] for i in pairs]
    written = {
        s: [slow_itg(stage1, t, text, s) for t, text in zip(batch.tokens, texts, strict=True)]
        for s in (0.0, smoothing)
    }
    judged = []
    for i in pairs:
        u = numbers(len(pairs))[:, i].tolist()
        drawn_picture = slow_draw(back[i], same[i], hardness, u[0])
        drawn_text = slow_draw(sims[i], same[i], hardness, u[1])
        for p, t, label in ((i, i, 1), (drawn_picture, i, 0), (i, drawn_text, 0)):
            judged.append(slow_itm(stage1, batch.tokens[p], texts[t], label))
    itc, itg = (
        {s: (slow_itc(sims, same, s) + slow_itc(back, same, s)) / 2 for s in (0.0, smoothing)},
        {s: sum(n for n, _ in w) / sum(num for _, num in w) for s, w in written.items()},
    )
    return {
        "itc": itc[smoothing],
        "itc_unsmoothed": itc[0.0],
        "itg": itg[smoothing],
        "itg_unsmoothed": itg[0.0],
        "itm": sum(nats for nats, _ in judged) / len(judged),
        "itm_accuracy": sum(right for _, right in judged) / len(judged),
    }


@pytest.mark.parametrize(("hardness", "smoothing"), [(1.0, 0.1), (0.5, 0.3), (0.0, 0.0)])
def test_each_loss_is_that_of_passes_of_its_own(stage1, batch, hardness, smoothing):
    objectives = ObjectivesConfig(label_smoothing=smoothing)
    with torch.no_grad():
        found = stage1(batch, objectives, hardness, numbers(6))
    found = {name: value.item() for name, value in found.items()}
    loss = found.pop("loss")
    assert loss == pytest.approx(found["itc"] + found["itm"] + found["itg"], rel=1e-6)
    assert found == pytest.approx(slow_losses(stage1, batch, hardness, smoothing), rel=2e-5)
    assert 0 < found["itm_accuracy"] < 1


def test_the_losses_of_a_pair_do_not_depend_on_padding(stage1, batch):
    before = stage1(batch, PAPER, 1.0, numbers(6))
    ids, present = F.pad(batch.texts.ids, (0, 4), value=17), F.pad(batch.texts.present, (0, 4))
    wide = batch_of(stage1, batch.tokens, ids, present, batch.picture, batch.caption)
    for name, value in stage1(wide, PAPER, 1.0, numbers(6)).items():
        torch.testing.assert_close(value, before[name])


def test_only_the_loss_has_a_gradient(stage1, batch):
    found = stage1(batch, PAPER, 1.0, numbers(6))
    assert [name for name, value in found.items() if value.requires_grad] == ["loss"]
    assert all(value.shape == () for value in found.values())


@pytest.mark.parametrize("with_itg", [True, False])
@pytest.mark.parametrize("hardness", [None, 1.0])
def test_every_weight_has_a_gradient(stage1, batch, hardness, with_itg):
    """Of its own shape, also where nothing but a few words of the vocabulary were looked up."""
    stage1(batch, PAPER, hardness, numbers(6), with_itg=with_itg)["loss"].backward()
    # All scores of a row alike: the keys' bias changes nothing in a softmax.
    still = ["key.bias"]
    still += ["itm_head"] if hardness is None else []
    still += [] if with_itg else ["qformer.head"]
    for name, parameter in stage1.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.layout is torch.strided, name
        assert parameter.grad.isfinite().all(), name
        moves = parameter.grad.abs().max() > 1e-7
        assert moves != any(part in name for part in still), name


def test_gradients_are_the_slopes_of_the_loss(stage1, batch):
    def loss() -> Tensor:
        return stage1(batch, PAPER, 1.0, numbers(6))["loss"]

    loss().backward()
    parts: dict[str, list[Tensor]] = {}
    for name, parameter in stage1.named_parameters():
        parts.setdefault(name.rpartition(".")[0] or name, []).append(parameter)
    with torch.no_grad():
        for name, parameters in parts.items():
            steepness = math.hypot(*(p.grad.norm() for p in parameters))
            found = []
            for length in (2e-3, -4e-3, 2e-3):
                for parameter in parameters:
                    parameter += length / steepness * parameter.grad
                found.append(loss().item())
            slope = (found[0] - found[1]) / 4e-3
            assert slope == pytest.approx(steepness, rel=0.01, abs=2e-3), name


def test_before_itm_joins_the_loss_is_that_of_the_others(stage1, batch):
    found = stage1(batch, PAPER, None, numbers(6))
    both = stage1(batch, PAPER, 1.0, numbers(6))
    assert found.keys() == both.keys() - {"itm", "itm_accuracy"}
    torch.testing.assert_close(found["loss"], found["itc"] + found["itg"])
    for name in ("itc", "itg", "itc_unsmoothed", "itg_unsmoothed"):
        assert torch.equal(found[name], both[name])


# By some of the losses


SUBSETS = ["itc", "itm", "itg", "itc,itm", "itc,itg", "itm,itg", "itc,itm,itg"]
TOLD = {
    "itc": {"itc", "itc_unsmoothed"},
    "itm": {"itm", "itm_accuracy"},
    "itg": {"itg", "itg_unsmoothed"},
}


def gradients(stage1: Stage1, batch: Stage1Batch, losses: str) -> dict[str, Tensor]:
    """Zeros where there is none."""
    stage1.zero_grad(set_to_none=True)
    stage1(batch, ObjectivesConfig(losses=losses), 0.0, numbers(6))["loss"].backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in stage1.named_parameters()
    }


@pytest.mark.parametrize("losses", SUBSETS)
def test_some_of_the_losses_are_those_of_the_full_step(stage1, batch, losses):
    full = stage1(batch, PAPER, 0.0, numbers(6))
    found = stage1(batch, ObjectivesConfig(losses=losses), 0.0, numbers(6))
    chosen = losses.split(",")
    assert found.keys() == {"loss"}.union(*(TOLD[name] for name in chosen))
    torch.testing.assert_close(found["loss"], sum(full[name] for name in chosen))
    for name in found.keys() - {"loss"}:
        torch.testing.assert_close(found[name], full[name])


@pytest.mark.parametrize("losses", SUBSETS[3:])
def test_gradients_of_some_are_those_of_each(stage1, batch, losses):
    found = gradients(stage1.double(), double(batch), losses)
    each = [gradients(stage1, double(batch), name) for name in losses.split(",")]
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, sum(its[name] for its in each), msg=name)


def double(batch: Stage1Batch) -> Stage1Batch:
    return replace(batch, tokens=batch.tokens.double())


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("losses", SUBSETS)
def test_weights_that_no_loss_reads_are_frozen_and_no_others(
    scattered_stage1, batch, losses, num_layers
):
    stage1 = scattered_stage1(num_layers=num_layers).eval()
    objectives = ObjectivesConfig(losses=losses)
    stage1.freeze_unread(objectives.chosen)
    before = stage1(batch, objectives, 0.0, numbers(6))
    before["loss"].backward()
    frozen = {name for name, p in stage1.named_parameters() if not p.requires_grad}
    for name, parameter in stage1.named_parameters():
        assert (parameter.grad is None) == (name in frozen), name
        if name not in frozen and "key.bias" not in name:
            assert parameter.grad.abs().max() > 1e-7, name
    with torch.no_grad():
        for name, parameter in stage1.named_parameters():
            if name in frozen:
                parameter += 1
    for name, value in stage1(batch, objectives, 0.0, numbers(6)).items():
        assert torch.equal(value, before[name]), name
    assert ("itm_head.weight" in frozen) == ("itm" not in losses)
    assert ("temperature" in frozen) == ("itc" not in losses)


def test_what_is_frozen_is_not_updated_and_does_not_decay(scattered_stage1, batch):
    stage1 = scattered_stage1()
    stage1.freeze_unread(frozenset({"itg"}))
    before = {name: value.clone() for name, value in stage1.state_dict().items()}
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.5), stage1)
    stage1(batch, ObjectivesConfig(losses="itg"), None, numbers(6))["loss"].backward()
    update(optimizer, skip=torch.tensor(False))
    still = {name for name, v in stage1.state_dict().items() if torch.equal(v, before[name])}
    assert still == {name for name, p in stage1.named_parameters() if not p.requires_grad}
    assert {"vision_proj.weight", "itm_head.weight", "temperature"} < still


def test_hard_negatives_need_itc(stage1, batch):
    with pytest.raises(ValueError, match=r"itm_hardness: 0\.5, but no ITC"):
        stage1(batch, ObjectivesConfig(losses="itm"), 0.5, numbers(6))


@pytest.mark.parametrize("losses", SUBSETS)
def test_what_is_left_out_is_not_computed(stage1, batch, monkeypatch, losses):
    called = set()

    def note(name: str, method) -> None:
        def noted(*args):
            called.add(name)
            return method(*args)

        monkeypatch.setattr(stage1.qformer, name, noted)

    for name in ("see_read_and_write", "see_and_write", "see_and_read", "scores"):
        note(name, getattr(stage1.qformer, name))
    stage1(batch, ObjectivesConfig(losses=losses), 0.0, numbers(6))
    chosen = set(losses.split(","))
    passes = {"itm": {"see_and_read"}, "itg": {"scores"}, "itc": {"see_read_and_write"}}
    alone = {"see_and_write"} if chosen & {"itc", "itg"} == {"itg"} else set()
    assert called == alone.union(*(passes[name] for name in chosen))


def test_itg_alone_asks_for_no_more_than_it_reads(stage1, batch):
    """No text that is read, and of the last layer no query's output and no picture."""
    rows = {}
    for number, layer in enumerate(stage1.qformer.layers):
        nets = {"queries": layer.query_feed_forward, "text": layer.text_feed_forward}
        nets |= {"keys": layer.look.key} if layer.look is not None else {}
        for name, net in nets.items():
            found = rows[number, name] = []
            net.register_forward_pre_hook(lambda _, args, found=found: found.append(len(args[0])))
    stage1(batch, ObjectivesConfig(losses="itg"), None, numbers(6))
    for number in range(3):
        assert rows[number, "text"] == [len(batch.targets)]
        assert rows[number, "queries"] == ([6 * 4] if number < 2 else [])
    # The key's map is called for ln_vision's shift alone: its weights meet the tokens folded.
    assert (rows[0, "keys"], rows[2, "keys"]) == ([10], [])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tokens_may_be_in_half_precision(stage1, batch, dtype):
    half = replace(batch, tokens=batch.tokens.to(dtype))
    exact = replace(half, tokens=half.tokens.float())
    expected = stage1(exact, PAPER, 1.0, numbers(6))
    for name, value in stage1(half, PAPER, 1.0, numbers(6)).items():
        assert torch.equal(value, expected[name])


def test_mixed_precision_is_for_the_layers_and_not_for_the_losses(stage1, batch):
    exact = stage1(batch, PAPER, 1.0, numbers(6))
    with torch.autocast("cpu", torch.bfloat16):
        found = stage1(batch, PAPER, 1.0, numbers(6))
    assert {name: value.dtype for name, value in found.items()} == dict.fromkeys(
        exact, torch.float32
    )
    for name in ("itc", "itg"):
        assert found[name].item() == pytest.approx(exact[name].item(), rel=0.02)
    found["loss"].backward()
    assert all(p.grad.isfinite().all() for p in stage1.parameters())


def test_dropout_acts_in_training_alone(scattered_stage1, batch):
    plain, dropping = scattered_stage1(), scattered_stage1(dropout=0.3)
    expected = plain(batch, PAPER, 1.0, numbers(6))["loss"]
    assert torch.equal(dropping.eval()(batch, PAPER, 1.0, numbers(6))["loss"], expected)
    torch.manual_seed(0)
    first, second = (dropping.train()(batch, PAPER, 1.0, numbers(6))["loss"] for _ in range(2))
    assert len({first.item(), second.item(), expected.item()}) == 3


@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler"),
            ],
        ),
    ],
)
def test_compiled_layers_give_the_same_losses(
    scattered_stage1, batch, backend, tmp_path, monkeypatch
):
    """Captured whole, whatever the shapes."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # not what a killed one left
    torch.compiler.reset()  # what another backend made counts against a limit
    plain, compiled = scattered_stage1(num_layers=2), scattered_stage1(num_layers=2)
    compiled.qformer.compile_layers(backend)
    for pairs in ([0, 1, 2, 3, 4, 5], [5, 3, 1]):  # shapes change from step to step
        some = part(plain, batch, pairs)
        found = []
        for stage1 in (plain, compiled):
            stage1.zero_grad(set_to_none=True)
            losses = stage1(some, PAPER, 1.0, numbers(len(pairs)))
            losses["loss"].backward()
            alone = stage1(some, ObjectivesConfig(losses="itg"), None, numbers(len(pairs)))
            alone["loss"].backward()
            slopes = {name: p.grad for name, p in stage1.named_parameters()}
            found.append((losses, alone, slopes))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_no_step_waits_for_what_the_device_finds(stage1, batch):
    """Tensors of a GPU that is not there have no values: whoever asks for one fails."""
    drawn = numbers(6)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        with torch.device("cuda"):
            there = Stage1(stage1.config, stage1.tokenizer)
        texts, written = (
            Texts(*map(mode.from_tensor, vars(t).values())) for t in (batch.texts, batch.to_write)
        )
        rest = (mode.from_tensor(t) for t in (batch.targets, batch.picture, batch.caption))
        fake = Stage1Batch(mode.from_tensor(batch.tokens), texts, written, *rest).to("cuda")
        rows = []
        layer = there.qformer.layers[1]  # the first to see each text of ITM beside its pictures
        layer.text_feed_forward.register_forward_pre_hook(lambda _, x: rows.append(len(x[0])))
        found = there(fake, PAPER, 0.5, mode.from_tensor(drawn))
        assert all(value.is_cuda for value in found.values())
        with pytest.raises(DataDependentOutputException):
            found["loss"].item()
    # Only the drawn texts keep their padding: how long they are, the host would have to ask.
    num_tokens, num_written = len(batch.texts.places), len(batch.to_write.places)
    assert rows == [num_tokens + num_written, 2 * num_tokens + batch.texts.ids.numel()]


def test_no_update_waits_for_what_the_device_finds(stage1):
    """As above; a gradient cannot flow on a GPU that is not there, so it is given."""
    with FakeTensorMode(), torch.device("cuda"):
        there = Stage1(stage1.config, stage1.tokenizer)
        optimizer = make_optimizer(OptimizerConfig(), there)
        for parameter in there.parameters():
            parameter.grad = torch.ones_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(there.parameters(), 1.0)
        update(optimizer, skip=~torch.isfinite(norm))
        there.bound_temperature()
        assert len(optimizer.state) == len(list(there.parameters()))
        with pytest.raises(DataDependentOutputException):
            norm.item()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_pinned_batch_is_the_batch(batch):
    pinned = batch.pin_memory()
    assert all(value.is_pinned() for value in (pinned.tokens, pinned.texts.ids, pinned.targets))
    there = pinned.to("cuda")
    assert torch.equal(there.tokens.cpu(), batch.tokens)
    assert torch.equal(there.texts.places.cpu(), batch.texts.places)


def test_a_step_does_no_work_twice(stage1, batch, monkeypatch):
    """Pictures are mapped once a layer, texts that are alike until they see pictures as long once,
    and nets see neither padding nor what no loss reads."""
    mapped, drawn, rows = [], [], {}
    keys_values, draw = Attention.keys_values_of_norm, under_test.draw_negatives

    def counted(look, normed, norm):
        mapped.append((look, len(normed)))
        return keys_values(look, normed, norm)

    def recorded(*args, **options):
        drawn.append(draw(*args, **options)[0])
        return draw(*args, **options)

    monkeypatch.setattr(Attention, "keys_values_of_norm", counted)
    monkeypatch.setattr(under_test, "draw_negatives", recorded)
    nets = {"head": stage1.qformer.head}
    for number, layer in enumerate(stage1.qformer.layers):
        nets[number, "queries"] = layer.query_feed_forward
        nets[number, "text"] = layer.text_feed_forward
        nets[number, "looked for"] = layer.attention.query
    for name, net in nets.items():
        rows[name] = []
        net.register_forward_pre_hook(lambda _, args, found=rows[name]: found.append(len(args[0])))
    stage1(batch, PAPER, 1.0, numbers(6))["loss"].backward()

    assert mapped == [(layer.look, 6) for layer in stage1.qformer.layers if layer.look is not None]
    assert len(mapped) == 2
    # ITM has three sequences a pair: its picture with its text and a drawn one, its text again.
    lengths = batch.texts.present.sum(dim=1)
    read, written = int(lengths.sum()), len(batch.targets)
    matched = 2 * read + int(lengths[drawn[1]].sum())
    queries = [6 * 4, 18 * 4]
    texts = [[read + written, read], [read + written, matched], [6 + written]]
    assert rows.pop("head") == [written]
    for (number, name), found in rows.items():
        text, looking = texts[number], [6 * 4, 6 * 4] if number == 0 else queries
        both = [q + t for q, t in itertools.zip_longest(looking, text, fillvalue=0)]
        assert found == {"queries": queries, "text": text, "looked for": both}[name], (number, name)


# Batches in which there is nobody else


@pytest.mark.parametrize("pairs", [[3], [0, 2], [1, 4, 1]])
def test_pairs_that_are_all_the_same_have_captions_alone_to_learn(stage1, batch, pairs):
    found = stage1(part(stage1, batch, pairs), PAPER, 1.0, numbers(len(pairs)))
    assert [found[name].item() for name in ("itc", "itc_unsmoothed", "itm")] == [0, 0, 0]
    assert found["itg"] > 0
    torch.testing.assert_close(found["loss"], found["itg"])
    found["loss"].backward()
    for name, parameter in stage1.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_pairs_without_negatives_leave_itm_to_the_others(stage1, batch):
    # The second shares its picture with the first and its caption with the third.
    chained = part(stage1, batch, [0, 3, 5])
    chained = batch_of(
        stage1,
        chained.tokens,
        chained.texts.ids,
        chained.texts.present,
        torch.tensor([1, 1, 2]),
        torch.tensor([1, 2, 2]),
    )
    found = stage1(chained, PAPER, 1.0, numbers(3))
    texts = [
        ids[there] for ids, there in zip(chained.texts.ids, chained.texts.present, strict=True)
    ]
    judged = [
        slow_itm(stage1, chained.tokens[p], texts[t], label)
        for p, t, label in [(0, 0, 1), (2, 2, 1), (2, 0, 0), (0, 2, 0), (0, 2, 0), (2, 0, 0)]
    ]
    assert found["itm"].item() == pytest.approx(sum(n for n, _ in judged) / 6, rel=1e-5)
    assert found["itm_accuracy"].item() == pytest.approx(sum(r for _, r in judged) / 6)


# Temperature and batches


def test_the_temperature_starts_as_the_papers_and_keeps_its_range(tiny, tokenizer):
    stage1 = Stage1(tiny(), tokenizer)
    assert stage1.temperature.item() == pytest.approx(0.07)
    low, high = TEMPERATURE_RANGE
    for value, kept in ((-1.0, low), (0.1, 0.1), (2.0, high)):
        stage1.temperature.data.fill_(value)
        stage1.bound_temperature()
        assert stage1.temperature.item() == pytest.approx(kept)
    assert stage1.temperature.requires_grad


def test_a_batch_moves_as_a_whole(batch):
    moved = batch.to("meta")
    for there, here in zip(tensors(moved), tensors(batch), strict=True):
        assert there.is_meta
        assert (there.shape, there.dtype) == (here.shape, here.dtype)


def tensors(batch: Stage1Batch) -> list[Tensor]:
    values = vars(batch).values()
    return [t for v in values for t in (vars(v).values() if isinstance(v, Texts) else [v])]


# Embeddings


def test_embeddings_are_those_that_itc_compares(stage1, batch, captions):
    pictures, texts = stage1.embed_pictures(batch.tokens), stage1.embed_texts(captions)
    assert (pictures.shape, texts.shape) == ((6, 4, 6), (6, 6))
    assert pictures.dtype == texts.dtype == torch.float32
    for vectors in (pictures, texts):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))
    ids, present = stage1.tokenizer.encode(captions, stage1.config.max_text_tokens)
    with torch.no_grad():
        for i, j in itertools.product(range(3), range(6)):
            expected = slow_cosine(stage1, batch.tokens[i], ids[j][present[j]])
            found = float((pictures[i] @ texts[j]).max())
            assert found == pytest.approx(expected, abs=1e-5)


def test_embeddings_do_not_depend_on_who_else_is_embedded(stage1, batch, captions):
    pictures, texts = stage1.embed_pictures(batch.tokens), stage1.embed_texts(captions)
    close = {"rtol": 1e-5, "atol": 1e-6}
    for i in range(6):
        torch.testing.assert_close(
            stage1.embed_pictures(batch.tokens[[i]])[0], pictures[i], **close
        )
        torch.testing.assert_close(stage1.embed_texts([captions[i]])[0], texts[i], **close)
    assert torch.equal(
        stage1.embed_pictures(batch.tokens.half()),
        stage1.embed_pictures(batch.tokens.half().float()),
    )


def test_long_captions_are_embedded_as_far_as_they_are_read(stage1, captions):
    long = " ".join(captions)
    longer = long + " and a dog"
    assert torch.equal(*stage1.embed_texts([long, longer]))
    assert not torch.equal(*stage1.embed_texts(["a dog", "a dog and a dog"]))


def test_nothing_to_embed_is_no_vectors(stage1):
    assert stage1.embed_pictures(torch.empty(0, 7, 10)).shape == (0, 4, 6)
    assert stage1.embed_texts([]).shape == (0, 6)


def test_shapes_are_as_written(checked, tiny, tokenizer, batch, captions):
    module = checked.stage1
    stage1 = module.Stage1(module.QFormerConfig(**vars(tiny())), tokenizer)
    shaped = stage1.batch(batch.tokens, captions, batch.picture, batch.caption)
    for hardness in (None, 1.0):
        stage1(shaped, module.ObjectivesConfig(), hardness, numbers(6))["loss"].backward()
    stage1.embed_pictures(batch.tokens.half())
    stage1.embed_texts(captions)
