"""What is written for transformers loads there, and gives our logits and captions."""

import pytest
import torch
from transformers import (
    AutoProcessor,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
)

from model.exchange.hugging_face_models import generation_model, retrieval_model
from model.generation.settings import GenerationConfig
from model.generation.stage2 import write_texts
from model.itc import similarity
from model.packing import Texts
from model.pretrained.language_loading import load_language_model
from model.pretrained.vision_tower import load_tower
from model.qformer import Seen

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["a red boat", "picture number 3", "a boat of a red boat of number 7"]


@torch.no_grad()
def test_an_exported_stage_1_loads_and_scores_as_ours(
    retrieval, tmp_path, imported, pictures, tokens_of
):
    stage1 = imported(retrieval[0])
    model, processor = retrieval_model(stage1, *load_tower(str(retrieval[0])))
    model.save_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "out")
    loaded = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "out").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    for name, value in retrieval[1].state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name

    values = pictures
    batch = processor(text=TEXTS, images=list(torch.zeros(3, 3, 28, 28)), padding=True)
    ids, mask = torch.tensor(batch["input_ids"]), torch.tensor(batch["attention_mask"])
    image = tokens_of(loaded, values)
    cosines = similarity(stage1.embed_pictures(image), stage1.embed_texts(TEXTS))
    texts = Texts.packed(*stage1.tokenizer.encode(TEXTS, 24))
    matched = stage1.match_logits([Seen(stage1.image_keys(image))], texts)
    for itm, expected in ((False, cosines), (True, matched)):
        found = loaded(
            pixel_values=values,
            input_ids=ids,
            attention_mask=mask,
            use_image_text_matching_head=itm,
        ).logits_per_image
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", ["opt", "llama", "t5", "t5-untied"])
@pytest.mark.parametrize("spare_rows", [3, 0])
@pytest.mark.parametrize("prompt", ["", "a picture of"])
def test_an_exported_stage_2_writes_our_captions(
    draw_blip2, tmp_path, family, prompt, spare_rows, imported, pictures
):
    """With a row to spare for <image>, and without."""
    seed = 2 if family == "opt" else 6  # whose captions differ
    theirs, processor = draw_blip2(
        Blip2ForConditionalGeneration, family=family, spare_rows=spare_rows, seed=seed
    )
    theirs.language_model.save_pretrained(tmp_path / "language")
    processor.tokenizer.save_pretrained(tmp_path / "language")
    theirs.save_pretrained(tmp_path / "blip2")
    processor.save_pretrained(tmp_path / "blip2")
    language = load_language_model(f"hf:{tmp_path / 'language'}")
    stage2 = imported(tmp_path / "blip2")
    tower, transform = load_tower(str(tmp_path / "blip2"))
    config = GenerationConfig(method="greedy", min_tokens=0, max_tokens=13)
    ours = [texts[0] for texts in write_texts(stage2, language, tower(pictures), prompt, config)]
    assert len(set(ours)) > 1

    rows = language.model.get_input_embeddings().num_embeddings
    model, processor = generation_model(stage2, language, tower, transform)
    assert language.model.get_input_embeddings().num_embeddings == max(
        rows, len(processor.tokenizer)
    )
    model.save_pretrained(tmp_path / "out")
    processor.save_pretrained(tmp_path / "out")
    loaded = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    batch = processor(text=[prompt] * 3, images=list(torch.zeros(3, 3, 28, 28)))
    ids = torch.tensor(batch["input_ids"])
    written = loaded.generate(
        pixel_values=pictures,
        input_ids=ids,
        attention_mask=torch.tensor(batch["attention_mask"]),
        max_new_tokens=12,
        do_sample=False,
    )
    if not language.is_encoder_decoder:
        written = written[:, ids.shape[1] :]  # they give the prompt again
    texts = processor.batch_decode(written, skip_special_tokens=True)
    assert [text.strip() for text in texts] == ours
