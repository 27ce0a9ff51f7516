"""What language models read and learn of captions: prompts, ends, splits, room."""

from collections import Counter

import pytest
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import UnigramTrainer
from transformers import PreTrainedTokenizerFast

from model.language_text import (
    CAPTION_PROMPT,
    IGNORED,
    QUESTION_PROMPT,
    caption_room,
    check_positions,
    language_batch,
    prompt_ids,
)
from pipeline.errors import ConfigError

END = 0
PROMPT = "a photo of"


@pytest.fixture
def plain(byte_tokenizer):
    """Puts nothing around a text."""
    return byte_tokenizer()


@pytest.fixture(params=["llama", "opt"])
def decoder(request, make_language, plain):
    return make_language(request.param, plain)


@pytest.fixture
def opt(make_language, byte_tokenizer):
    """With a tokenizer as OPT's: one token is both the beginning and the end."""
    return make_language("opt", byte_tokenizer("</s> $A"))


@pytest.fixture
def t5(make_language, byte_tokenizer):
    """With a tokenizer as T5's, which ends each text."""
    return make_language("t5", byte_tokenizer("$A </s>"))


def rows(language, texts, prompt="", max_tokens=64, split=0.5) -> list[tuple[list[int], list[int]]]:
    """What is read and what is learned of each text, without padding."""
    draw = [split] * len(texts)
    ids, present, targets = language_batch(
        language, texts, prompt=prompt, max_tokens=max_tokens, split_draw=draw
    )
    read = [row[here].tolist() for row, here in zip(ids, present, strict=True)]
    for row, its, here in zip(ids, read, present, strict=True):
        assert row[: len(its)].tolist() == its
        assert (row[len(its) :] == END).all()
        assert here[: len(its)].all()
    return list(zip(read, targets.tolist(), strict=True))


# Prompts


def test_a_decoder_goes_on_after_the_prompt_and_an_encoder_reads_a_text(opt, t5, plain, captions):
    words = plain(PROMPT)["input_ids"]
    assert prompt_ids(opt, PROMPT) == [END, *words]
    assert prompt_ids(t5, PROMPT) == [*words, END]
    assert (prompt_ids(opt, ""), prompt_ids(t5, "")) == ([END], [END])


def test_a_decoder_whose_tokenizer_ends_each_text_is_not_told_the_end(
    make_language, byte_tokenizer, plain
):
    llama = make_language("llama", byte_tokenizer("</s> $A </s>"))
    assert prompt_ids(llama, PROMPT) == [END, *plain(PROMPT)["input_ids"]]


def test_prompts_are_those_of_the_paper():
    assert CAPTION_PROMPT == "a photo of"
    assert QUESTION_PROMPT.format("what {is} it?") == "Question: what {is} it? Answer:"


# Decoder-only


@pytest.mark.parametrize("prompt", ["", PROMPT, PROMPT + " "])
def test_ids_are_those_of_prompt_and_caption_and_then_the_end(plain, decoder, captions, prompt):
    num_prompt = len(plain(prompt.rstrip())["input_ids"])
    for text, (read, learned) in zip(captions, rows(decoder, captions, prompt), strict=True):
        joined = f"{prompt.rstrip()} {text}" if prompt else text
        assert read == [*plain(joined)["input_ids"], END]
        padding = len(learned) - len(read)
        expected = [*[IGNORED] * num_prompt, *read[num_prompt:], *[IGNORED] * padding]
        assert learned == expected


def test_a_caption_that_is_cut_is_not_learned_to_end_there(plain, decoder, captions):
    ids = plain(captions[3])["input_ids"]
    texts = [captions[3], "a man"]
    fits, cut = (rows(decoder, texts, max_tokens=len(ids) + more) for more in (1, 0))
    assert fits[0] == ([*ids, END], [*ids, END])
    assert cut[0] == ([*ids[:-1], END], [*ids[:-1], IGNORED])
    for read, learned in (fits[1], cut[1]):  # the short one ends as ever
        assert learned[len(read) - 1] == END


@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_what_a_tokenizer_puts_before_every_text_is_not_learned(opt, plain, captions, prompt):
    """OPT's puts its end token there: who learned to say it would end every caption at once."""
    num_prompt = 1 + len(plain(prompt)["input_ids"])
    for text, (read, learned) in zip(captions, rows(opt, captions, prompt), strict=True):
        words = [*plain(f" {text}" if prompt else text)["input_ids"], END]
        assert read == [*opt.tokenizer(prompt)["input_ids"], *words]
        assert learned[: len(read)] == [*[IGNORED] * num_prompt, *words]


