"""A frozen language model scores each token by the soft prompt and what stands before it."""

import pytest
import torch

from model.pretrained.language import frozen_dtype

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def test_a_target_is_scored_by_what_stands_before_it(language):
    """Against one call for each token, of one text at a time, without padding."""
    generator = torch.Generator().manual_seed(0)
    soft = torch.randn(2, 3, language.width, generator=generator)
    ids = torch.randint(2, 40, (2, 5), generator=generator)
    present = torch.arange(5) < torch.tensor([[5], [3]])
    targets = torch.randint(2, 40, (2, 4), generator=generator)
    targets = targets if language.is_encoder_decoder else ids
    found = language.scores(soft, ids, present, targets)
    assert found.shape[:2] == targets.shape
    start = getattr(language.model.config, "decoder_start_token_id", None)
    for row in range(2):
        num = int(present[row].sum())
        for at in range(targets.shape[1] if language.is_encoder_decoder else num):
            read = ids[row, : num if language.is_encoder_decoder else at]
            words = language.model.get_input_embeddings()(read)
            inputs = {"inputs_embeds": torch.cat([soft[row], words])[None]}
            if language.is_encoder_decoder:
                written = [start, *targets[row, :at].tolist()]
                inputs["decoder_input_ids"] = torch.tensor([written])
            expected = language.model(**inputs).logits[0, -1]
            assert expected.std() > 0.01
            torch.testing.assert_close(found[row, at], expected, rtol=1e-4, atol=1e-4)


def test_nothing_of_it_trains_and_dropout_is_off(language):
    assert not any(weights.requires_grad for weights in language.model.parameters())
    assert not any(module.training for module in language.model.modules())


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_the_type_on_a_gpu_is_one_it_computes_in_and_never_float16_for_t5(monkeypatch, name):
    cuda = torch.device("cuda")
    for native in (True, False):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native
        )
        found = frozen_dtype(cuda, is_encoder_decoder=name == "t5")
        assert found == (torch.bfloat16 if native or name == "t5" else torch.float16)
    cpu = frozen_dtype(torch.device("cpu"), is_encoder_decoder=name == "t5")
    assert cpu == torch.float32
