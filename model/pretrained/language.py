"""A frozen language model, decoder-only (OPT, Llama-like) or encoder-decoder (T5)."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import GenerationConfig


class LanguageModel:
    """A frozen language model in eval mode, with its tokenizer.

    Args:
        name: see `load_language_model`.
        model: of transformers, decoder-only or encoder-decoder.
        tokenizer: its own.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any) -> None:
        self.name = name
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        # What a model brings along (temperature, penalties, lengths) would fill in what a caller
        # of `generate` leaves open.
        start = model.config.decoder_start_token_id if self.is_encoder_decoder else None
        self.model.generation_config = GenerationConfig(decoder_start_token_id=start)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads, and a decoder writes what follows."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def width(self) -> int:
        """L"""
        return int(self.model.get_input_embeddings().embedding_dim)

    @property
    def end(self) -> int:
        """The token that ends a caption."""
        return int(self.tokenizer.eos_token_id)

    @property
    def max_positions(self) -> int | None:
        """Tokens that it can read and write together, the soft prompt among them; None: no limit.

        T5 has none: its positions are relative.
        """
        limit = getattr(self.model.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    def to(self, device: torch.device | str) -> "LanguageModel":
        """Move it to where it is to compute, in the type that is for there (`frozen_dtype`)."""
        device = torch.device(device)
        self.model.to(device, frozen_dtype(device, is_encoder_decoder=self.is_encoder_decoder))
        return self

    def inputs(
        self,
        soft_prompt: Float[Tensor, "B Q L"],
        ids: Int[Tensor, "B T"],
        present: Bool[Tensor, "B T"],
    ) -> dict[str, Tensor]:
        """The soft prompt and then text, as arguments of the model.

        Args:
            soft_prompt: what it reads of pictures.
            ids: of its tokenizer.
            present: which of them are no padding.
        """
        words = self.model.get_input_embeddings()(ids)
        seen = torch.cat([present.new_ones(soft_prompt.shape[:2]), present], dim=1)
        embeds = torch.cat([soft_prompt.to(words.dtype), words], dim=1)
        return {"inputs_embeds": embeds, "attention_mask": seen.long()}

    def scores(
        self,
        soft_prompt: Float[Tensor, "B Q L"],
        ids: Int[Tensor, "B T"],
        present: Bool[Tensor, "B T"],
        targets: Int[Tensor, "B S"],
    ) -> Float[Tensor, "B S V"]:
        """Scores of each target, given what stands before it.

        Args:
            soft_prompt, ids, present: see `inputs`.
            targets: of a decoder-only model `ids` themselves (S = T), of an encoder-decoder what
                its decoder writes; IGNORED where nothing is learned.
        """
        inputs = self.inputs(soft_prompt, ids, present)
        if self.is_encoder_decoder:
            shifted = self.model.prepare_decoder_input_ids_from_labels(labels=targets)
            return self.model(**inputs, decoder_input_ids=shifted, use_cache=False).logits
        # The last query foretells the first token of the text, and so on.
        logits = self.model(**inputs, use_cache=False).logits
        return logits[:, soft_prompt.shape[1] - 1 : -1]


def frozen_dtype(device: torch.device, *, is_encoder_decoder: bool) -> torch.dtype:
    """Type of the frozen weights: float32 on a CPU, where a half is slow; a half on a GPU.

    That is bfloat16, the trainer's autocast type, or float16 where the GPU does not compute in
    bfloat16; but T5 always has bfloat16, because its hidden states do not fit into float16.
    """
    if device.type != "cuda":
        return torch.float32
    if is_encoder_decoder or torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16
