"""What the tests of models share: small models of all kinds, captions and checkpoints for them."""

import importlib
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import jaxtyping
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizerFast,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from model.checkpoint import Checkpoint, save_tensors, write_checkpoint
from model.exchange.weight_names import TRANSFORMERS
from model.packing import Texts
from model.pretrained.encoder_spec import EncoderSpec
from model.pretrained.language import LanguageModel
from model.qformer import QFormerConfig, Seen
from model.stage1 import Stage1
from model.stage2 import Stage2
from model.start import StartConfig, start_stage1, start_tokenizer
from model.tokenizer import CaptionTokenizer
from pipeline.lineage import Lineage, Parent
from pipeline.storage import Folder

CAPTIONS = [
    "a red boat on a lake",
    "two dogs run over the grass",
    "a man",
    "the old house by the sea at night, with a light in its window",
    "a plate of food and a glass of water",
    "people wait for a green bus",
]


@pytest.fixture(scope="module")
def one_thread():
    """Tensors are small here: on a busy machine threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def captions() -> list[str]:
    """Captions of different lengths."""
    return list(CAPTIONS)


@pytest.fixture(scope="session")
def tokenizer() -> CaptionTokenizer:
    """One token a word of the captions."""
    words = sorted({word for text in CAPTIONS for word in text.replace(",", " ,").split()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate(special + words)}
    return CaptionTokenizer.from_json(BertWordPieceTokenizer(vocab=vocabulary).to_str())


@pytest.fixture(scope="session")
def tiny(tokenizer):
    """Makes the configuration of a Q-Former of three layers."""

    def config(**changes: int | float) -> QFormerConfig:
        small = {
            "vision_width": 10,
            "vocab_size": len(tokenizer),
            "width": 24,
            "num_layers": 3,
            "num_heads": 3,
            "feed_forward_width": 40,
            "num_queries": 4,
            "embed_dim": 6,
            "max_positions": 24,
            "max_text_tokens": 20,
            "dropout": 0.0,
        }
        return QFormerConfig(**(small | changes))

    return config


@pytest.fixture(scope="session")
def scattered_stage1(tiny, tokenizer):
    """Makes a Stage1 whose weights are large enough for every part to matter."""

    def make(**changes: int | float) -> Stage1:
        stage1 = Stage1(tiny(**changes), tokenizer)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in stage1.named_parameters():
                noise = torch.empty_like(parameter).normal_(0, 0.2, generator=generator)
                is_scale = "norm" in name or name.startswith("ln_vision")
                parameter.copy_(1 + noise if is_scale and name.endswith("weight") else noise)
            stage1.temperature.fill_(0.3)
            stage1.itm_head.weight.mul_(2)  # or ITM stays at its prior
        return stage1

    return make


@pytest.fixture(scope="session")
def exact_stage1(scattered_stage1) -> Stage1:
    """In float64, so that sums in another order are the same; not to be changed."""
    return scattered_stage1(max_text_tokens=10).eval().double()


@pytest.fixture(scope="session")
def pair_alone():
    """Cosine and ITM's two logits of one picture and one text, in passes of their own."""

    @torch.no_grad()
    def pair_alone(stage1: Stage1, tokens: Tensor, text: str) -> tuple[float, Tensor]:
        ids, present = stage1.tokenizer.encode([text], stage1.config.max_text_tokens)
        keys = stage1.image_keys(tokens[None])
        queries, _ = stage1.qformer.see(keys)
        words = stage1.text_proj(stage1.qformer.read(Texts.packed(ids, present))[0])
        cosines = [F.cosine_similarity(stage1.vision_proj(q), words, dim=0) for q in queries[0]]
        return float(max(cosines)), stage1.match_logits([Seen(keys)], Texts.packed(ids, present))[0]

    return pair_alone


