"""The Q-Former: a BERT whose self-attention is shared by learned queries and by text.

BLIP-2, section 3.1 and figure 2. Every other layer lets the queries look at the picture; the
feed-forward nets of queries and text are apart. Which rows see which (`model.masks`) is what tells
the objectives apart, and each way of looking has a method of its own here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from model import masks
from model.layers import (
    INIT_STD,
    Attention,
    Embeddings,
    FeedForward,
    KeysValues,
    LanguageHead,
    LookedAt,
    init_std,
    initialise,
)
from model.packing import Repeated, Texts, View, query_places, text_places
from model.tied_words import TiedWords
from pipeline.errors import ConfigError

ImageKeys = list[KeysValues]
"""Keys and values of a picture's tokens, for each layer with cross-attention."""


@dataclass(frozen=True)
class Seen:
    """Pictures that sequences look at."""

    keys: ImageKeys
    times: int = 1
    """How many sequences look at each."""
    picked: Int[Tensor, " N"] | None = None
    """Which of the pictures; None for each of them, in order."""


@dataclass(frozen=True, kw_only=True)
class QFormerConfig:
    """Size and shape of a Q-Former; stored with its weights."""

    vision_width: int
    """C"""
    vocab_size: int = 30_523
    """V, [DEC] included."""
    width: int = 768
    """D"""
    num_layers: int = 12
    num_heads: int = 12
    feed_forward_width: int = 3072
    num_queries: int = 32
    """Q"""
    embed_dim: int = 256
    """E"""
    cross_attention_every: int = 2
    """Layers 0, n, 2n, ... look at the picture."""
    max_positions: int = 512
    """Text positions that have an embedding."""
    max_text_tokens: int = 32
    """T at most; longer captions are cut."""
    dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    vision_norm_eps: float = 1e-5
    """Of `ln_vision`; LAVIS's. That of models out of transformers is 1e-6."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "dropout" and value <= 0:
                raise ConfigError(f"{name}: {value} is not positive")
        if self.width % self.num_heads:
            raise ConfigError(f"width: {self.width} is no multiple of num_heads={self.num_heads}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: {self.dropout} is not in [0, 1)")
        check_text_length(self.max_text_tokens, self.max_positions)


def check_text_length(max_text_tokens: int, max_positions: int) -> None:
    """Raises ConfigError where the longest text has more tokens than there are positions."""
    if max_text_tokens > max_positions:
        raise ConfigError(f"max_text_tokens: {max_text_tokens}, but max_positions={max_positions}")


class QFormer(nn.Module):
    """Queries and text in, hidden states out.

    Args:
        config: see there.
        with_text: whether it reads and writes text; stage 2 needs only the queries' side.
    """

    def __init__(self, config: QFormerConfig, *, with_text: bool = True) -> None:
        super().__init__()
        self.config = config
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_queries, config.width))
        self.embeddings = Embeddings(
            config.width,
            config.dropout,
            config.layer_norm_eps,
            vocab_size=config.vocab_size,
            max_positions=config.max_positions,
            with_text=with_text,
        )
        self.layers = nn.ModuleList(
            Layer(config, looks=number % config.cross_attention_every == 0, with_text=with_text)
            for number in range(config.num_layers)
        )
        self.head = (
            LanguageHead(config.width, config.vocab_size, config.layer_norm_eps)
            if with_text
            else None
        )
        self.apply(partial(initialise, std=init_std(config.width)))
        nn.init.normal_(self.query_tokens, std=INIT_STD)

    def compile_layers(self, backend: str = "inductor") -> None:
        """Have torch.compile make the layers faster; results differ in their last bits.

        Args:
            backend: of torch.compile; its own needs a C++ compiler.
        """
        for layer in self.layers:
            layer.compile(dynamic=True, fullgraph=True, backend=backend)

    def image_keys(
        self, tokens: Float[Tensor, "B P C"], norm: nn.LayerNorm, *, last: bool = True
    ) -> ImageKeys:
        """What cross-attention sees of pictures, for all uses of a step.

        Args:
            tokens: image tokens as cached.
            norm: `ln_vision`, which they go through first.
            last: also in the last layer, which `see_and_write` does not ask.
        """
        tokens = tokens.to(norm.weight.dtype)
        normed = F.layer_norm(tokens, norm.normalized_shape, eps=norm.eps)
        layers = self.layers if last else self.layers[:-1]
        looks = (layer.look for layer in layers if isinstance(layer, Layer))
        return [look.keys_values_of_norm(normed, norm) for look in looks if look is not None]

    def see(self, image: ImageKeys) -> tuple[Float[Tensor, "B Q D"], list[KeysValues]]:
        """Queries see the picture and each other.

        Returns:
            The query outputs, and the queries' self-attention keys and values of each layer, from
            which text may go on (`write`).
        """
        num_pictures, num_queries = image[0][0].shape[0], self.config.num_queries
        rows = self.embeddings(self._queries(num_pictures))
        rows, kept = self._run(rows, View(num_pictures, num_queries), images=[Seen(image)])
        return rows.unflatten(0, (num_pictures, num_queries)), kept

    def read(self, texts: Texts) -> Float[Tensor, "R D"]:
        """Text sees text, in both directions; the outputs of its tokens."""
        rows = self.embeddings(tokens=texts.tokens, positions=texts.position)
        view = View(len(texts.ids), texts.width, texts.places, masks.text_sees_text(texts.present))
        return self._run(rows, view)[0]

    def see_and_read(
        self, images: Sequence[Seen], texts: Texts, repeated: Repeated | None = None
    ) -> Float[Tensor, "N Q D"]:
        """Queries and text see each other, and the queries the pictures; the query outputs.

        Args:
            images: the pictures.
            texts: to be read, in the order of the pictures; those of one lie side by side.
            repeated: which of them are equal, if any are. Until its queries first look at a picture
                a sequence is its text's alone, and is computed once for all that have that text;
                what dropout leaves out until then is left out of all of them.
        """
        if self.config.num_layers == 1:
            repeated = None
        num_texts, num_queries = len(texts.ids), self.config.num_queries
        wanted = torch.arange(num_texts * num_queries, device=texts.ids.device)
        first, shared = texts, None
        if repeated is not None:
            first = repeated.distinct
            num_first = len(first.ids) * num_queries
            shared = _Shared(self._seeing(first), num_first, repeated.which, repeated.rows(texts))
        rows = self.embeddings(self._queries(len(first.ids)), first.tokens, first.position)
        view = self._seeing(texts)
        rows, _ = self._run(rows, view, images=images, wanted=wanted, shared=shared)
        return rows.unflatten(0, (num_texts, num_queries))

    def _seeing(self, texts: Texts) -> View:
        """Of queries and text that see each other."""
        num_texts, num_queries = len(texts.ids), self.config.num_queries
        width = num_queries + texts.width
        queries = query_places(num_texts, num_queries, width, texts.ids.device)
        places = torch.cat([queries, text_places(texts, width, num_queries)])
        return View(num_texts, width, places, masks.all_see_all(texts.present, num_queries))

    def see_read_and_write(
        self,
        image: ImageKeys,
        texts: Texts,
        to_write: Texts | None = None,
    ) -> tuple[Float[Tensor, "B Q D"], Float[Tensor, "B D"], Float[Tensor, "W D"] | None]:
        """`see`, `read` and, after what was seen, `write`, in one pass.

        Args:
            image: of the pictures.
            texts: to be read.
            to_write: the same texts with [DEC], each without its last token; None leaves it out.

        Returns:
            The query outputs, the output of each text's first token, and that of each token that
            is written.
        """
        num_pairs, num_queries = len(texts.ids), self.config.num_queries
        both = num_queries + texts.width
        width = both if to_write is None else both + texts.width
        mask = masks.apart if to_write is None else masks.apart_and_written
        queries = query_places(num_pairs, num_queries, width, texts.ids.device)
        places = [queries, text_places(texts, width, num_queries)]
        tokens, positions = [texts.tokens], [texts.position]
        if to_write is not None:
            places.append(text_places(to_write, width, both))
            tokens.append(to_write.tokens)
            positions.append(to_write.position)
        rows = self.embeddings(self._queries(num_pairs), torch.cat(tokens), torch.cat(positions))
        # Nothing reads the last outputs of text that was read, but for its first token.
        every = torch.arange(len(rows), device=rows.device)
        num_read = len(queries) + len(texts.places)
        wanted = torch.cat([every[: len(queries)], len(queries) + texts.first, every[num_read:]])
        view = View(num_pairs, width, torch.cat(places), mask(texts.present, num_queries))
        rows, _ = self._run(rows, view, images=[Seen(image)], wanted=wanted)
        outputs, first, written = rows.split(
            [len(queries), num_pairs, len(rows) - len(queries) - num_pairs]
        )
        outputs = outputs.unflatten(0, (num_pairs, num_queries))
        return outputs, first, None if to_write is None else written

    def see_and_write(self, image: ImageKeys, to_write: Texts) -> Float[Tensor, "W D"]:
        """`see` and, after what was seen, `write`, in one pass; the outputs of what is written.

        Args:
            image: of the pictures, without the last layer: its queries are seen by nobody.
            to_write: as `see_read_and_write` has it.
        """
        num_texts, num_queries = len(to_write.ids), self.config.num_queries
        width, device = num_queries + to_write.width, to_write.ids.device
        queries = query_places(num_texts, num_queries, width, device)
        places = torch.cat([queries, text_places(to_write, width, num_queries)])
        rows = self.embeddings(self._queries(num_texts), to_write.tokens, to_write.position)
        wanted = torch.arange(len(queries), len(rows), device=device)
        mask = masks.seen_and_written(num_queries, to_write.width, device)
        view = View(num_texts, width, places, mask)
        images = [Seen(image)]
        return self._run(rows, view, images=images, wanted=wanted, queries_wanted=False)[0]

    def write(
        self,
        past: list[KeysValues],
        ids: Int[Tensor, "B T"],
        present: Bool[Tensor, "B S"],
    ) -> tuple[Float[Tensor, "B T V"], list[KeysValues]]:
        """Each token sees what is past and the text up to itself.

        Args:
            past: keys and values of the queries (from `see`), or of queries and earlier text (from
                `write`).
            ids: the text that follows.
            present: of all text so far, S = earlier text and T.

        Returns:
            Scores of the token that comes after each, and the past with this text.
        """
        num_texts, num_tokens = ids.shape
        num_queries = self.config.num_queries
        first = past[0][0].shape[1] - num_queries
        positions = torch.arange(first, first + num_tokens, device=ids.device)
        rows = self.embeddings(tokens=ids.flatten(), positions=positions.repeat(num_texts))
        mask = masks.written(present, num_queries, num_tokens)
        view = View(num_texts, num_tokens, mask=mask)
        rows, past = self._run(rows, view, past=past)
        return self.scores(rows).unflatten(0, (num_texts, num_tokens)), past

    def tied_words(self) -> TiedWords:
        """The word embeddings for `scores`; a step that learns asks for them first of all."""
        if self.embeddings.words is None:
            raise TypeError("a Q-Former without text cannot write")
        return TiedWords(self.embeddings.words.weight)

    def scores(
        self, rows: Float[Tensor, "R D"], words: TiedWords | None = None
    ) -> Float[Tensor, "R V"]:
        """Of the token that comes after each that is written, from its output."""
        if self.head is None:
            raise TypeError("a Q-Former without text cannot write")
        scores: Tensor = self.head(rows, words or self.tied_words())
        return scores

    def _queries(self, num_sequences: int) -> Float[Tensor, "R D"]:
        return self.query_tokens.expand(num_sequences, -1, -1).flatten(0, 1)

    def _run(
        self,
        rows: Float[Tensor, "R D"],
        view: View,
        *,
        images: Sequence[Seen] = (),
        past: list[KeysValues] | None = None,
        wanted: Int[Tensor, " W"] | None = None,
        queries_wanted: bool = True,
        shared: "_Shared | None" = None,
    ) -> tuple[Float[Tensor, "W D"], list[KeysValues]]:
        """All layers.

        Args:
            rows: where there are images, the first are the queries of all sequences.
            view: of the rows.
            images: what the queries see.
            past: keys and values that stand before those of the rows.
            wanted: rows whose outputs are wanted, all queries and some text; None for all.
            queries_wanted: whether the queries are among them.
            shared: of the sequences that `rows` are of, where fewer stand for all until the
                queries first look at the pictures.

        Returns:
            Their outputs, and the keys and values of each layer.
        """
        num_queries = self.config.num_queries if images else 0
        looked_at = [
            [LookedAt(keys, image.times * num_queries, image.picked) for keys in image.keys]
            for image in images
        ]
        seen = zip(*looked_at, strict=True)
        num_seeing = view.num_sequences * num_queries
        present: list[KeysValues] = []
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            if last and not queries_wanted:
                num_seeing = 0
            looks = num_seeing and layer.look is not None
            pictures = list(next(seen)) if looks else []
            before = None if past is None else past[number]
            these = wanted if last else None
            rows, kept = layer(rows, view, num_seeing, pictures, before, these, shared)
            shared = None
            present.append(kept)
        return rows, present


class _Shared(NamedTuple):
    """Sequences that stand for several others each."""

    view: View
    num_queries: int
    """Rows that are queries, of all of them."""
    sequence: Int[Tensor, " N"]
    """Which of them stands for each of the others."""
    text: Int[Tensor, " T"]
    """Which of their rows of text stands for each of the others' rows."""


