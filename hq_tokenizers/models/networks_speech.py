"""Networks on one-dimensional grids: the convolutions and the recurrent decoder of the SQ-VAE paper's speech model.

The bands of a spectrogram are the channels of a sequence, kept as images of one row, so that quantisers and everything
around them are those of images. The authors' first convolution has no padding and costs two frames of context; here it
has, so that codes cover all frames.

Shape legend: B batch, C bands, W frames, c channels, w = W / 2^num_stages positions, d code width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from hq_tokenizers.padding import Padding

from .checkpointed_layers import CheckpointedSequential
from .masked_layers import run
from .networks import Projection, norm_relu


def sequence_convolution(in_channels: int, out_channels: int, size: int, stride: int = 1) -> list[nn.Module]:
    """Convolution along the row, without a bias, BN, ReLU."""
    convolution = nn.Conv2d(in_channels, out_channels, (1, size), (1, stride), padding=(0, 1), bias=False)
    return [convolution, *norm_relu(out_channels)]


def speech_trunk(in_channels: int, hidden_size: int, num_stages: int, num_blocks: int) -> CheckpointedSequential:
    """Two Conv3, a Conv4 of stride 2 per stage, `num_blocks` Conv3, each with BN and ReLU.

    Args:
        in_channels: Bands.
        hidden_size: Channels of all convolutions.
        num_stages: Number of halvings of the length.
        num_blocks: Convolutions at the length of the codes.
    """
    layers = [
        *sequence_convolution(in_channels, hidden_size, 3),
        *sequence_convolution(hidden_size, hidden_size, 3),
        *(layer for _ in range(num_stages) for layer in sequence_convolution(hidden_size, hidden_size, 4, stride=2)),
        *(layer for _ in range(num_blocks) for layer in sequence_convolution(hidden_size, hidden_size, 3)),
    ]
    return CheckpointedSequential(*layers)


class SpeechEncoder(nn.Module):
    """Spectrogram to latents: the trunk, and a 1×1 convolution per head.

    Args:
        in_channels: Bands.
        hidden_size: See `speech_trunk`.
        num_stages: See `speech_trunk`.
        num_blocks: See `speech_trunk`.
        out_channels: Latent channels.
        variance_channels: Channels of the second head, for v(x); 0 for none.
    """

    takes_padding = True

    def __init__(
        self,
        in_channels: int,
        hidden_size: int,
        num_stages: int,
        num_blocks: int,
        out_channels: int,
        variance_channels: int,
    ):
        super().__init__()
        self.trunk = speech_trunk(in_channels, hidden_size, num_stages, num_blocks)
        self.mean_head = Projection(hidden_size, out_channels)
        self.variance_head = Projection(hidden_size, variance_channels) if variance_channels else None

    def forward(
        self, pixel_values: torch.Tensor, padding: Padding | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, C, 1, W) → latents (B, d, 1, w) and the log-variance map of the same grid, if there is one."""
        features = run(self.trunk, pixel_values, padding)
        return self.mean_head(features), None if self.variance_head is None else self.variance_head(features)


class SpeechBottomUp(nn.Module):
    """Features of the one group of a residual hierarchy.

    Args:
        in_channels: Bands.
        hidden_size: See `speech_trunk`.
        num_stages: See `speech_trunk`.
        num_blocks: See `speech_trunk`.
    """

    takes_padding = True

    def __init__(self, in_channels: int, hidden_size: int, num_stages: int, num_blocks: int):
        super().__init__()
        self.trunk = speech_trunk(in_channels, hidden_size, num_stages, num_blocks)

    def forward(self, pixel_values: torch.Tensor, padding: Padding | None = None) -> list[torch.Tensor]:
        """(B, C, 1, W) → a list of one (B, c, 1, w)."""
        return [run(self.trunk, pixel_values, padding)]


class SpeechDecoder(nn.Module):
    """Code vectors to a spectrogram: repeated to the length of the sound, a bidirectional GRU, a linear layer.

    Args:
        in_channels: Width of what is decoded.
        recurrent_size: Units of the GRU in each direction.
        num_layers: Layers of the GRU.
        out_channels: Bands.
        num_stages: Number of doublings of the length.
    """

    takes_padding = True

    def __init__(self, in_channels: int, recurrent_size: int, num_layers: int, out_channels: int, num_stages: int):
        super().__init__()
        self.repeats = 2**num_stages
        self.recurrent = nn.GRU(in_channels, recurrent_size, num_layers, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * recurrent_size, out_channels)

    def forward(self, hidden_states: torch.Tensor, padding: Padding | None = None) -> torch.Tensor:
        """(B, d, 1, w) → (B, C, 1, W)."""
        sequence = hidden_states[:, :, 0].repeat_interleave(self.repeats, dim=-1).transpose(1, 2)
        if padding is None:
            features, _ = self.recurrent(sequence)
        else:
            lengths = padding.positions(sequence.shape[1]).sum(1).cpu()
            packed = pack_padded_sequence(sequence, lengths, batch_first=True, enforce_sorted=False)
            features, _ = pad_packed_sequence(
                self.recurrent(packed)[0], batch_first=True, total_length=sequence.shape[1]
            )
        return self.head(features).transpose(1, 2).unsqueeze(2)


class SpeakerDecoder(nn.Module):
    """A decoder that is also given the embedding of a speaker, beside the code vectors at every position.

    Args:
        decoder: Takes `embedding_dim` channels more than the code vectors have.
        num_speakers: Number of speakers.
        embedding_dim: Width of an embedding.
    """

    takes_padding = True

    def __init__(self, decoder: nn.Module, num_speakers: int, embedding_dim: int):
        super().__init__()
        self.decoder = decoder
        self.speakers = nn.Embedding(num_speakers, embedding_dim)

    def forward(
        self, hidden_states: torch.Tensor, padding: Padding | None = None, speaker_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, d, h, w) and speakers (B,) → (B, C, H, W).

        Raises:
            ValueError: Without a speaker per item, or where the device says so, for one out of range.
        """
        message = (
            f"This tokenizer decodes for a speaker: give speaker_ids, LongTensor ({len(hidden_states)},), from 0 to "
            f"{self.speakers.num_embeddings - 1}"
        )
        if not isinstance(speaker_ids, torch.Tensor) or speaker_ids.shape != hidden_states.shape[:1]:
            raise ValueError(f"{message}.")
        if speaker_ids.dtype not in (torch.long, torch.int):
            raise ValueError(f"{message}, got {speaker_ids.dtype}.")
        try:
            embedding = F.embedding(speaker_ids, self.speakers.weight).to(hidden_states.dtype)
        except IndexError as error:  # on the CPU; asking on other devices would wait for them
            raise ValueError(f"{message}, got {speaker_ids.tolist()}.") from error
        spread = embedding[:, :, None, None].expand(-1, -1, *hidden_states.shape[2:])
        return run(self.decoder, torch.cat([hidden_states, spread], dim=1), padding)
