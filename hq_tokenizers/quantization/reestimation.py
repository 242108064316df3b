"""Data-dependent re-estimation of codebooks (Łańcucki et al., Robust Training of VQ Bottleneck Models, 2020).

Epochs 0 … w−1 run without quantisation, while a reservoir collects encoder outputs. At the start of each of the next m
epochs the codebooks are replaced by the k-means centres of the reservoir, which is then emptied and fills again.
Afterwards nothing is touched any more. All of it is saved state, so that an interrupted training resumes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import distributed, nn

from hq_tokenizers.quantization.vector_codebook import VectorCodebook

KMEANS_ITERATIONS = 20


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
        self.num_seen.zero_()


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

    def collect(self, latents: torch.Tensor) -> None:
        """Offers latents (B, h, w, d) to the reservoir, as long as a re-estimation is still to come."""
        self.reservoir.add(latents.detach().reshape(-1, latents.shape[-1]), self.epoch < self.last_epoch - 1)

    @property
    def warming_up(self) -> torch.Tensor:
        """Whether quantisation is still switched off, a boolean scalar tensor."""
        return self.epoch < self.warmup_epochs

    @torch.no_grad()
    def start_epoch(self, epoch: int, codebooks: Sequence[VectorCodebook], seed: int) -> bool:
        """Called before the first step of every epoch (from 0); returns whether any codebook was replaced.

        With several codebooks, each is estimated on what those before leave over. A codebook with more codes than there
        are vectors is left alone.
        """
        self.epoch.fill_(epoch)
        due = self.warmup_epochs <= epoch < self.last_epoch
        if not due:
            return False
        residual = self.reservoir.contents().float()
        replaced = False
        for codebook in codebooks:
            if _main_process_says(len(residual) >= len(codebook.weight), residual.device):
                replaced = True
                codebook.assign(_main_process_centres(residual, codebook.codes, seed))
            residual = residual - codebook.codes[codebook.nearest(residual)]
        self.reservoir.clear()
        return replaced


def kmeans(vectors: torch.Tensor, num_clusters: int, seed: int) -> torch.Tensor:
    """k-means++ followed by Lloyd's iterations: (M, d) → centres (num_clusters, d) on the CPU.

    Args:
        vectors: The data; M at least `num_clusters`.
        num_clusters: Number of centres.
        seed: Seed of the initialisation.
    """
    from sklearn.cluster import KMeans, kmeans_plusplus

    data = vectors.cpu().double().numpy()
    initial, _ = kmeans_plusplus(data, num_clusters, n_local_trials=1, random_state=seed)
    fitted = KMeans(num_clusters, init=initial, n_init=1, max_iter=KMEANS_ITERATIONS).fit(data)
    return torch.from_numpy(fitted.cluster_centers_).float()


def _main_process_centres(vectors: torch.Tensor, like: torch.Tensor, seed: int) -> torch.Tensor:
    """The k-means centres of process 0's vectors, in every process, so that all end with the same codebook."""
    if not _distributed():
        return kmeans(vectors, len(like), seed).to(like)
    centres = kmeans(vectors, len(like), seed).to(like) if distributed.get_rank() == 0 else torch.empty_like(like)
    distributed.broadcast(centres, src=0)
    return centres


def _main_process_says(condition: bool, device: torch.device) -> bool:
    """The condition as process 0 sees it: a broadcast that only some processes join would wait for ever."""
    if not _distributed():
        return condition
    flag = torch.tensor(condition, device=device)
    distributed.broadcast(flag, src=0)
    return bool(flag)


def _distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
