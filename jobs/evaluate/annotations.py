"""`viaduct evaluate annotations`: from an annotation file and its pictures to recall, at once."""

import logging
from dataclasses import dataclass, field, replace
from typing import Annotated

import tyro

from jobs.cluster import ClusterConfig, session
from jobs.compute import ComputeConfig
from jobs.curate import Curate
from jobs.embed import Embed
from jobs.evaluate.control import ControlConfig
from jobs.evaluate.leaks import LeaksConfig
from jobs.evaluate.retrieval import Evaluate, Measured, tell
from jobs.features import Features
from jobs.ingest import Ingest
from jobs.shards import PoolConfig
from model.checkpoint import Checkpoint
from model.checkpoint_frozen import encoder_of
from model.checkpoint_models import check_features
from pipeline.annotations import AnnotationSource
from pipeline.curate import SplitConfig
from pipeline.errors import ConfigError
from pipeline.near_duplicates import NearDuplicateConfig
from pipeline.sources import open_source
from pipeline.storage import below
from pipeline.url_tables import SourceColumns

logger = logging.getLogger(__name__)

_TEST = "test"


@dataclass(frozen=True, kw_only=True)
class EvaluateAnnotations:
    """Evaluate on an annotation set: the captions JSON of COCO, or Karpathy's splits.

    Makes `raw`, `pairs`, `features`, `embeddings` and `evaluation.json` in OUT, as ingest, curate,
    features, embed and evaluate do, with all pictures and captions as they are: no filter, no
    near-duplicates united, everything in the split `test`. The vision encoder is that of the
    checkpoint. The same command goes on where it was stopped.
    """

    annotations: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The JSON."""

    checkpoint: str
    """Training folder or checkpoint of stage 1."""

    out: str
    """Folder or URI of all that is made."""

    picture_folder: str | None = None
    """Folder of the pictures that FILE lists; by default the one it lies in itself."""

    annotation_split: str | None = None
    """Of Karpathy's format the split of his that is measured on, `test` by default; COCO's has
    none and is taken whole."""

    allow_missing: bool = False
    """Go on where pictures of FILE cannot be read. Recall is higher among fewer."""

    rerank: int = 128
    """Candidates of each query that ITM puts in order, as of `viaduct evaluate`."""

    weights: str | None = None
    """The vision encoder's .safetensors file, if its weights came from one."""

    json: bool = False
    """Print one JSON object instead of a table."""

    training: tuple[str, ...] = ()
    """Datasets `pairs` that the checkpoint was trained on, to look for leaks in."""

    control: ControlConfig = field(default_factory=ControlConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def run(self) -> None:
        """Make what is not there yet, measure, print and write.

        Raises:
            ConfigError: FILE is no such JSON, pictures are missing, or the encoder is another.
        """
        checkpoint = Checkpoint.open(self.checkpoint, 1)
        split = self._split()
        with session(self.cluster):
            self._make_pairs(split)
            features = Features(
                pairs=self._at("pairs"),
                out=self._at("features"),
                device=self.compute.device,
                encoder=encoder_of(checkpoint, self.weights),
                pool=self.pool,
            ).run()
            check_features(checkpoint, features)
            Embed(
                checkpoint=self.checkpoint,
                out=self._at("embeddings"),
                features=self._at("features"),
                captions=self._at("pairs"),
                compute=self.compute,
                pool=self.pool,
            ).run()
            measured = self._evaluate()
        about = {"file": self.annotations, "split": split}
        whole = replace(measured, result={"annotations": about} | measured.result)
        tell(whole, self._at("evaluation.json"), as_json=self.json)

    def _at(self, name: str) -> str:
        return below(self.out, name)

    def _split(self) -> str | None:
        """Which of Karpathy's splits is meant; None where the file has none."""
        source = open_source(self.annotations, SourceColumns(), self.picture_folder)
        if not isinstance(source, AnnotationSource):
            raise ConfigError(f"{self.annotations}: is no annotation file (.json)")
        splits = source.splits()
        if self.annotation_split is not None or not splits:
            return self.annotation_split
        if _TEST not in splits:
            there = ", ".join(sorted(splits))
            raise ConfigError(f"annotation_split: name one of {there} in {self.annotations}")
        return _TEST

    def _make_pairs(self, split: str | None) -> None:
        raw = Ingest(
            source=self.annotations,
            out=self._at("raw"),
            picture_folder=self.picture_folder,
            annotation_split=split,
            filters="none",
            pool=self.pool,
        ).run()
        account = raw.manifest.pictures
        if account.dropped:
            reasons = ", ".join(f"{name}={count:,}" for name, count in account.dropped.items())
            told = f"{account.num_kept:,} of {account.num_in:,} pictures can be read ({reasons})"
            if not self.allow_missing:
                raise ConfigError(
                    f"{raw.folder}: {told}; put them in place and remove {raw.folder}, or give "
                    "--allow-missing"
                )
            logger.warning("evaluation set is not whole: %s", told)
        Curate(
            raws=(self._at("raw"),),
            out=self._at("pairs"),
            filters="none",
            near=NearDuplicateConfig(near_duplicates="ignore"),
            split=SplitConfig(validation_share=0.0, test_share=1.0),
            pool=self.pool,
        ).run()

    def _evaluate(self) -> Measured:
        return Evaluate(
            embeddings=self._at("embeddings"),
            checkpoint=self.checkpoint,
            features=self._at("features"),
            captions=self._at("pairs"),
            rerank=self.rerank,
            control=self.control,
            leaks=LeaksConfig(training=self.training),
            compute=self.compute,
            pool=self.pool,
        ).measure()
