"""A Q-Former that starts as a BERT reads and writes text as that did."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    BertModel,
)

from model.bert import load_bert
from model.layers import init_std
from model.packing import Texts
from pipeline.errors import ConfigError

TEXTS = ["A red boat", "the dogs on the lake", "boats"]


C = 10


def test_text_is_read_as_by_the_bert(bert, begin_from):
    stage1, theirs = begin_from(bert), BertModel.from_pretrained(bert).eval()
    ids, present = stage1.tokenizer.encode(TEXTS, 12)
    assert not present.all()
    with torch.no_grad():
        expected = theirs(ids, attention_mask=present.long()).last_hidden_state
        found = stage1.qformer.read(Texts.packed(ids, present))
    torch.testing.assert_close(found, expected[present], rtol=1e-4, atol=1e-5)


def test_its_language_head_writes_as_the_berts(bert, begin_from):
    stage1, theirs = begin_from(bert), AutoModelForMaskedLM.from_pretrained(bert).eval()
    hidden = torch.randn(10, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = stage1.qformer.scores(hidden)
        expected = theirs.cls(hidden)
    torch.testing.assert_close(found[..., :-1], expected, rtol=1e-4, atol=1e-5)


def test_the_start_of_a_caption_is_a_new_word(bert, begin_from):
    stage1, theirs = begin_from(bert), BertModel.from_pretrained(bert)
    tokenizer, words = stage1.tokenizer, stage1.qformer.embeddings.words.weight
    assert len(tokenizer) == len(words) == len(theirs.embeddings.word_embeddings.weight) + 1
    assert tokenizer.dec == len(words) - 1
    assert words[tokenizer.dec].std().item() == pytest.approx(init_std(24), rel=0.5)
    assert init_std(24) < 0.15  # theirs are 0.3 here
    assert stage1.qformer.head.bias[tokenizer.dec] == 0


def test_the_queries_feed_forward_nets_are_copies_of_the_texts(bert, begin_from):
    for layer in begin_from(bert).qformer.layers:
        ours, theirs = (
            net.state_dict() for net in (layer.query_feed_forward, layer.text_feed_forward)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        layer.query_feed_forward.up.weight.data.zero_()
        assert layer.text_feed_forward.up.weight.any()  # and no more than that


def test_a_bert_without_a_language_head_leaves_ours_to_the_seed(headless, begin_from, weights_of):
    stage1 = begin_from(headless)
    assert stage1.qformer.head.dense.weight.std().item() == pytest.approx(init_std(24), rel=0.2)
    assert torch.equal(stage1.qformer.head.norm.weight, torch.ones(24))
    torch.manual_seed(1)
    assert weights_of(begin_from(headless)) == weights_of(stage1)


def test_a_vocabulary_that_is_padded_is_taken_as_far_as_it_has_words(
    tmp_path, begin_from, save_bert
):
    """Some are padded to a multiple of 8 or 64."""
    stage1 = begin_from(save_bert(tmp_path / "padded", padding=7))
    theirs = BertModel.from_pretrained(tmp_path / "padded").embeddings.word_embeddings.weight
    words = stage1.qformer.embeddings.words.weight
    assert len(words) == len(stage1.tokenizer) == len(theirs) - 6
    known = stage1.tokenizer.dec
    assert torch.equal(words[:known], theirs[:known])


def test_a_bert_that_lacks_a_weight_is_refused(bert, tmp_path, capfd):
    shutil.copytree(bert, tmp_path / "lame")
    weights = load_file(bert / "model.safetensors")
    lost = "bert.encoder.layer.1.output.dense.weight"
    del weights[lost]
    save_file(weights, tmp_path / "lame" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"start: hf:\S+lame: {lost}: missing"):
        load_bert(f"hf:{tmp_path}/lame")
    assert "REPORT" not in capfd.readouterr().err
