"""A prior that is conditioned on text: digits drawn from their names, by cross-attention to a tiny text encoder.

    python examples/text_conditioning.py
    python examples/text_conditioning.py --epochs 5 --output_dir runs/text

Trains a tokenizer on scikit-learn's 8×8 digits, then a text encoder and an autoregressive prior together, in about two
minutes on a CPU. The encoder reads words letter by letter and starts from nothing, as the prior does; a pretrained one
would take its place with its own hidden states and attention mask. Leaves samples.png, one row per name, and prints how
many samples a classifier, fitted on the real training digits, reads as the digit that was named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoModel

from hq_tokenizers.cli.demo import judge_samples, tokenizer_recipe
from hq_tokenizers.cli.messages import errors_as_messages
from hq_tokenizers.cli.scripts import script_options
from hq_tokenizers.data.encoded import EncodedImages
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.training import EncodeConfig
from hq_tokenizers.priors import RQPriorConfig, RQPriorModel
from hq_tokenizers.reporting.figures import image_grid, save_png
from hq_tokenizers.training.encoding import encode_images
from hq_tokenizers.training.tokenizer import train_tokenizer

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
WIDTH = 64


@dataclass(kw_only=True)
class Options:
    """Options of the example."""

    output_dir: Annotated[str, "where the tokenizer, the codes and samples.png go"] = "runs/text_conditioning"
    epochs: Annotated[int, "passes of the prior over the training digits"] = 25
    samples_per_name: Annotated[int, "digits drawn of each name"] = 20
    guidance_scale: Annotated[float, "how strongly the text guides, 1 = off"] = 1.5
    seed: Annotated[int, "seed of both trainings; sample i has the noise of seed + i"] = 0


class TextEncoder(nn.Module):
    """A recurrent network over the letters of words."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(27, WIDTH)
        self.recurrent = nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)

    def forward(self, words: Sequence[str]) -> dict[str, torch.Tensor]:
        """Hidden states (B, S, E) of the letters and their mask (B, S), as the prior takes them."""
        ids = [torch.tensor([ord(letter) - ord("a") + 1 for letter in word]) for word in words]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        states, _ = self.recurrent(self.letters(padded))
        return {"encoder_hidden_states": states, "encoder_attention_mask": padded > 0}


def train(encoded: EncodedImages, epochs: int, batch_size: int = 50) -> tuple[TextEncoder, RQPriorModel]:
    """Trains the text encoder and the prior together, on pairs of a digit's codes and its name."""
    rows = encoded.splits["train"]
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "dropout": 0.2}
    config = RQPriorConfig(code_layout=encoded.layout.to_dict(), cross_attention_dim=WIDTH, label_dropout=0.1, **sizes)
    encoder, prior = TextEncoder(), RQPriorModel(config).train()
    optimizer = torch.optim.AdamW([*encoder.parameters(), *prior.parameters()], lr=1e-3, weight_decay=0.05)
    order = [indices for _ in range(epochs) for indices in torch.randperm(len(rows)).split(batch_size)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(order))
    for batch in tqdm(rows.batches(order, torch.device("cpu")), total=len(order), desc="text and prior"):
        names = [NAMES[label] for label in batch["labels"].tolist()]
        loss = prior(encoded.layout.unflatten(batch["codes"]), **encoder(names)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return encoder.eval(), prior.eval()


@errors_as_messages()
def main() -> None:
    """Runs the example."""
    options = script_options(Options, __doc__)
    folder = Path(options.output_dir)
    # Tensors this small gain nothing from several threads.
    torch.set_num_threads(1)
    train_tokenizer(tokenizer_recipe(folder, options.seed))
    encode_images(EncodeConfig(tokenizer=str(folder / "tokenizer"), output_dir=str(folder / "codes")))
    encoded = EncodedImages.load(folder / "codes")
    torch.manual_seed(options.seed)
    encoder, prior = train(encoded, options.epochs)
    with torch.no_grad():
        texts = encoder(NAMES)
    settings = {"num_images": options.samples_per_name, "guidance_scale": options.guidance_scale}
    codes = prior.generate(generator=options.seed, progress=True, **settings, **texts)
    tokenizer = AutoModel.from_pretrained(encoded.tokenizer).eval()
    images = tokenizer.decode(codes).clamp(0, 1)
    titles = [""] * len(images)
    titles[:: options.samples_per_name] = NAMES
    save_png(image_grid(images, options.samples_per_name, titles), folder / "samples.png")
    labels = torch.arange(len(NAMES)).repeat_interleave(options.samples_per_name)
    result = judge_samples(images, labels, *load_image_splits(DataConfig(), "train_split", "validation_split"))
    print(f"{result['class_accuracy']:.1%} of {result['num_samples']} samples are read as the digit that was named;")
    print(f"of the real held-out digits {result['classifier_accuracy_on_held_out_digits']:.1%} are.")
    print(f"{folder / 'samples.png'} has a row per name.")


if __name__ == "__main__":
    main()
