"""ITG: what is written of a caption, and its loss."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from model.itg import caption_loss, to_write

pytestmark = pytest.mark.usefixtures("one_thread")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_token_is_written_if_another_follows():
    ids = torch.tensor([[7, 8, 9, 10], [7, 8, 0, 0], [7, 0, 0, 0]])
    present = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    texts, targets = to_write(ids, present, dec=99)
    assert texts.tokens.tolist() == [99, 8, 9, 99]
    assert texts.text.tolist() == [0, 0, 0, 1]
    assert texts.position.tolist() == [0, 1, 2, 0]
    assert targets.tolist() == [8, 9, 10, 8]
    assert ids[0].tolist() == [7, 8, 9, 10]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_caption_loss_is_cross_entropy(smoothing):
    scores = 2 * torch.randn(9, 11, generator=seeded(10))
    targets = torch.randint(0, 11, (9,), generator=seeded(11))
    smooth, plain = caption_loss(scores, targets, label_smoothing=smoothing)
    for found, amount in ((smooth, smoothing), (plain, 0.0)):
        expected = F.cross_entropy(scores, targets, label_smoothing=amount, reduction="sum")
        torch.testing.assert_close(found, expected)


def test_captions_of_one_token_have_no_loss():
    texts, targets = to_write(torch.tensor([[7], [7]]), torch.ones(2, 1).bool(), dec=99)
    assert len(texts.tokens) == len(targets) == 0
    scores = torch.randn(0, 5, generator=seeded(12)).requires_grad_()
    smooth, plain = caption_loss(scores, targets)
    assert (smooth.item(), plain.item()) == (0, 0)
    smooth.backward()


def test_shapes_are_as_written(checked):
    ids = torch.zeros(2, 4, dtype=torch.long)
    _, targets = checked.itg.to_write(ids, ids == 0, 3)
    checked.itg.caption_loss(torch.randn(len(targets), 7), targets)
