"""Uploads with our model card instead of the boilerplate one."""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import HfApi, ModelCard
from transformers import PreTrainedModel

from hq_tokenizers.image_processing_hq import HQImageProcessor

from .export import export_self_contained
from .model_card import create_model_card


def push_to_hub(
    model: PreTrainedModel,
    repo_id: str,
    *,
    card: ModelCard | None = None,
    self_contained: bool = False,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Uploads a generator, an image tokenizer or a prior with its image processor and its model card.

    Args:
        model: The model.
        repo_id: "user/name"; the repository is created when missing.
        card: Model card; by default `create_model_card(model, repo_id)`, which can only say what the model knows.
        self_contained: Whether to upload the code as well, see `export_self_contained`; for generators.
        private: Whether a new repository is private.
        token: Access token; by default the one that `hf auth login` stored.
        revision: Branch to commit to.
        commit_message: By default "Upload" and the class name.
        create_pr: Whether to open a pull request instead of committing.

    Returns:
        The address of the commit.

    Raises:
        TypeError: If the model is of none of the three kinds.
    """
    card = card or create_model_card(model, repo_id, self_contained=self_contained)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as directory:
        if self_contained:
            export_self_contained(model, directory, card)
        else:
            model.save_pretrained(directory)
            tokenizer_config = getattr(model.config, "image_tokenizer_config", model.config)
            if hasattr(tokenizer_config, "image_size"):
                HQImageProcessor.for_config(tokenizer_config).save_pretrained(directory)
            card.save(Path(directory) / "README.md")
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=directory,
            revision=revision,
            commit_message=commit_message or f"Upload {type(model).__name__}",
            create_pr=create_pr,
        )
    return str(commit)
