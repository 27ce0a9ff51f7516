"""What all tests share: one Ray session, small pictures, a small BLIP-2, and a loopback web."""

import functools
import http.server
import json
import string
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

settings.register_profile("viaduct", deadline=None)  # a busy machine is no failure
settings.load_profile("viaduct")


@pytest.fixture(scope="session")
def ray_session():
    """Ray with two cores; jobs that run in this process find it and use it."""
    import ray

    ray.init(address="local", num_cpus=2, object_store_memory=200 << 20, include_dashboard=False)
    yield
    ray.shutdown()


def draw(number: int, size: tuple[int, int] = (48, 32)) -> Image.Image:
    """A picture that is a function of its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


@pytest.fixture(scope="session")
def draw_folder():
    """Makes a source folder: `count` pictures, every seventh like the one before it."""

    def make(folder: Path, count: int) -> Path:
        (folder / "images").mkdir(parents=True)
        lines = []
        for number in range(count):
            shown = number - 1 if number % 7 == 6 else number
            file = f"images/{number:04d}.png"
            draw(shown).save(folder / file)
            captions = [f"picture number {number}", f"  picture\tof {shown} ", ""][: number % 4]
            lines.append(json.dumps({"file": file, "captions": captions}))
        (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    return make


@pytest.fixture
def make_folder(tmp_path, draw_folder):
    """Makes a source folder below the test's own folder."""
    return lambda count, name="source": draw_folder(tmp_path / name, count)


WORDS = [
    "a",
    "red",
    "boat",
    "picture",
    "number",
    "of",
    *"0123456789",
    *(f"##{d}" for d in range(10)),
]


def scatter(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights, biases, norms and queries large enough for every part to matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.empty_like(parameter).normal_(0, 0.2, generator=generator)
            is_scale = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + noise if is_scale else noise)


def text_tokenizer(start: str, end: str | None) -> PreTrainedTokenizerFast:
    """[CLS] words [SEP], or </s> words, whose vocabulary is small."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "</s>"]
    backend = Tokenizer(WordPiece({w: n for n, w in enumerate(special + WORDS)}, unk_token="[UNK]"))
    backend.normalizer = Lowercase()
    backend.pre_tokenizer = Whitespace()
    backend.decoder = WordPieceDecoder()
    around = f"{start} $A {end}" if end else f"{start} $A"
    used = [(token, special.index(token)) for token in (start, end) if token]
    backend.post_processor = TemplateProcessing(single=around, special_tokens=used)
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    roles = names | {"bos": "[DEC]"} if end else {"eos": "</s>", "pad": "[PAD]", "unk": "[UNK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{role}_token": token for role, token in roles.items()}
    )


def language_config(family: str, rows: int, end: int) -> PreTrainedConfig:
    """Of a language model of two layers, 16 wide."""
    ids = {"vocab_size": rows, "eos_token_id": end, "pad_token_id": 0}
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"max_position_embeddings": 64, "bos_token_id": 5}
    if family == "opt":
        return OPTConfig(**ids, **size, ffn_dim=24, word_embed_proj_dim=16)
    if family == "llama":
        return LlamaConfig(**ids, **size, intermediate_size=24, num_key_value_heads=1)
    size = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return T5Config(
        **ids, **size, decoder_start_token_id=0, tie_word_embeddings=family != "t5-untied"
    )


@pytest.fixture(scope="session")
def draw_blip2():
    """Makes a small BLIP-2 of transformers, with its processor, and saves both where told to.

    Nothing in it is zero. In stage 2 captions end with another token than the tokenizer's. Its
    language model is an OPT, or of `family`: llama, t5 (whose head is tied) or t5-untied.
    """

    def make(
        kind,
        folder: Path | None = None,
        *,
        family: str = "opt",
        spare_rows: int = 3,
        seed: int = 2,
        **changes: int,
    ):
        retrieves = kind is Blip2ForImageTextRetrieval
        tokenizer = text_tokenizer("[CLS]", "[SEP]") if retrieves else text_tokenizer("</s>", None)
        words = len(tokenizer)  # the processor adds <image>
        num_queries = changes.get("num_queries", 4)
        processor = Blip2Processor(
            BlipImageProcessor(size={"height": 28, "width": 28}),
            tokenizer,
            num_query_tokens=num_queries,
        )
        width = changes.get("width", 24)
        vision = Blip2VisionConfig(
            hidden_size=changes.get("vision_width", 16),
            intermediate_size=20,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        )
        qformer = Blip2QFormerConfig(
            vocab_size=words,
            hidden_size=width,
            num_hidden_layers=changes.get("num_layers", 3),
            num_attention_heads=changes.get("num_heads", 3),
            intermediate_size=2 * width,
            max_position_embeddings=24,
            cross_attention_frequency=changes.get("cross_attention_every", 2),
            use_qformer_text_input=retrieves,
        )
        end = tokenizer.convert_tokens_to_ids("boat")
        text = language_config(family, words + spare_rows, end)
        config = Blip2Config(
            vision_config=vision,
            qformer_config=qformer,
            text_config=text,
            num_query_tokens=num_queries,
            image_text_hidden_size=changes.get("embed_dim", 6),
            image_token_index=words,
        )
        model = kind(config).eval()
        if family == "t5-untied":  # transformers ties all T5s, but leaves another head alone
            head = model.language_model.lm_head
            head.weight = torch.nn.Parameter(torch.empty_like(head.weight))
        scatter(model, seed)
        if folder is not None:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        return model, processor

    return make


@pytest.fixture(scope="session")
def save_clip():
    """Saves a small random CLIP with its processor, as a hub has it."""

    def save(folder: Path, seed: int = 0) -> Path:
        letters = string.ascii_lowercase + string.digits
        pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
        vocabulary = {w: n for n, w in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
        tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[])
        size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
        size |= {"num_attention_heads": 2}
        text = CLIPTextConfig(
            vocab_size=len(vocabulary),
            max_position_embeddings=40,
            bos_token_id=vocabulary["<|startoftext|>"],
            eos_token_id=vocabulary["<|endoftext|>"],
            pad_token_id=vocabulary["<|endoftext|>"],
            **size,
        )
        vision = CLIPVisionConfig(image_size=28, patch_size=14, **size)
        torch.manual_seed(seed)
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
        model = CLIPModel(config)
        for weights in model.parameters():  # its own start would hide most differences
            if weights.ndim > 1:
                torch.nn.init.normal_(weights, std=0.4)
        model.save_pretrained(folder)
        whole = {"shortest_edge": 28}, {"height": 28, "width": 28}
        images = CLIPImageProcessor(size=whole[0], crop_size=whole[1])
        CLIPProcessor(images, tokenizer).save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def serve():
    """Serves a folder on loopback HTTP; returns its address."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    def start(folder: Path) -> str:
        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
