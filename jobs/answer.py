"""`viaduct answer`: answers to a question about pictures, by the language model of stage 2."""

from dataclasses import dataclass, field
from typing import Annotated

import torch
import tyro

from jobs.subjects import SubjectsConfig, open_subjects
from jobs.texts import OutputConfig, tell, write_of
from model.checkpoint import Checkpoint
from model.checkpoint_frozen import load_stage2
from model.generation.settings import GenerationConfig
from model.generation.stage2 import write_texts
from model.language_text import QUESTION_PROMPT
from pipeline.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Answer a question about each picture with a checkpoint of stage 2.

    The language model goes on from "Question: ... Answer:". Pictures are files, or rows of
    features; the vision encoder is the one that the checkpoint was trained on.
    """

    pictures: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
    """Picture files; none where --features is given."""

    checkpoint: str
    """Training folder or checkpoint of stage 2."""

    question: str
    """Asked about each picture."""

    subjects: SubjectsConfig = field(default_factory=SubjectsConfig)
    generation: GenerationConfig = field(
        default_factory=lambda: GenerationConfig(num_beams=5, min_tokens=2, max_tokens=11)
    )
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ConfigError("question: is empty")
        self.subjects.check_files(self.pictures)

    def run(self) -> None:
        """Print the answers, and write them where asked to.

        Raises:
            ConfigError: a picture cannot be read, or the checkpoint does not fit what is here.
        """
        checkpoint = Checkpoint.open(self.checkpoint)
        if checkpoint.stage != 2:
            raise ConfigError(
                f"{checkpoint.folder}: is of stage 1, whose caption head answers no questions; "
                "name a checkpoint of stage 2"
            )
        subjects = open_subjects(checkpoint, self.pictures, self.subjects)
        stage2, language = load_stage2(checkpoint, self.subjects.torch_device)
        prompt = QUESTION_PROMPT.format(self.question.strip())
        generator = torch.Generator().manual_seed(self.generation.seed)
        texts = write_of(
            "answer",
            subjects,
            self.subjects.batch_size,
            lambda tokens: write_texts(
                stage2, language, tokens, prompt, self.generation, generator
            ),
        )
        about = {"checkpoint": checkpoint.digest, "stage": 2, "question": self.question}
        tell(self.output, about, "answer", subjects.names, texts)
