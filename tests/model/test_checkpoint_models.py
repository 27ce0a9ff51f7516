"""The models of a checkpoint come back, and none that it was not made with is taken for them."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from model.checkpoint import (
    Checkpoint,
    save_tensors,
    write_checkpoint,
)
from model.checkpoint_frozen import load_encoder_of, load_stage2
from model.checkpoint_models import check_features, load_stage1, load_weights
from model.pretrained.digests import weights_digest
from model.pretrained.encoder_spec import EncoderSpec
from model.pretrained.encoders import EncoderConfig, load_encoder
from model.pretrained.language_loading import load_language_model
from model.stage1 import Stage1
from model.stage2 import Stage2
from pipeline.accounting import Account
from pipeline.dataset import Dataset
from pipeline.draft import Draft
from pipeline.errors import ConfigError, DatasetError
from pipeline.features import token_columns
from pipeline.lineage import Lineage
from pipeline.schemas import features_schema
from pipeline.shard import commit_table
from pipeline.storage import Folder


@pytest.fixture(scope="module")
def stage1(scattered_stage1):
    return scattered_stage1().eval()


@pytest.fixture
def written(tmp_path, stage1, save_checkpoint):
    return save_checkpoint(tmp_path / "one", stage1)


def test_the_model_of_a_checkpoint_is_the_one_that_was_stored(written, stage1, captions):
    again = load_stage1(Checkpoint.open(written.folder))
    assert not again.training
    assert again.config == stage1.config
    tokens = torch.randn(3, 5, 10, generator=torch.Generator().manual_seed(0)).half()
    assert torch.equal(again.embed_pictures(tokens), stage1.embed_pictures(tokens))
    assert torch.equal(again.embed_texts(captions), stage1.embed_texts(captions))


def test_weights_of_another_shape_are_one_line(tiny, tokenizer, written):
    with pytest.raises(DatasetError, match="one: weights: ") as error:
        load_weights(Stage1(tiny(width=12), tokenizer), written)
    assert "\n" not in str(error.value)


def test_another_stage_is_refused(tmp_path, stage1, written, save_checkpoint):
    second = save_checkpoint(tmp_path / "two", stage1, stage=2)
    with pytest.raises(ConfigError, match="two: is of stage 2; stage 1 is needed"):
        Checkpoint.open(str(tmp_path / "two"), 1)
    with pytest.raises(ConfigError, match="two: is of stage 2, not 1"):
        load_stage1(second)
    with pytest.raises(ConfigError, match="one: is of stage 1, not 2"):
        load_stage2(written)


def features_of(home: Path, spec: EncoderSpec) -> Dataset:
    uids = [row.to_bytes(16, "big") for row in range(2)]
    columns = token_columns(np.ones((2, 3, 4), np.float32), [True] * 2, uids, "fp16")
    schema = features_schema(3, 4, "fp16")
    made = Lineage("features", {}, (), {"encoder": spec.to_json()})
    draft = Draft.begin(Folder.at(home), "features", schema, made)
    table = pa.table({"uid": uids, **columns}, schema=schema)
    everything = Account.all_kept(2)
    commit_table(draft.folder, 0, table, draft.rows_per_batch, pictures=everything)
    return draft.publish(draft.committed().values())


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "timm:other"), ("weights_digest", "cd" * 32), ("layer", -1), ("transform", {})],
)
def test_features_of_another_encoder_are_refused_and_both_named(
    tmp_path, written, field, value, spec
):
    check_features(written, features_of(tmp_path / "same", spec))
    other = features_of(tmp_path / "other", replace(spec, **{field: value}))
    with pytest.raises(ConfigError, match=f"another encoder .*: {field} ") as error:
        check_features(written, other)
    assert str(other.folder) in str(error.value)
    assert str(written.folder) in str(error.value)


def test_where_the_folder_of_a_vision_tower_is_says_nothing(
    tmp_path, stage1, make_lineage, spec, save_checkpoint
):
    here, there = (replace(spec, name=f"hf:{place}") for place in ("/here", "/there"))
    trained = save_checkpoint(tmp_path / "one", stage1, lineage=make_lineage(here))
    check_features(trained, features_of(tmp_path / "same", there))
    with pytest.raises(ConfigError, match="weights_digest"):
        check_features(
            trained, features_of(tmp_path / "other", replace(there, weights_digest="cd" * 32))
        )


@pytest.fixture(scope="module")
def vit():
    return load_encoder(EncoderConfig(encoder="timm:vit_tiny_patch16_224", weights="random"))


def test_the_encoder_of_a_checkpoint_is_loaded_again(
    tmp_path, stage1, vit, make_lineage, save_checkpoint
):
    trained = save_checkpoint(tmp_path / "vit", stage1, lineage=make_lineage(vit.spec))
    assert load_encoder_of(trained).spec == vit.spec
    changed = replace(vit.spec, weights_digest="cd" * 32)
    other = save_checkpoint(tmp_path / "other", stage1, lineage=make_lineage(changed))
    with pytest.raises(ConfigError, match="other: was trained on features of timm:vit_tiny"):
        load_encoder_of(other)


def test_an_encoder_that_saw_whole_pictures_sees_them_again(
    tmp_path, stage1, make_lineage, save_checkpoint
):
    config = EncoderConfig(encoder="timm:test_vit", weights="random", crop="squash")
    spec = load_encoder(config).spec
    assert (
        load_encoder_of(save_checkpoint(tmp_path, stage1, lineage=make_lineage(spec))).spec == spec
    )


def test_an_encoder_from_a_file_needs_the_file(
    tmp_path, stage1, vit, make_lineage, save_checkpoint
):
    spec = replace(vit.spec, weights="file")
    trained = save_checkpoint(tmp_path / "vit", stage1, lineage=make_lineage(spec))
    with pytest.raises(ConfigError, match=r"weights: timm:vit_tiny.* name it with --weights"):
        load_encoder_of(trained)
    file = tmp_path / "vit.safetensors"
    weights = {name: value.contiguous() for name, value in vit.backbone.state_dict().items()}
    save_file(weights, file)
    assert load_encoder_of(trained, str(file)).spec == spec
    save_file({name: value + 1 for name, value in weights.items()}, file)
    with pytest.raises(ConfigError, match=r"trained on features of timm:vit_tiny.* with weights"):
        load_encoder_of(trained, str(file))


def save_language(folder: Path, *, width: int = 8, seed: int = 0) -> Path:
    size = {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 8}
    size |= {"num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 64}
    torch.manual_seed(seed)
    OPTForCausalLM(OPTConfig(vocab_size=4, **size)).save_pretrained(folder)
    words = Tokenizer(WordLevel({"<unk>": 0, "</s>": 1, "a": 2, "boat": 3}, "<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture
def second(tmp_path, tiny, tokenizer, spec):
    """A stage-2 model, and its checkpoint, for the language model in `tmp_path / "opt"`."""
    language = load_language_model(f"hf:{save_language(tmp_path / 'opt')}")
    torch.manual_seed(1)
    stage2 = Stage2(tiny(), language.width).eval()
    needed = {"name": language.name, "width": language.width}
    frozen = {"language_model": needed | {"weights_digest": weights_digest(language.model)}}
    made = Checkpoint(
        Folder.at(tmp_path / "two"),
        2,
        3,
        asdict(stage2.config) | {"language_model": needed | {"prompt": ""}},
        Lineage("train-stage2", {}, (), {"encoder": spec.to_json()} | frozen),
        {},
    )
    contents = {
        "weights": save_tensors(stage2.state_dict()),
        "tokenizer": tokenizer.to_json().encode(),
    }
    return stage2, write_checkpoint(made, contents)


def test_stage_2_comes_back_with_its_language_model(second):
    stage2, written = second
    again, language = load_stage2(Checkpoint.open(written.folder, 2))
    assert not again.training
    assert not language.model.training
    assert language.width == 8
    ours, theirs = stage2.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


@pytest.mark.parametrize(
    ("change", "what"), [({"width": 12}, "width 8; .* 12"), ({"seed": 1}, "weights_digest ")]
)
def test_another_language_model_of_the_same_name_is_refused(tmp_path, second, change, what):
    save_language(tmp_path / "opt", **change)
    with pytest.raises(ConfigError, match=f"two: was trained for hf:.*opt with {what}"):
        load_stage2(second[1])


def test_a_language_model_that_is_gone_is_named(tmp_path, second):
    (tmp_path / "opt").rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"language_model: hf:.*opt cannot be had"):
        load_stage2(second[1])
