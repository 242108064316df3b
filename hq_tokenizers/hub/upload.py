"""Uploads with our model card instead of the boilerplate one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import RemoteEntryNotFoundError
from transformers import PreTrainedModel

from hq_tokenizers.feature_extraction_hq import HQFeatureExtractor
from hq_tokenizers.models.processors import processor_to_share
from hq_tokenizers.pipelines.code_sampling_pipeline import CodeSamplingPipeline
from hq_tokenizers.pipelines.pipeline_hq_audio_generation import HQAudioGenerationPipeline

from .export import export_self_contained
from .model_card import create_model_card


def push_to_hub(
    model: PreTrainedModel | CodeSamplingPipeline,
    repo_id: str,
    *,
    card: ModelCard | None = None,
    self_contained: bool = False,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tags: Sequence[str] = (),
    feature_extractor: HQFeatureExtractor | None = None,
) -> str:
    """Uploads a generator, a tokenizer or a prior with its image processor or front end, and its model card.

    Also the method `push_to_hub` of the models and of the pipelines, which upload their own.

    Args:
        model: The model, or the pipeline of a generator.
        repo_id: "user/name"; the repository is created when missing.
        card: Model card; by default the repository's own, and where it has none `create_model_card(model, repo_id)`,
            which can only say what the model knows.
        self_contained: Whether to upload the code as well, see `export_self_contained`.
        private: Whether a new repository is private.
        token: Access token; by default the one that `hf auth login` stored.
        revision: Branch to commit to; made from the main one when missing.
        commit_message: By default "Upload" and the class name.
        commit_description: Text below the message.
        create_pr: Whether to open a pull request instead of committing.
        max_shard_size: Largest size of a file of weights, such as "5GB".
        tags: Tags to add to those of the card.
        feature_extractor: The front end of a model of sounds, which the model itself does not know; a pipeline does.

    Returns:
        The address of the commit.

    Raises:
        TypeError: If the model is of none of the three kinds, or the front end is not that of such a model.
        ValueError: For a generator of sounds without its front end.
    """
    pipeline, model = (model, model.model) if isinstance(model, CodeSamplingPipeline) else (None, model)
    if isinstance(pipeline, HQAudioGenerationPipeline):
        feature_extractor = pipeline.processor_of_outputs
    processor = processor_to_share(model, feature_extractor) if pipeline is None else pipeline.processor_of_outputs
    new_card = create_model_card(model, repo_id, self_contained=self_contained)
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr and not revision.startswith("refs/pr/"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    card = card or _card_of(repo_id, api, revision) or new_card
    if tags:
        header: Any = card.data
        header.tags = list(dict.fromkeys([*(header.tags or []), *tags]))
    with tempfile.TemporaryDirectory() as directory:
        if self_contained:
            export_self_contained(model, directory, card, max_shard_size, feature_extractor)
        else:
            model.save_pretrained(directory, max_shard_size=max_shard_size)
            card.save(Path(directory) / "README.md")
        if processor is not None and not self_contained:
            processor.save_pretrained(directory)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=directory,
            revision=revision,
            commit_message=commit_message or f"Upload {type(model).__name__}",
            commit_description=commit_description,
            create_pr=create_pr,
        )
    return str(commit)


def _card_of(repo_id: str, api: HfApi, revision: str | None) -> ModelCard | None:
    """The card that a repository has, which may have been written by hand."""
    try:
        return ModelCard.load(api.hf_hub_download(repo_id, "README.md", revision=revision))
    except RemoteEntryNotFoundError:
        return None
