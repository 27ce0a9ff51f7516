"""Stage 2 is Blip2ForConditionalGeneration: with the same weights the same loss and captions."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
    PretrainedConfig,
    T5Config,
)

from model.exchange.weight_names import TRANSFORMERS
from model.generation.settings import GenerationConfig
from model.generation.stage2 import write_texts
from model.language_text import CAPTION_PROMPT, language_batch, prompt_ids
from model.pretrained.language import LanguageModel
from model.qformer import QFormerConfig
from model.stage2 import Stage2, Stage2Batch

QUERIES, LAYERS = 4, 3
NORMS = ("post_layernorm", "LayerNorm", "layernorm", "layer_norm")


def text_config(family: str, vocab_size: int) -> PretrainedConfig:
    """With one word more than the tokenizer has: that is where transformers puts pictures."""
    if family == "opt":
        size = {"hidden_size": 16, "ffn_dim": 24, "word_embed_proj_dim": 16}
        size |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
        return OPTConfig(vocab_size=vocab_size + 1, pad_token_id=1, eos_token_id=0, **size)
    size = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    size |= {"pad_token_id": 1, "eos_token_id": 0, "decoder_start_token_id": 1}
    return T5Config(vocab_size=vocab_size + 1, **size)


def make_theirs(family: str, vocab_size: int) -> Blip2ForConditionalGeneration:
    """A small one in float64; nothing in it starts at zero or one, as queries and norms do."""
    torch.manual_seed(0)
    shape = {"num_attention_heads": 2, "num_hidden_layers": LAYERS, "intermediate_size": 40}
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=12, image_size=8, patch_size=4, **(shape | {"num_hidden_layers": 1})
        ),
        qformer_config=Blip2QFormerConfig(
            hidden_size=24, encoder_hidden_size=12, vocab_size=30, **shape
        ),
        text_config=text_config(family, vocab_size),
        num_query_tokens=QUERIES,
        image_token_index=vocab_size,
    )
    model = Blip2ForConditionalGeneration(config)
    for name, weights in model.named_parameters():
        is_scale = any(norm in name for norm in NORMS) and name.endswith("weight")
        torch.nn.init.normal_(weights, 1.0 if is_scale else 0.0, 0.4)
    torch.nn.init.normal_(model.language_projection.weight, std=3.0)
    # Words are tied to the output: with large ones a model only repeats what came last.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    return model.double().eval()


class Both:
    """The two models, with the same weights, in float64."""

    def __init__(self, family: str, tokenizer) -> None:
        self.theirs = make_theirs(family, len(tokenizer))
        config = QFormerConfig(
            vision_width=12,
            width=24,
            num_layers=LAYERS,
            num_heads=2,
            feed_forward_width=40,
            num_queries=QUERIES,
        )
        self.ours = Stage2(config, 16).double().eval()
        self.ours.ln_vision.eps = 1e-6  # transformers'
        weights = self.theirs.state_dict()
        self.ours.load_state_dict(
            {n: weights[TRANSFORMERS.theirs(n)] for n in self.ours.state_dict()}
        )
        self.language = LanguageModel(f"hf:{family}", self.theirs.language_model, tokenizer)
        generator = torch.Generator().manual_seed(1)
        self.pixels = torch.randn(4, 3, 8, 8, generator=generator).double()

    def tokens(self) -> Tensor:
        """Image tokens: what the vision tower gives its last norm."""
        seen = []
        norm = self.theirs.vision_model.post_layernorm
        handle = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        self.theirs.vision_model(self.pixels)
        handle.remove()
        return seen[0]

    def pictures(self, ids: Tensor) -> Tensor:
        """`ids` after the words that stand for pictures."""
        word = self.theirs.config.image_token_id
        return torch.cat([ids.new_full((len(ids), QUERIES), word), ids], dim=1)


@pytest.fixture(params=["opt", "t5"])
def family(request) -> str:
    return request.param


@pytest.fixture
def both(family, byte_tokenizer):
    return Both(family, byte_tokenizer("</s> $A" if family == "opt" else "$A </s>"))


@torch.no_grad()
def test_the_loss_is_theirs(both, family, captions):
    texts = captions[:4]
    ids, present, targets = language_batch(
        both.language, texts, prompt=CAPTION_PROMPT, max_tokens=32, split_draw=[0.2, 0.9, 0.5, 0.0]
    )
    assert not present.all()
    ours = both.ours(Stage2Batch(both.tokens(), ids, present, targets), both.language)["loss"]
    unlearned = targets.new_full((4, QUERIES if family == "opt" else 0), -100)
    labels = torch.cat([unlearned, targets], dim=1)
    found = both.theirs(
        pixel_values=both.pixels,
        input_ids=both.pictures(ids),
        attention_mask=torch.cat([present.new_ones(4, QUERIES), present], dim=1).long(),
        labels=labels,
    )
    theirs = found.loss
    if family == "opt":  # rounded to float32, so it is reckoned anew from their scores
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
        theirs = F.cross_entropy(found.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert ours.dtype == theirs.dtype == torch.float64
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-9)
    other = both.ours(Stage2Batch(both.tokens().flip(0), ids, present, targets), both.language)[
        "loss"
    ]
    assert abs(other - theirs) > 1e-3  # pictures matter


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["", CAPTION_PROMPT])
def test_greedy_captions_are_theirs(both, prompt):
    language = both.language
    ids = torch.tensor([prompt_ids(language, prompt)] * 4)
    assert ids[0].tolist() == language.tokenizer(prompt)["input_ids"]  # as their processor has it
    start = both.theirs.language_model.generation_config
    start.eos_token_id, start.pad_token_id = language.end, language.end
    written = both.theirs.generate(
        pixel_values=both.pixels, input_ids=both.pictures(ids), max_new_tokens=12, do_sample=False
    )
    if not language.is_encoder_decoder:  # given ids too, it gives them back
        written = written[:, QUERIES + ids.shape[1] :]
    theirs = language.tokenizer.batch_decode(written, skip_special_tokens=True)
    config = GenerationConfig(method="greedy", min_tokens=0, max_tokens=13)
    ours = write_texts(both.ours, language, both.tokens(), prompt, config)
    assert ours == [[text.strip()] for text in theirs]
    assert len({text for (text,) in ours}) > 1
