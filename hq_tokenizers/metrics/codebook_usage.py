"""How much of each codebook a tokenizer uses over a data set."""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from hq_tokenizers.codes import Codes
from hq_tokenizers.metrics.running.code_counts import CodeCounts
from hq_tokenizers.metrics.streaming_metric import StreamingMetric
from hq_tokenizers.quantization.usage import usage_figures


class CodebookUsage(StreamingMetric[CodeCounts]):
    """Usage of every codebook over all codes added, not per batch.

    Result, each a list with one entry per level, coarse to fine; p_k is the share of code k among a level's codes:
        * `entropy`: H = −Σ_k p_k log p_k, in nats. `perplexity`: exp(H), between 1 and K.
        * `normalized_entropy`: H / log K, between 0 and 1.
        * `active_codes`: number of codes used at least once. `codebook_size`: K.
        * `num_codes`: number of codes counted; well below K, it bounds the perplexity.
        * `provenance`, in which the reference set's hash is that of the codes.

    Args:
        **options: See `StreamingMetric`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Perplexity, entropy and active codes of every codebook over a data set.",
            citation="",
            inputs_description="codes: hq_tokenizers.codes.Codes of a batch of images.",
            features=datasets.Features({"codes": datasets.List(datasets.Value("int64"))}),
        )

    def _new_state(self) -> CodeCounts:
        return CodeCounts()

    def _settings(self) -> dict[str, Any]:
        return {}

    def _update(self, inputs: dict[str, Any]) -> None:
        codes = inputs["codes"]
        if not isinstance(codes, Codes):
            raise TypeError(
                f"codes must be hq_tokenizers.codes.Codes, as a tokenizer's encode() returns, got "
                f"{type(codes).__name__}; CodeLayout.unflatten makes them from a tensor."
            )
        self._state.update(codes)

    def _result(self) -> dict[str, Any]:
        counts = self._state.counts
        usage = usage_figures([count.double() for count in counts])
        provenance = self._provenance(self._state.identity)
        provenance["image_size"] = None
        provenance["code_layout"] = str(self._state.layout)
        return {
            "perplexity": usage["perplexity"].tolist(),
            "entropy": usage["entropy"].tolist(),
            "normalized_entropy": usage["normalized_entropy"].tolist(),
            "active_codes": usage["active_codes"].int().tolist(),
            "codebook_size": [len(count) for count in counts],
            "num_codes": [int(count.sum()) for count in counts],
            "provenance": provenance,
        }