class Layer(nn.Module):
    """Self-attention, for queries perhaps a look at the picture, and a feed-forward net each."""

    def __init__(self, config: QFormerConfig, *, looks: bool, with_text: bool) -> None:
        super().__init__()
        width, dropout, eps = config.width, config.dropout, config.layer_norm_eps
        attention = partial(Attention, width, num_heads=config.num_heads, dropout=dropout, eps=eps)
        feed_forward = partial(FeedForward, width, config.feed_forward_width, dropout, eps)
        self.attention = attention(width)
        self.look = attention(config.vision_width) if looks else None
        self.query_feed_forward = feed_forward()
        self.text_feed_forward = feed_forward() if with_text else None

    def forward(
        self,
        rows: Float[Tensor, "R D"],
        view: View,
        num_queries: int,
        pictures: list[LookedAt],
        past: KeysValues | None,
        wanted: Int[Tensor, " W"] | None,
        shared: _Shared | None = None,
    ) -> tuple[Float[Tensor, "W D"], KeysValues]:
        """As `QFormer._run`, for one layer.

        Args:
            num_queries: rows that are queries and whose outputs are wanted.
            pictures: that they look at.
            shared: as there.
        """
        if shared is not None:
            view = shared.view
        rows, keys_values = self.attention.look_at_each_other(rows, view, past, wanted)
        of_queries = num_queries if shared is None else shared.num_queries
        queries, text = rows.split([of_queries, len(rows) - of_queries])
        parts = []
        if num_queries:
            if shared is not None:
                each = queries.unflatten(0, (view.num_sequences, -1))
                queries = each.index_select(0, shared.sequence).flatten(0, 1)
            if self.look is not None and pictures:
                queries = self.look.look(queries, pictures)
            parts.append(self.query_feed_forward(queries))
        if len(text) or not num_queries:
            if self.text_feed_forward is None:
                raise TypeError("a Q-Former without text cannot read")
            text = self.text_feed_forward(text)
            parts.append(text if shared is None else text.index_select(0, shared.text))
        return torch.cat(parts), keys_values
