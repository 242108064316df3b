"""The Hub: model cards, self-contained exports for `trust_remote_code`, and uploads."""

from __future__ import annotations

from .export import export_self_contained
from .model_card import create_model_card
from .upload import push_to_hub

__all__ = ["create_model_card", "export_self_contained", "push_to_hub"]
