"""The discriminator and its losses, against closed forms, finite differences and singular values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hq_tokenizers.losses.adversarial import PatchDiscriminator, adaptive_weight, hinge_loss


def test_hinge_loss_in_closed_form():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * ((0 + 0.5 + 2) / 3 + (0 + 1) / 2))
    assert hinge_loss(torch.zeros(1), torch.zeros(1)).item() == 1.0


@pytest.mark.parametrize(("num_layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch(num_layers, patch):
    """The receptive fields of pix2pix, found by the gradient of one logit."""
    discriminator = PatchDiscriminator(1, 2, num_layers)
    image = torch.rand(1, 1, 160, 160, requires_grad=True)
    logits = discriminator(image)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    rows = image.grad[0, 0].abs().amax(dim=1).nonzero().flatten()
    assert rows[-1] - rows[0] + 1 == patch


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_the_smallest_image_is_the_smallest(num_layers):
    discriminator = PatchDiscriminator(3, 2, num_layers)
    side = discriminator.smallest_image
    assert discriminator(torch.rand(1, 3, side, side)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        discriminator(torch.rand(1, 3, side - 1, side - 1))


def test_channels_are_those_of_the_published_discriminator():
    """That of pix2pix, for pairs of colour images, prints as 2.769 M parameters."""
    discriminator = PatchDiscriminator(6, norm="batch")
    convolutions = [layer for layer in discriminator.layers if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 128, 256, 512, 1]
    assert [layer.stride[0] for layer in convolutions] == [2, 2, 2, 1, 1]
    assert sum(p.numel() for p in discriminator.parameters()) == 2_768_705


def test_weights_have_the_spectral_norm_one_once_iterated():
    discriminator = PatchDiscriminator(3, 8, 2)
    with torch.no_grad():
        discriminator.layers[2].parametrizations.weight.original.mul_(50).add_(torch.rand(16, 8, 4, 4))
    for _ in range(30):
        discriminator.iterate()
    for index in (0, 2, 4, 6):
        weight = discriminator.layers[index].weight.flatten(1)
        assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, rel=2e-2)


@pytest.mark.parametrize("mode", [True, False])
def test_only_iterate_moves_the_singular_vectors(mode):
    discriminator = PatchDiscriminator(1, 4, 1).train(mode)
    before = {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
    discriminator(torch.rand(2, 1, 8, 8)).sum().backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in discriminator.named_buffers())
    discriminator.iterate()
    assert any(not torch.equal(buffer, before[name]) for name, buffer in discriminator.named_buffers())


@pytest.mark.parametrize("norm", ["spectral", "batch"])
def test_it_learns_to_tell_two_sets_apart(norm):
    discriminator = PatchDiscriminator(1, 8, 1, norm)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3, (0.5, 0.9))
    for _ in range(60):
        real, fake = torch.rand(8, 1, 8, 8), torch.rand(8, 1, 8, 8).mean(dim=3, keepdim=True).expand(-1, -1, -1, 8)
        discriminator.iterate()
        loss = hinge_loss(discriminator(real), discriminator(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5


def test_the_adaptive_weight_is_a_ratio_of_norms_at_the_last_layer():
    layer, hidden = nn.Conv2d(3, 2, 3), torch.rand(4, 3, 6, 6)
    target, judge = torch.rand(4, 2, 4, 4), torch.randn(2, 4, 4)

    def losses():
        reconstruction = layer(hidden).sigmoid()
        return reconstruction, (reconstruction - target).square().mean(), -(reconstruction * judge).sum() / 4

    norms = [torch.autograd.grad(losses()[index], layer.weight)[0].norm() for index in (1, 2)]
    reconstruction, *_ = losses()
    pixels = reconstruction.detach()
    gradients = 2 * (pixels - target) / pixels.numel(), (-judge / 4).expand_as(pixels)
    found = adaptive_weight(reconstruction, *gradients, layer.weight, limit=1e4)
    assert found.item() == pytest.approx((norms[0] / (norms[1] + 1e-4)).item(), rel=1e-5)
    assert not found.requires_grad
    assert adaptive_weight(reconstruction, *gradients, layer.weight, limit=1e-3).item() == pytest.approx(1e-3)
    lost = adaptive_weight(reconstruction, gradients[0] * torch.nan, gradients[1], layer.weight, limit=1e4)
    assert lost.item() == 0
