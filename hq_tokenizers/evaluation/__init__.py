"""Evaluation of tokenizers, generators and folders of images by `hq_tokenizers.metrics`; see docs/evaluation.md."""
