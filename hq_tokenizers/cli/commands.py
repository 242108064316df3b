"""What the commands are called, explain about themselves, take, and run."""

from __future__ import annotations

from dataclasses import dataclass

from hq_tokenizers.options.app import AppConfig
from hq_tokenizers.options.conversion import ConvertConfig
from hq_tokenizers.options.evaluation import EvaluateConfig
from hq_tokenizers.options.generation import DemoConfig, EnvConfig, GenerateConfig
from hq_tokenizers.options.training import EncodeConfig, PriorTrainingConfig, TokenizerTrainingConfig


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        summary: What it does, in a line.
        explanation: What it does and leaves behind.
        examples: Command lines that work.
        options: The dataclass of its options.
        runner: "module:function", called with the options.
    """

    summary: str
    explanation: str
    examples: tuple[str, ...]
    options: type
    runner: str


COMMANDS = {
    "train-tokenizer": Command(
        summary="stage one: train an image tokenizer",
        explanation=(
            "Trains an image tokenizer and leaves a folder that from_pretrained loads, with reconstructions.png, "
            "curves.png, report.json, metrics.jsonl (and TensorBoard events when it is installed). Ctrl-C and SIGTERM "
            "stop it with a checkpoint. Run the same command again to continue an interrupted run exactly where it "
            "stopped; with schedule plateau or constant also with more epochs or max_steps, to train a finished one "
            "further (cosine needs the steps of a run beforehand). With several devices: "
            "torchrun --nproc_per_node 2 -m hq_tokenizers train-tokenizer CONFIG.yaml."
        ),
        examples=(
            "hq-tokenizers train-tokenizer --model '{preset: sq_vae, network: digits}' --epochs 20",
            "hq-tokenizers train-tokenizer examples/mnist_sq_vae.yaml --data.path data --model.codebook_size 256",
        ),
        options=TokenizerTrainingConfig,
        runner="hq_tokenizers.training.tokenizer:train_tokenizer",
    ),
    "encode": Command(
        summary="turn images or sounds into codes, the data of stage two",
        explanation=(
            "Encodes the training and validation split (and the test split, where data.test_split is set) with a "
            "trained tokenizer, as a `datasets` folder with a codes.json beside it. soft_targets stores the "
            "tokenizer's probabilities of the training codes as well, and views encodes the training images several "
            "times, each time with other random changes. With data.streaming the training images are read once for "
            "every view and never kept. Sounds are cut or padded to one length, data.sound.segment_frames. Codes that "
            "are there already are replaced when the new ones are complete. The same command continues an encoding "
            "that was stopped, in any number of processes: torchrun --nproc_per_node 2 -m hq_tokenizers encode …"
        ),
        examples=(
            "hq-tokenizers encode --tokenizer runs/tokenizer --output_dir runs/codes --data.name digits",
            "hq-tokenizers encode --tokenizer runs/tokenizer --output_dir runs/codes --views 10 "
            "--data.horizontal_flip true",
        ),
        options=EncodeConfig,
        runner="hq_tokenizers.training.encoding:encode_images",
    ),
    "train-prior": Command(
        summary="stage two: train a prior over the codes",
        explanation=(
            "Trains a prior on encoded images and leaves a folder that from_pretrained loads, with curves.png, "
            "report.json (bits per code against the unigram entropy of each level), and, when the tokenizer is at "
            "hand, samples.png and generator/: tokenizer and prior as one model for pipeline('hq-generation'), or of "
            "sounds pipeline('hq-audio-generation')."
        ),
        examples=(
            "hq-tokenizers train-prior --codes runs/codes --output_dir runs/prior --max_steps 5000",
            "hq-tokenizers train-prior examples/mnist_prior.yaml --model.hidden_size 128",
        ),
        options=PriorTrainingConfig,
        runner="hq_tokenizers.training.prior:train_prior_and_save_generator",
    ),
    "generate": Command(
        summary="draw images or sounds with a generator",
        explanation=(
            "Draws images and writes each as PNG, all of them as samples.png, and the options as report.json. A folder "
            "takes the images of one call only. In Python transformers.pipeline('hq-generation', model=FOLDER) does "
            "the same, and its methods reconstruct, variations and inpaint work on given images. A generator of sounds "
            "leaves WAV files, the spectrograms as samples.png, and samples.html, which plays them."
        ),
        examples=(
            "hq-tokenizers generate --generator fashion-mnist",
            "hq-tokenizers generate --generator runs/prior/generator --class_labels '[3, 7]' --num_images 16",
            "hq-tokenizers generate --generator runs/prior/generator --generation.temperature 0.9 --seed 1",
        ),
        options=GenerateConfig,
        runner="hq_tokenizers.cli.generate:generate_images",
    ),
    "evaluate": Command(
        summary="judge a tokenizer, a generator or a folder of images",
        explanation=(
            "Judges a tokenizer by its reconstructions (MSE, PSNR, SSIM, LPIPS, rFID, codebook usage, and the decodes "
            "of the first levels of a hierarchy), a generator by its samples (FID and more), or a folder of images, "
            "against the split data.test_split, or data.validation_split where that is null. Prints a table and leaves "
            "report.json, where every figure says how it came about, model_card_row.md, and reconstructions.png with a "
            "tokenizer's best, median and worst. Of sounds: errors in dB, usage, what codes say about classes and "
            "speakers, players, and the Fréchet distance on metrics.sound_network. With several devices: "
            "torchrun --nproc_per_node 2 -m hq_tokenizers evaluate CONFIG.yaml."
        ),
        examples=(
            "hq-tokenizers evaluate --tokenizer runs/tokenizer --data.name digits",
            "hq-tokenizers evaluate --generator runs/prior/generator --num_images 10000 --images_dir runs/drawn",
            "hq-tokenizers evaluate --images drawn --reference real --pairs true --metrics.features squeezenet",
        ),
        options=EvaluateConfig,
        runner="hq_tokenizers.cli.evaluate:evaluate",
    ),
    "convert": Command(
        summary="turn a checkpoint of another package into a tokenizer",
        explanation=(
            "Reads a released checkpoint of a VQGAN, of LlamaGen's tokenizer, of an RQ-VAE, of sony/sqvae, or a "
            "VQModel of diffusers, and writes it as a tokenizer that gives the same codes and images, to "
            "encode, evaluate, or train a prior on. Of pickles nothing but tensors is read. New codes between its "
            "encoder and decoder are trained by train-tokenizer --model.from_autoencoder FOLDER."
        ),
        examples=(
            "hq-tokenizers convert --format taming_vqgan --checkpoint last.ckpt --output_dir runs/vqgan",
            "hq-tokenizers convert --format sqvae --checkpoint best.pt --config configs.json",
        ),
        options=ConvertConfig,
        runner="hq_tokenizers.conversion.convert:convert",
    ),
    "demo": Command(
        summary="the whole path on handwritten digits, in a few minutes on a CPU",
        explanation=(
            "Trains a tokenizer and a class-conditional prior on scikit-learn's 8×8 digits (no network needed), joins "
            "them to a generator, draws 500 digits and lets a classifier, fitted on the real training digits only, "
            "read them. Leaves tokenizer/, codes/, prior/, generator/, samples.png, reconstructions.png and "
            "report.json. Run it again to continue after an interruption; what is finished is not done again."
        ),
        examples=("hq-tokenizers demo --output_dir runs/demo",),
        options=DemoConfig,
        runner="hq_tokenizers.cli.demo:run_demo",
    ),
    "app": Command(
        summary="a generator as a page in the browser, or as a Space",
        explanation=(
            "Serves a page on which one draws images of a class, sees an image's codes and what each level of them "
            "keeps, paints over a part to have it drawn anew, varies an image, and looks at the codebooks. Everything "
            "is computed here, and nothing is loaded from the internet. Needs pip install 'hq_tokenizers[app]'. "
            "With export_space it writes a folder that runs by `python app.py`, here or as a Space of the Hugging Face "
            "Hub. Label maps and sounds have no page."
        ),
        examples=(
            "hq-tokenizers app",
            "hq-tokenizers app --generator runs/demo/generator --port 8000",
            "hq-tokenizers app --generator runs/demo/generator --export_space runs/space",
        ),
        options=AppConfig,
        runner="hq_tokenizers.cli.app:run_app",
    ),
    "env": Command(
        summary="versions and devices, for the report of a bug",
        explanation="Prints the versions of Python and of the packages that matter, processors and accelerators.",
        examples=("hq-tokenizers env",),
        options=EnvConfig,
        runner="hq_tokenizers.cli.environment:print_environment",
    ),
}
