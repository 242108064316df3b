"""Data-dependent re-estimation of codebooks (Łańcucki et al., Robust Training of VQ Bottleneck Models, 2020).

Epochs 0 … w−1 run without quantisation, while a reservoir, emptied at the start of each, collects encoder outputs. At
the start of each of the next m epochs the codebooks are replaced by the k-means centres of the reservoir, which is then
emptied and fills again. Afterwards nothing is touched any more. All of it is saved state, so that an interrupted
training resumes, but for a reservoir that no estimate needs any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hq_tokenizers.processes import broadcast, is_main_process, main_process_says
from hq_tokenizers.quantization.codebook import Codebook
from hq_tokenizers.quantization.finite_batches import all_finite
from hq_tokenizers.quantization.outputs import QuantizerOutput
from hq_tokenizers.quantization.residual_variance import ResidualVariance

KMEANS_ITERATIONS = 20
SHARED_ROUNDS = 5
"""How often a codebook that levels share is estimated anew on what the levels see with the last estimate."""


class Reservoir(nn.Module):
    """A uniform random sample of all vectors seen (Vitter's Algorithm R, a whole batch at a time).

    Args:
        size: Number of vectors kept.
        dim: Width of a vector.
    """

    vectors: torch.Tensor
    num_seen: torch.Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, dim))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def add(self, vectors: torch.Tensor, enabled: torch.Tensor) -> None:
        """Offers vectors (M, d); where the boolean scalar `enabled` is False nothing happens.

        Vector number j (from 0) takes slot j while the reservoir fills, afterwards a slot drawn from 0 … j, if that
        exists. Of several that draw one slot the last wins, as if they had come one by one.
        """
        size, num_vectors = len(self.vectors), len(vectors)
        number = self.num_seen + torch.arange(num_vectors, device=vectors.device)
        drawn = (torch.rand(num_vectors, device=vectors.device, dtype=torch.float64) * (number + 1)).long()
        slot = torch.where(number < size, number, drawn)
        winner = torch.full((size + 1,), -1, device=vectors.device)
        order = torch.arange(num_vectors, device=vectors.device)
        winner.scatter_reduce_(0, slot.clamp_max(size), order, "amax")
        winner = winner[:size]
        taken = ((winner >= 0) & enabled).unsqueeze(-1)
        self.vectors.copy_(torch.where(taken, vectors[winner.clamp_min(0)].to(self.vectors.dtype), self.vectors))
        self.num_seen += num_vectors * enabled

    def contents(self) -> torch.Tensor:
        """The vectors collected so far, (min(seen, size), d)."""
        return self.vectors[: int(self.num_seen)]

    def clear(self) -> None:
        """Empties the reservoir."""
        self.vectors.zero_()
        self.num_seen.zero_()

    def _load_from_state_dict(
        self, state_dict: Mapping[str, torch.Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """As of any module, but that files of finished models, and parts of a model, need not have it."""
        there = any(f"{prefix}{name}" in state_dict for name, _ in self.named_buffers())
        if there or self.vectors.is_meta:
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class CodebookReestimation(nn.Module):
    """The schedule: identity and collection, then replacement by k-means, then rest.

    Args:
        warmup_epochs: Epochs w without quantisation.
        reestimation_epochs: Following epochs m at whose start the codebooks are replaced.
        reservoir_size: Vectors kept.
        code_dim: Code width d.
    """

    epoch: torch.Tensor

    def __init__(self, warmup_epochs: int, reestimation_epochs: int, reservoir_size: int, code_dim: int):
        super().__init__()
        self.warmup_epochs = warmup_epochs
        self.last_epoch = warmup_epochs + reestimation_epochs
        self.reservoir = Reservoir(reservoir_size, code_dim)
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))
        self.register_load_state_dict_post_hook(_empty_what_is_spent)

    def collect(self, latents: torch.Tensor) -> None:
        """Offers latents (B, h, w, d), if all are finite, to the reservoir, as long as a re-estimation is to come."""
        vectors = latents.detach().reshape(-1, latents.shape[-1])
        self.reservoir.add(vectors, self.collecting & all_finite(vectors))

    @property
    def warming_up(self) -> torch.Tensor:
        """Whether quantisation is still switched off, a boolean scalar tensor."""
        return self.epoch < self.warmup_epochs

    @property
    def collecting(self) -> torch.Tensor:
        """Whether a re-estimation is to come, for which vectors are kept, a boolean scalar tensor."""
        return self.epoch < self.last_epoch - 1

    @property
    def spent_buffers(self) -> tuple[str, ...]:
        """What `save_pretrained` leaves out: the reservoir, once no re-estimation is to come."""
        return () if self.collecting else tuple(f"reservoir.{name}" for name, _ in self.reservoir.named_buffers())

    @torch.no_grad()
    def start_epoch(self, epoch: int, codebooks: Sequence[Codebook], num_levels: int, seed: int) -> bool:
        """Called before the first step of every epoch (from 0); returns whether the codebooks were replaced.

        The schedule never goes back, nor does it repeat an estimate: an epoch that has been is one of a further
        training. What is left of the schedule follows when that comes to its epochs.

        With a codebook per level, each is estimated on what those before leave over. One that all levels share is
        estimated on what every level is given, in a few rounds, since that depends on the codebook itself. With fewer
        vectors than codes nothing is replaced.

        Args:
            epoch: Number of the epoch.
            codebooks: One per level, or one for all.
            num_levels: Number of levels.
            seed: Seed of the k-means initialisation.
        """
        known = int(self.epoch)
        if epoch < known or epoch == known >= self.warmup_epochs:
            return False
        self.epoch.fill_(epoch)
        due = self.warmup_epochs <= epoch < self.last_epoch
        replaced = due and self._estimate(codebooks, num_levels, seed)
        # As in the authors' code, the first estimate sees the last epoch of the warm-up only.
        self.reservoir.clear()
        return replaced

    def _estimate(self, codebooks: Sequence[Codebook], num_levels: int, seed: int) -> bool:
        vectors = self.reservoir.contents().float()
        most = max(len(codebook.weight) for codebook in codebooks)
        enough = main_process_says(len(vectors) >= most, vectors.device)
        if enough and len(codebooks) < num_levels:
            _estimate_shared(codebooks[0], vectors, num_levels, seed)
        elif enough:
            for codebook in codebooks:
                codebook.assign(*_main_process_clusters(vectors, codebook.codes, seed))
                vectors = _residual(vectors, codebook)
        return enough


def _empty_what_is_spent(schedule: CodebookReestimation, incompatible_keys: Any) -> None:
    """After loading: a reservoir that is not needed any more is empty, whatever was in it before."""
    if not schedule.epoch.is_meta and not schedule.collecting:
        schedule.reservoir.clear()


class ReestimatedQuantizer(nn.Module):
    """A quantiser of one grid whose codebooks may be re-estimated from data.

    In the warm-up the decoder is given the latents as they are, and the reconstruction is all that is charged. Moving
    averages, of codebooks and of variances, follow what quantisation would do; what is trained, stands still.

    Args:
        num_levels: Levels of codes D.
        reestimation: The schedule, or None.
    """

    def __init__(self, num_levels: int, reestimation: CodebookReestimation | None):
        super().__init__()
        self.num_levels = num_levels
        self.reestimation = reestimation

    def level_codebooks(self) -> Sequence[Codebook]:
        """The codebook of every level; the same object where they share it."""
        raise NotImplementedError

    def embed(self, indices: torch.Tensor) -> list[torch.Tensor]:
        """Code vectors of codes (B, h, w, D'), D' ≤ D: one (B, h, w, d) per level."""
        columns = indices.unbind(-1)
        return [F.embedding(i, book.codes) for i, book in zip(columns, self.level_codebooks(), strict=False)]

    def start_epoch(self, epoch: int, seed: int) -> bool:
        """Runs the re-estimation that is due at the start of an epoch; returns whether codebooks were replaced.

        See `CodebookReestimation.start_epoch`.
        """
        if self.reestimation is None:
            return False
        codebooks = list(dict.fromkeys(self.level_codebooks()))
        replaced = self.reestimation.start_epoch(epoch, codebooks, self.num_levels, seed)
        for module in self.modules() if replaced else ():
            if isinstance(module, ResidualVariance):
                module.restart()
        return replaced

    @property
    def warming_up(self) -> bool:
        """Whether quantisation is still switched off in training."""
        return self.reestimation is not None and bool(self.reestimation.warming_up)

    def _as_scheduled(self, latents: torch.Tensor, output: QuantizerOutput) -> QuantizerOutput:
        """The output for latents (B, h, w, d) of a training batch, or, in the warm-up, the latents and no loss."""
        if self.reestimation is None:
            return output
        self.reestimation.collect(latents)
        identity = self.reestimation.warming_up
        return replace(
            output,
            partial_sums=tuple(torch.where(identity, latents, total) for total in output.partial_sums),
            terms={name: term * ~identity for name, term in output.terms.items()},
        )


def forget_past(optimizer: torch.optim.Optimizer, replaced: Iterable[torch.Tensor]) -> None:
    """Drops what an optimiser knows of codebooks that were replaced, and of what had no gradient in the warm-up.

    An Adam that has seen no gradients but zeros moves a parameter by several times the learning rate as soon as there
    are some, for it divides by the root of an average over all steps so far.

    Args:
        optimizer: The optimiser.
        replaced: The tensors of the codebooks.
    """
    squares = {parameter: state.get("exp_avg_sq") for parameter, state in optimizer.state.items()}
    idle = [parameter for parameter, average in squares.items() if average is not None and not average.any()]
    for tensor in (*replaced, *idle):
        optimizer.state.pop(tensor, None)


def _estimate_shared(codebook: Codebook, vectors: torch.Tensor, num_levels: int, seed: int) -> None:
    codebook.assign(*_main_process_clusters(vectors, codebook.codes, seed))
    for _ in range(SHARED_ROUNDS):
        inputs = [vectors]
        for _ in range(num_levels - 1):
            inputs.append(_residual(inputs[-1], codebook))
        codebook.assign(*_main_process_clusters(torch.cat(inputs), codebook.codes, seed))


def _residual(vectors: torch.Tensor, codebook: Codebook) -> torch.Tensor:
    return vectors - codebook.codes[codebook.nearest(vectors)]


def kmeans(vectors: torch.Tensor, num_clusters: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """k-means++ followed by Lloyd's iterations.

    Args:
        vectors: The data (M, d); M at least `num_clusters`.
        num_clusters: Number of centres.
        seed: Seed of the initialisation.

    Returns:
        The centres (num_clusters, d) and how many vectors belong to each (num_clusters,), on the CPU.
    """
    from sklearn.cluster import KMeans, kmeans_plusplus

    data = vectors.cpu().double().numpy()
    initial, _ = kmeans_plusplus(data, num_clusters, n_local_trials=1, random_state=seed)
    fitted = KMeans(num_clusters, init=initial, n_init=1, max_iter=KMEANS_ITERATIONS).fit(data)
    counts = torch.from_numpy(fitted.labels_).long().bincount(minlength=num_clusters)
    return torch.from_numpy(fitted.cluster_centers_).float(), counts.float()


def _main_process_clusters(vectors: torch.Tensor, like: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The clusters of process 0's vectors, in every process, so that all end with the same codebook."""
    centres, counts = torch.empty_like(like), like.new_empty(len(like))
    if is_main_process():
        found = kmeans(vectors, len(like), seed)
        centres, counts = found[0].to(like), found[1].to(like)
    broadcast(centres)
    broadcast(counts)
    return centres, counts