@pytest.fixture(scope="session")
def save_bert():
    """Saves a random BERT of three layers with a tokenizer, as a hub has it."""
    pieces = ["a", "red", "boat", "##s", "dog", "lake", "on", "the"]

    def save(folder: Path, *, head: bool = True, seed: int = 0, padding: int = 0) -> Path:
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        vocabulary = {piece: number for number, piece in enumerate(special + pieces)}
        config = BertConfig(
            vocab_size=len(vocabulary) + padding,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=40,
            max_position_embeddings=20,
            layer_norm_eps=1e-7,
        )
        torch.manual_seed(seed)
        bert = BertForMaskedLM(config) if head else BertModel(config)
        for weights in bert.parameters():  # BERT's own start would hide most differences
            torch.nn.init.normal_(weights, std=0.3)
        bert.save_pretrained(folder)
        made = BertWordPieceTokenizer(vocab=vocabulary, lowercase=True)
        BertTokenizerFast(tokenizer_object=made._tokenizer).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="module")
def bert(tmp_path_factory, save_bert):
    return save_bert(tmp_path_factory.mktemp("start") / "bert")


@pytest.fixture(scope="module")
def headless(tmp_path_factory, save_bert):
    return save_bert(tmp_path_factory.mktemp("start") / "headless", head=False)


@pytest.fixture(scope="session")
def begin():
    """Makes a stage 1 for image tokens 10 wide that starts as its name says."""
    texts = ["A red boat", "the dogs on the lake", "boats"]

    def start(name: str, seed: int = 0, **options: int | float) -> Stage1:
        config = StartConfig(start=name, num_queries=4, embed_dim=6, max_text_tokens=12, **options)
        return start_stage1(config, start_tokenizer(config, texts), 10, seed).eval()

    return start


@pytest.fixture(scope="session")
def begin_from(begin):
    """The same from a BERT's folder."""

    def start(folder: Path, seed: int = 0) -> Stage1:
        return begin(f"hf:{folder}", seed)

    return start


@pytest.fixture(scope="session")
def weights_of():
    """Gives all weights of a model as numbers that can be compared."""

    def weights(model: torch.nn.Module) -> dict[str, list[float]]:
        return {name: value.tolist() for name, value in model.state_dict().items()}

    return weights


SPEC = EncoderSpec("timm:vit", "random", "ab" * 32, -2, 5, 10, {"crop_pct": 0.9})


@pytest.fixture(scope="session")
def spec() -> EncoderSpec:
    """The encoder that checkpoints were made with."""
    return SPEC


@pytest.fixture(scope="session")
def make_lineage():
    """Makes the lineage of a checkpoint."""

    def lineage(spec: EncoderSpec = SPEC, **config: int) -> Lineage:
        parents = (Parent("features", "f0"), Parent("pairs", "a1"))
        return Lineage("train-stage1", {"seed": 0} | config, parents, {"encoder": spec.to_json()})

    return lineage


@pytest.fixture(scope="session")
def save_checkpoint(make_lineage):
    """Writes a checkpoint of stage 1."""

    def save(home: Path | Folder, stage1: Stage1, *, step: int = 7, **changes) -> Checkpoint:
        folder = home if isinstance(home, Folder) else Folder.at(home)
        made = Checkpoint(folder, 1, step, asdict(stage1.config), make_lineage(), {})
        contents = {
            "weights": save_tensors(stage1.state_dict()),
            "optimizer": save_tensors({"a.step": torch.tensor(float(step))}),
            "tokenizer": stage1.tokenizer.to_json().encode(),
        }
        return write_checkpoint(replace(made, **changes), contents)

    return save


@pytest.fixture(scope="session")
def byte_tokenizer():
    """Makes a byte-level tokenizer, learned from the captions; `</s>` is 0, `<pad>` 1.

    As OPT's it may begin each text with `</s>`, as T5's it may end each with it.
    """

    def make(template: str = "$A") -> PreTrainedTokenizerFast:
        learner = ByteLevelBPETokenizer()
        learner.train_from_iterator(
            CAPTIONS, vocab_size=300, special_tokens=["</s>", "<pad>"], show_progress=False
        )
        backend = learner._tokenizer
        backend.post_processor = TemplateProcessing(single=template, special_tokens=[("</s>", 0)])
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token="</s>", bos_token="</s>", pad_token="<pad>"
        )

    return make


LANGUAGE_WIDTH = 16
"""L of the small language models."""


