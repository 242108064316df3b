"""What a configuration does with the code that a self-contained export names in it (hq_tokenizers/hub/export.py)."""

from __future__ import annotations

from typing import Any

REMOTE_CODE = "transformers_modules."
"""Where transformers imports the code of such an export from."""


def forget_exported_code(module: str, fields: dict[str, Any]) -> None:
    """Takes out of a configuration's further fields what names exported code, unless that code is what runs.

    With this package imported the code is not used: `pipeline()` would still ask for permission to run it, and a model
    saved anew would name code that is not there.

    Args:
        module: `__name__` of the configuration's module.
        fields: What `__post_init__` was given.
    """
    if not module.startswith(REMOTE_CODE):
        fields.pop("custom_pipelines", None)
        fields.pop("auto_map", None)