def test_the_draw_changes_nothing_where_nothing_is_split(decoder, captions):
    assert rows(decoder, captions, split=0.0) == rows(decoder, captions, split=0.99)


# Encoder-decoder


@pytest.fixture
def pieces(captions):
    """A tokenizer of T5's kind: it marks the spaces before words, and ends each text."""
    backend = Tokenizer(Unigram())
    backend.pre_tokenizer = Metaspace()
    special = ["</s>", "<pad>", "<unk>"]
    learner = UnigramTrainer(
        vocab_size=80, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator([*captions, PROMPT], learner)
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")


@pytest.mark.parametrize("prompt", ["", PROMPT, PROMPT + " "])
def test_a_prompt_and_a_caption_are_one_text_for_a_tokenizer_of_pieces_too(
    make_language, pieces, captions, prompt
):
    t5 = make_language("t5", pieces)
    for text, (read, learned) in zip(captions, rows(t5, captions, prompt), strict=True):
        joined = f"{prompt.rstrip()} {text}" if prompt else text
        whole = pieces(joined)["input_ids"]
        assert [*read[:-1], *(its for its in learned if its != IGNORED)] == whole


@pytest.mark.parametrize("prompt", ["", PROMPT])
@pytest.mark.parametrize("split", [0.0, 0.4, 0.999])
def test_the_encoder_reads_the_first_words_and_the_decoder_learns_the_rest(
    t5, plain, captions, prompt, split
):
    first = plain(prompt)["input_ids"]
    for text, (read, learned) in zip(
        captions, rows(t5, captions, prompt, split=split), strict=True
    ):
        words = plain(f" {text}" if prompt else text)["input_ids"]
        assert read[: len(first)] == first
        assert read[-1] == END
        begun = read[len(first) : -1]
        rest = [its for its in learned if its != IGNORED]
        assert learned == rest + [IGNORED] * (len(learned) - len(rest))
        assert begun + rest == [*words, END]
        least = 0 if prompt else 1
        assert least <= len(begun) <= len(words) // 2


def test_each_split_from_the_first_token_to_the_middle_is_as_probable(t5, plain, captions):
    num_words = len(plain(captions[3])["input_ids"])
    split = [(n + 0.5) / 1000 for n in range(1000)]
    ids, present, _ = language_batch(
        t5, [captions[3]] * 1000, prompt="", max_tokens=64, split_draw=split
    )
    counts = Counter((present.sum(dim=1) - 1).tolist())
    assert sorted(counts) == list(range(1, num_words // 2 + 1))
    assert max(counts.values()) - min(counts.values()) <= 1
    assert ids.shape[1] == num_words // 2 + 1


def test_a_caption_of_one_token_is_left_to_the_decoder(t5, plain):
    (word,) = plain("a")["input_ids"]
    assert rows(t5, ["a"], split=0.9) == [([END], [word, END])]
    assert rows(t5, [""], split=0.9) == [([END], [END])]


def test_a_caption_that_is_cut_is_not_learned_to_end_in_the_decoder(t5, plain, captions):
    words = plain(captions[3])["input_ids"]
    ((_, fits),) = rows(t5, [captions[3]], max_tokens=len(words) + 1)
    ((read, cut),) = rows(t5, [captions[3]], max_tokens=len(words))
    assert fits[-1] == END
    assert cut[-1] == IGNORED
    assert [*read[:-1], *cut[:-1]] == words[:-1]


# Room


@pytest.mark.parametrize("max_tokens", [4, 7, 12])
def test_no_row_is_longer_than_it_may_be(language, captions, max_tokens):
    for read, learned in rows(language, captions, prompt="a", max_tokens=max_tokens):
        assert len(read) <= max_tokens
        assert len(learned) <= max_tokens


@pytest.mark.parametrize("more", [-1, 0, 1])
def test_a_prompt_that_leaves_no_room_for_a_caption_is_refused(plain, language, captions, more):
    length = len(plain(PROMPT)["input_ids"])
    with pytest.raises(ConfigError, match=f"max_language_tokens: {length + more} leaves no room"):
        rows(language, captions, PROMPT, max_tokens=length + more)
    assert caption_room(language, PROMPT, length + 2) == 1


def test_queries_and_text_must_fit_into_the_models_positions(decoder, t5):
    check_positions(decoder, 24, 40, "max_tokens")
    with pytest.raises(ConfigError, match=r"max_tokens: 24 queries and 41 .* the 64 positions of"):
        check_positions(decoder, 24, 41, "max_tokens")
    check_positions(t5, 24, 41, "max_tokens")  # its positions are relative