@pytest.fixture(scope="session")
def make_language():
    """Makes a small language model with weights so large that every part matters, and dropout."""

    def make(family: str, tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
        size = {"vocab_size": len(tokenizer), "hidden_size": LANGUAGE_WIDTH}
        size |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
        torch.manual_seed(0)
        model: torch.nn.Module
        if family == "llama":
            model = LlamaForCausalLM(
                LlamaConfig(**size, intermediate_size=24, num_key_value_heads=1)
            )
        elif family == "opt":  # its positions come from the mask
            shape = {"ffn_dim": 24, "word_embed_proj_dim": LANGUAGE_WIDTH}
            model = OPTForCausalLM(OPTConfig(**size, **shape, dropout=0.5))
        else:
            shape = {"d_model": LANGUAGE_WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 2}
            shape |= {"num_heads": 2, "pad_token_id": 1, "eos_token_id": 0}
            config = T5Config(
                vocab_size=len(tokenizer), decoder_start_token_id=1, dropout_rate=0.5, **shape
            )
            model = T5ForConditionalGeneration(config)
        for name, weights in model.named_parameters():
            is_scale = family == "t5" and "norm" in name  # or it says one word for ever
            torch.nn.init.normal_(weights, 1.0 if is_scale else 0.0, 0.4)
        return LanguageModel(f"hf:{family}", model.train(), tokenizer)

    return make


@pytest.fixture(params=["llama", "opt", "t5"])
def language(request, make_language, byte_tokenizer) -> LanguageModel:
    """Each of the families, with a tokenizer that ends its texts as the family's does."""
    template = "$A </s>" if request.param == "t5" else "$A"
    return make_language(request.param, byte_tokenizer(template))


@pytest.fixture
def scattered_stage2(tiny) -> Stage2:
    """In eval mode, with weights so large that pictures matter."""
    torch.manual_seed(1)
    module = Stage2(tiny(), LANGUAGE_WIDTH)
    for weights in module.parameters():
        torch.nn.init.normal_(weights, std=0.5)
    torch.nn.init.normal_(module.projection.weight, std=3.0)
    return module.eval()


BLIP2_QUERIES, BLIP2_LAYERS = 4, 3
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
    shape = {"num_attention_heads": 2, "num_hidden_layers": BLIP2_LAYERS, "intermediate_size": 40}
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=12, image_size=8, patch_size=4, **(shape | {"num_hidden_layers": 1})
        ),
        qformer_config=Blip2QFormerConfig(
            hidden_size=24, encoder_hidden_size=12, vocab_size=30, **shape
        ),
        text_config=text_config(family, vocab_size),
        num_query_tokens=BLIP2_QUERIES,
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
    """A small BLIP-2 of transformers and our stage 2 with the same weights, in float64."""

    def __init__(self, family: str, tokenizer) -> None:
        self.theirs = make_theirs(family, len(tokenizer))
        config = QFormerConfig(
            vision_width=12,
            width=24,
            num_layers=BLIP2_LAYERS,
            num_heads=2,
            feed_forward_width=40,
            num_queries=BLIP2_QUERIES,
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

    num_queries = BLIP2_QUERIES

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
        return torch.cat([ids.new_full((len(ids), BLIP2_QUERIES), word), ids], dim=1)


@pytest.fixture(params=["opt", "t5"])
def family(request) -> str:
    return request.param


@pytest.fixture
def both(family, byte_tokenizer):
    return Both(family, byte_tokenizer("</s> $A" if family == "opt" else "$A </s>"))


@pytest.fixture(scope="session")
def checked():
    """The modules under test once more, with the shapes of every call checked."""
    names = ["packing", "masks", "layers", "itc", "itm", "itg", "qformer", "ranks", "stage1"]
    names += [f"generation.{name}" for name in ("settings", "nucleus", "beams", "stage1")]
    names += ["matching", "judging", "reranking"]
    plain = {name: importlib.import_module(f"model.{name}") for name in names}
    for name in names:
        del sys.modules[f"model.{name}"]
    with jaxtyping.install_import_hook([f"model.{name}" for name in names], "beartype.beartype"):
        strict = {name: importlib.import_module(f"model.{name}") for name in names}
    for name, module in plain.items():
        sys.modules[f"model.{name}"] = module
        folder, _, last = f"model.{name}".rpartition(".")
        setattr(importlib.import_module(folder), last, module)
    return SimpleNamespace(**{name.replace(".", "_"): strict[name] for name in names})
