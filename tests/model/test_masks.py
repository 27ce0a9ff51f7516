"""Each mask, cell by cell, as a picture."""

import torch
from torch import Tensor

from model import masks

PRESENT = torch.tensor([[True, True, True], [True, True, False]])
"""Two texts, of three tokens and of two; there are two queries."""


def drawn(mask: Tensor) -> list[str]:
    return ["".join("x" if seen else "." for seen in row) for row in mask.tolist()]


def test_text_sees_text_and_no_padding():
    mask = masks.text_sees_text(PRESENT)
    assert mask.shape == (2, 1, 1, 3)
    assert drawn(mask[:, 0, 0]) == ["xxx", "xx."]


def test_all_see_all_but_padding():
    mask = masks.all_see_all(PRESENT, 2)
    assert mask.shape == (2, 1, 1, 5)
    assert drawn(mask[:, 0, 0]) == ["xxxxx", "xxxx."]


def test_queries_and_text_apart():
    mask = masks.apart(PRESENT, 2)
    assert drawn(mask[0, 0]) == ["xx...", "xx...", "..xxx", "..xxx", "..xxx"]
    assert drawn(mask[1, 0]) == ["xx...", "xx...", "..xx.", "..xx.", "..xx."]


def test_written_text_sees_the_queries_and_what_is_before_it():
    mask = masks.apart_and_written(PRESENT, 2)
    assert drawn(mask[1, 0]) == [
        "xx......",
        "xx......",
        "..xx....",
        "..xx....",
        "..xx....",
        "xx...x..",
        "xx...xx.",
        "xx...xxx",
    ]


def test_text_that_is_written_alone_sees_the_same():
    mask = masks.seen_and_written(2, 3, "cpu")
    assert mask.shape == (1, 1, 5, 5)
    assert drawn(mask[0, 0]) == ["xx...", "xx...", "xxx..", "xxxx.", "xxxxx"]


def test_what_follows_sees_what_is_past():
    mask = masks.written(PRESENT, 2, 2)
    assert drawn(mask[0, 0]) == ["xxxx.", "xxxxx"]
    assert drawn(mask[1, 0]) == ["xxxx.", "xxxx."]
