"""The Q-Former: a BERT whose self-attention is shared by learned queries and by text.

BLIP-2, section 3.1 and figure 2. The rows of a sequence are [queries; text]. Every other layer lets
the queries look at the picture; the feed-forward nets of queries and text are apart. Which rows see
which is what tells the objectives apart, and each way of looking has a method of its own here.
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pipeline.errors import ConfigError

INIT_STD = 0.02
"""Standard deviation of what starts from scratch in a Q-Former 768 wide, as in BERT."""


def init_std(width: int) -> float:
    """That of any other width, so that a layer has as much to say as one of 768."""
    return INIT_STD * (768 / width) ** 0.5


KeysValues = tuple[Float[Tensor, "B H _ K"], Float[Tensor, "B H _ K"]]
"""Keys and values of H heads of width K = D / H, over S positions."""

ImageKeys = list[KeysValues]
"""Keys and values of a picture's tokens, for each layer with cross-attention."""


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
        self.embeddings = Embeddings(config, with_text=with_text)
        self.layers = nn.ModuleList(
            Layer(config, looks=number % config.cross_attention_every == 0, with_text=with_text)
            for number in range(config.num_layers)
        )
        self.head = LanguageHead(config) if with_text else None
        self.apply(partial(initialise, std=init_std(config.width)))
        nn.init.normal_(self.query_tokens, std=INIT_STD)

    def image_keys(self, tokens: Float[Tensor, "B P C"]) -> ImageKeys:
        """What the cross-attention of each layer sees of the pictures; independent of the rest."""
        looks = (layer.look for layer in self.layers if isinstance(layer, Layer))
        return [look.keys_values(tokens) for look in looks if look is not None]

    def see(self, image: ImageKeys) -> tuple[Float[Tensor, "B Q D"], list[KeysValues]]:
        """Queries see the picture and each other.

        Returns:
            The query outputs, and the queries' self-attention keys and values of each layer, from
            which text may go on (`write`).
        """
        queries = self.query_tokens.expand(image[0][0].shape[0], -1, -1)
        return self._run(self.embeddings(queries), image=image)

    def read(self, ids: Int[Tensor, "B T"], present: Bool[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Text sees text, in both directions."""
        hidden, _ = self._run(self.embeddings(ids=ids), mask=present[:, None, None, :])
        return hidden

    def see_and_read(
        self, image: ImageKeys, ids: Int[Tensor, "B T"], present: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B Q D"]:
        """Queries and text see each other, and the queries the picture; the query outputs."""
        queries = self.query_tokens.expand(len(ids), -1, -1)
        everyone = torch.cat([present.new_ones(queries.shape[:2]), present], dim=1)
        hidden, _ = self._run(
            self.embeddings(queries, ids), image=image, mask=everyone[:, None, None, :]
        )
        return hidden[:, : self.config.num_queries]

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
        num_tokens = ids.shape[1]
        num_past = past[0][0].shape[2]
        num_queries = self.config.num_queries
        first = num_past - num_queries
        seen = torch.cat([present.new_ones(len(ids), num_queries), present], dim=1)
        earlier = present.new_ones(num_tokens, num_past + num_tokens).tril(num_past)
        hidden, past = self._run(
            self.embeddings(ids=ids, first=first),
            past=past,
            mask=seen[:, None, None, :] & earlier,
        )
        if self.head is None or self.embeddings.words is None:
            raise TypeError("a Q-Former without text cannot write")
        return self.head(hidden, self.embeddings.words.weight), past

    def _run(
        self,
        hidden: Float[Tensor, "B S D"],
        *,
        image: ImageKeys | None = None,
        past: list[KeysValues] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> tuple[Float[Tensor, "B S D"], list[KeysValues]]:
        """All layers; where `image` is given, the first Q rows are queries and see it."""
        num_queries = 0 if image is None else self.config.num_queries
        looked = iter(image or [])
        present: list[KeysValues] = []
        for number, layer in enumerate(self.layers):
            picture = next(looked) if image is not None and layer.look is not None else None
            before = None if past is None else past[number]
            hidden, kept = layer(hidden, num_queries, picture, before, mask)
            present.append(kept)
        return hidden, present


class Embeddings(nn.Module):
    """Queries as they are, text as words and positions; norm and dropout over both."""

    def __init__(self, config: QFormerConfig, *, with_text: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.width) if with_text else None
        self.positions = nn.Embedding(config.max_positions, config.width) if with_text else None
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        queries: Float[Tensor, "B Q D"] | None = None,
        ids: Int[Tensor, "B T"] | None = None,
        first: int = 0,
    ) -> Float[Tensor, "B S D"]:
        """[queries; text]; the text's positions begin at `first`, whatever stands before it."""
        parts = [] if queries is None else [queries]
        if ids is not None:
            if self.words is None or self.positions is None:
                raise TypeError("a Q-Former without text cannot read")
            places = torch.arange(first, first + ids.shape[1], device=ids.device)
            parts.append(self.words(ids) + self.positions(places))
        return self.dropout(self.norm(torch.cat(parts, dim=1)))


class Layer(nn.Module):
    """Self-attention, for queries perhaps a look at the picture, and a feed-forward net each."""

    def __init__(self, config: QFormerConfig, *, looks: bool, with_text: bool) -> None:
        super().__init__()
        self.attention = Attention(config, config.width)
        self.look = Attention(config, config.vision_width) if looks else None
        self.query_feed_forward = FeedForward(config)
        self.text_feed_forward = FeedForward(config) if with_text else None

    def forward(
        self,
        hidden: Float[Tensor, "B S D"],
        num_queries: int,
        image: KeysValues | None,
        past: KeysValues | None,
        mask: Bool[Tensor, "..."] | None,
    ) -> tuple[Float[Tensor, "B S D"], KeysValues]:
        keys_values = self.attention.keys_values(hidden)
        if past is not None:
            keys_values = (
                torch.cat([past[0], keys_values[0]], dim=2),
                torch.cat([past[1], keys_values[1]], dim=2),
            )
        hidden = self.attention(hidden, keys_values, mask)
        queries, text = hidden[:, :num_queries], hidden[:, num_queries:]
        rows = []
        if num_queries:
            if self.look is not None and image is not None:
                queries = self.look(queries, image, None)
            rows.append(self.query_feed_forward(queries))
        if text.shape[1]:
            if self.text_feed_forward is None:
                raise TypeError("a Q-Former without text cannot read")
            rows.append(self.text_feed_forward(text))
        return torch.cat(rows, dim=1), keys_values


class Attention(nn.Module):
    """Multi-head attention with its output, residual and norm, as in BERT."""

    def __init__(self, config: QFormerConfig, source_width: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout_rate = config.dropout
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(source_width, config.width)
        self.value = nn.Linear(source_width, config.width)
        self.output = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def keys_values(self, source: Float[Tensor, "B S W"]) -> KeysValues:
        """Keys and values of what is attended to."""
        return self._heads(self.key(source)), self._heads(self.value(source))

    def forward(
        self,
        hidden: Float[Tensor, "B R D"],
        keys_values: KeysValues,
        mask: Bool[Tensor, "..."] | None,
    ) -> Float[Tensor, "B R D"]:
        """`mask` is true where a row may see a position."""
        attended = F.scaled_dot_product_attention(
            self._heads(self.query(hidden)),
            *keys_values,
            attn_mask=mask,
            dropout_p=self.dropout_rate if self.training else 0.0,
        )
        attended = attended.transpose(1, 2).flatten(2)
        return self.norm(hidden + self.dropout(self.output(attended)))

    def _heads(self, rows: Float[Tensor, "B S D"]) -> Float[Tensor, "B H S K"]:
        return rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear maps with GELU between them, residual and norm, as in BERT."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.feed_forward_width)
        self.down = nn.Linear(config.feed_forward_width, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(self, hidden: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        return self.norm(hidden + self.dropout(self.down(F.gelu(self.up(hidden)))))


class LanguageHead(nn.Module):
    """BERT's language-model head; its last map is tied to the word embeddings."""

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self, hidden: Float[Tensor, "B T D"], words: Float[Tensor, "V D"]
    ) -> Float[Tensor, "B T V"]:
        return F.linear(self.norm(F.gelu(self.dense(hidden))), words, self.bias)


def initialise(module: nn.Module, std: float) -> None:
    """Weights of a linear map or an embedding from a normal distribution; its bias is zero."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
