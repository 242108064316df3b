from __future__ import annotations

import pytest
import torch

from hq_tokenizers import HQVAEModel, SQVAEModel, rsq_vae, vae
from hq_tokenizers.evaluation.decoding import encode_and_decode


@pytest.mark.parametrize("width", [1, 6])
def test_all_numbers_of_levels_of_the_codes_that_the_model_chooses(tokenizer, held_out, width, monkeypatch):
    monkeypatch.setattr(tokenizer.config, "beam_width", width)
    codes, decoded = encode_and_decode(tokenizer, held_out)
    with torch.no_grad():
        expected = tokenizer.encode(held_out, beam_width=width)
        # Level after level is what a forward pass chooses; a beam ends closer to the latents.
        forward = tokenizer(held_out, return_loss=False).codes
        for level in range(3):
            torch.testing.assert_close(decoded[level], tokenizer.decode(expected.truncate(level + 1)))
    assert torch.equal(codes.flatten(), expected.flatten())
    assert torch.equal(codes.flatten(), forward.flatten()) == (width == 1)
    assert len(decoded) == 3


@pytest.mark.parametrize("width", [1, 6])
def test_sounds_with_their_frames_and_speakers(width):
    sizes = {"num_levels": 2, "codebook_size": 64, "hidden_size": 8, "codebook_dim": 6}
    model = HQVAEModel(rsq_vae("speech", num_speakers=2, beam_width=width, **sizes)).eval()
    sounds, mask, speakers = torch.rand(2, 80, 1, 16), torch.ones(2, 16), torch.tensor([0, 1])
    mask[1, 8:] = 0
    codes, decoded = encode_and_decode(model, sounds, attention_mask=mask, speaker_ids=speakers)
    with torch.no_grad():
        greedy = model(sounds, attention_mask=mask, speaker_ids=speakers, return_loss=False)
        whole = model.decode(codes, attention_mask=mask, speaker_ids=speakers)
    assert torch.equal(codes.flatten(), greedy.codes.flatten()) == (width == 1)
    assert len(decoded) == 2
    torch.testing.assert_close(decoded[1], whole)
    if width == 1:
        torch.testing.assert_close(decoded[1], greedy.reconstruction)
    others = encode_and_decode(model, sounds, attention_mask=mask, speaker_ids=1 - speakers)[1]
    assert not torch.allclose(others[1], decoded[1])


def test_a_tokenizer_without_codes():
    model, images = SQVAEModel(vae("digits", hidden_size=8, codebook_dim=4)).eval(), torch.rand(2, 1, 8, 8)
    codes, (decoded,) = encode_and_decode(model, images)
    assert codes is None
    assert decoded.shape == images.shape
