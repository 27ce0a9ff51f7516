"""`viaduct caption`: captions of pictures, by the caption head of stage 1 or the language model."""

from dataclasses import dataclass, field
from typing import Annotated

import torch
import tyro

from jobs.subjects import SubjectsConfig, open_subjects
from jobs.texts import OutputConfig, Writer, tell, write_of
from model.checkpoint import Checkpoint
from model.checkpoint_frozen import load_stage2
from model.checkpoint_models import load_stage1
from model.generation.settings import GenerationConfig
from model.generation.stage1 import write_captions
from model.generation.stage2 import write_texts
from model.language_text import caption_prompt
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Caption:
    """Write captions of pictures with a checkpoint of either stage.

    Stage 1 writes with its own caption head, stage 2 with its language model. Pictures are files,
    or rows of features; the vision encoder is the one that the checkpoint was trained on.
    """

    pictures: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
    """Picture files; none where --features is given."""

    checkpoint: str
    """Training folder or checkpoint, of stage 1 or 2."""

    prompt: str | None = None
    """What the captions of stage 2 go on from; by default what its language model was trained with,
    and "a photo of" for an encoder-decoder that was trained without."""

    subjects: SubjectsConfig = field(default_factory=SubjectsConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        self.subjects.check_files(self.pictures)

    def run(self) -> None:
        """Print the captions, and write them where asked to.

        Raises:
            ConfigError: a picture cannot be read, or the checkpoint does not fit what is here.
        """
        checkpoint = Checkpoint.open(self.checkpoint)
        if checkpoint.stage == 1 and self.prompt is not None:
            raise ConfigError("prompt: is for stage 2; stage 1's caption head takes none")
        subjects = open_subjects(checkpoint, self.pictures, self.subjects)
        writer = self._writer(checkpoint)
        texts = write_of("caption", subjects, self.subjects.batch_size, writer)
        about = {"checkpoint": checkpoint.digest, "stage": checkpoint.stage}
        tell(self.output, about, "caption", subjects.names, texts)

    def _writer(self, checkpoint: Checkpoint) -> Writer:
        config, device = self.generation, self.subjects.torch_device
        generator = torch.Generator().manual_seed(config.seed)  # one, whatever the batches
        if checkpoint.stage == 1:
            stage1 = load_stage1(checkpoint, device)
            return lambda tokens: [
                [caption.text for caption in its]
                for its in write_captions(stage1, tokens, config, generator)
            ]
        stage2, language = load_stage2(checkpoint, device)
        trained = str(checkpoint.config["language_model"]["prompt"])
        prompt = caption_prompt(language, trained) if self.prompt is None else self.prompt
        return lambda tokens: write_texts(stage2, language, tokens, prompt, config, generator)
