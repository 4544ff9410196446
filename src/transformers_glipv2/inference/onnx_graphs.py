"""
The graphs of `Detector(model, processor, backend="onnx")`: the backbone with its pyramid, and the fused tower, for
images of any size, any number of images and any number of tokens.
"""

import copy
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import logging

from ..layers.dyhead import TAPS, GLIPv2DyConv, modulated_deform_conv2d, resize
from ..layers.feature_maps import FeatureMaps
from ..modeling_glipv2 import GLIPv2ForObjectDetection

logger = logging.get_logger(__name__)

# The first one with every operator of the graphs is 19; the exporter that keeps sizes variable ends at 20.
OPSET = 20
# Relative to the largest value of an output.
TOLERANCE = 1e-3
LEVELS = tuple(f"p{level}" for level in range(3, 8))
# Images, their heights and widths in pixels, and tokens, of the inputs that are traced and of those that are compared.
TRACED, COMPARED = (2, 192, 256, 12), (1, 320, 160, 7)
_EXPORT_LOCK = threading.Lock()

# Graphs --------------------------------------------------------------------------------------------------------------


class ImageGraph(nn.Module):
    """`(batch, 3, height, width)` to P3..P7 before fusion."""

    def __init__(self, model: GLIPv2ForObjectDetection):
        super().__init__()
        self.backbone, self.neck = model.model.backbone, model.model.neck

    def forward(self, pixel_values: Tensor) -> FeatureMaps:
        """Pixels to maps."""
        return self.neck(tuple(self.backbone(pixel_values).feature_maps))


class TowerGraph(nn.Module):
    """Text and P3..P7 before fusion to text and P3..P7 after it."""

    def __init__(self, model: GLIPv2ForObjectDetection):
        super().__init__()
        # A copy, as other threads may use the model.
        self.layers = copy.deepcopy(model.model.layers)
        for layer in self.layers:
            layer.dyconv = DyConvGraph(layer.dyconv)
            if layer.fusion is not None:
                # Attention without loops over chunks, whose number would be traced.
                layer.fusion.config._attn_implementation = "eager"

    def forward(self, text: Tensor, text_mask: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        """`text` `(batch, tokens, text_dim)`, `text_mask` boolean `(batch, tokens)`, and the maps."""
        for layer in self.layers:
            text, *maps = layer(text, *maps, text_mask=text_mask)
        return text, *maps


class DyConvGraph(nn.Module):
    """[`GLIPv2DyConv`] level by level and by the operator of ONNX, so that no size is a number of the graph."""

    def __init__(self, dyconv: GLIPv2DyConv):
        super().__init__()
        self.dyconv = dyconv

    def forward(self, feature_maps: FeatureMaps, grid: None = None) -> FeatureMaps:
        """As [`GLIPv2DyConv`]."""
        return tuple(self.convolve(feature_maps, level) for level in range(len(feature_maps)))

    def convolve(self, feature_maps: FeatureMaps, level: int) -> Tensor:
        """The new map of a level."""
        dyconv, current = self.dyconv, feature_maps[level]
        both = dyconv.offset(current)
        offsets, modulation = both[:, : 2 * TAPS], both[:, 2 * TAPS :].sigmoid()
        neighbours = [("same", current, 1)]
        if level > 0:
            neighbours.append(("finer", feature_maps[level - 1], 2))
        if level < len(feature_maps) - 1:
            neighbours.append(("coarser", feature_maps[level + 1], 1))
        parts = []
        for name, source, stride in neighbours:
            branch = dyconv.branches[name]
            height, width = ((side - 1) // stride + 1 for side in source.shape[-2:])
            fitted = dyconv._fit(offsets, modulation, height, width)
            weight, bias = branch.conv()
            part = modulated_deform_conv2d(source, *fitted, weight, bias, stride)
            weight, bias = branch.norm()
            part = F.group_norm(part, branch.norm.num_groups, weight, bias, branch.norm.eps)
            part = resize(part, *current.shape[-2:])
            strength = dyconv.branch_attention(part.mean((2, 3), keepdim=True))
            parts.append(part * (F.hardsigmoid(F.relu(strength)) / len(neighbours)))
        mixed = sum(parts[1:], parts[0])
        coefficients = dyconv.activation(mixed.mean((2, 3)))
        slope_1, bias_1, slope_2, bias_2 = (one[:, :, None, None] for one in coefficients)
        return torch.maximum(mixed * slope_1 + bias_1, mixed * slope_2 + bias_2)


# Export --------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def export_graphs(model: GLIPv2ForObjectDetection, folder: Path) -> None:
    """
    Writes `tower.onnx`, and `image.onnx` unless it would fit one size alone, compares them with PyTorch in another
    size, and puts them into `folder` only then.

    Raises:
        ValueError: when the tower cannot be exported, or does not give what PyTorch does.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        traced, compared = (example_inputs(model, *sizes) for sizes in (TRACED, COMPARED))
        image, tower = ImageGraph(model).eval(), TowerGraph(model).eval()
        images = [image(inputs["pixel_values"]) for inputs in (traced, compared)]
        texts = [(inputs["text"], inputs["text_mask"]) for inputs in (traced, compared)]
        try:
            export(image, (traced["pixel_values"],), ("pixel_values",), LEVELS, partial / "image.onnx")
            compare(partial / "image.onnx", {"pixel_values": compared["pixel_values"]}, images[1])
        except ValueError as error:
            logger.info(f"The backbone stays in PyTorch. {error}")
            (partial / "image.onnx").unlink(missing_ok=True)
        tower_inputs, fused = ("text", "text_mask", *LEVELS), ("fused_text", *(f"fused_{level}" for level in LEVELS))
        export(tower, (*texts[0], *images[0]), tower_inputs, fused, partial / "tower.onnx")
        feeds = dict(zip(tower_inputs, (*texts[1], *images[1]), strict=True))
        compare(partial / "tower.onnx", feeds, reference_tower(model, *feeds.values()))
        # Another process may have been faster.
        if not (folder / "tower.onnx").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def reference_tower(
    model: GLIPv2ForObjectDetection, text: Tensor, text_mask: Tensor, *maps: Tensor
) -> tuple[Tensor, ...]:
    """What [`TowerGraph`] has to give: the layers of the model as they are."""
    for layer in model.model.layers:
        text, *maps = layer(text, *maps, text_mask=text_mask)
    return text, *maps


def example_inputs(
    model: GLIPv2ForObjectDetection, batch: int, height: int, width: int, tokens: int
) -> dict[str, Tensor]:
    """Random pixels and text features, the same at each call; the last token is padding."""
    generator = torch.Generator().manual_seed(0)
    channels = getattr(model.config.backbone_config, "num_channels", 3)
    text_mask = torch.ones(batch, tokens, dtype=torch.bool)
    text_mask[:, -1] = False
    text_dim = model.config.text_config.hidden_size
    return {
        "pixel_values": torch.randn(batch, channels, height, width, generator=generator),
        "text": torch.randn(batch, tokens, text_dim, generator=generator),
        "text_mask": text_mask,
    }


@contextmanager
def deform_conv_exported() -> Iterator[None]:
    """In which torchvision's deformable convolution is exported as the operator of ONNX."""
    from torch.onnx import register_custom_op_symbolic, unregister_custom_op_symbolic

    operator = "torchvision::deform_conv2d"
    with _EXPORT_LOCK:
        register_custom_op_symbolic(operator, deform_conv_node, OPSET)
        try:
            yield
        finally:
            unregister_custom_op_symbolic(operator, OPSET)


def deform_conv_node(graph: Any, x: Any, weight: Any, offset: Any, mask: Any, bias: Any, *settings: Any) -> Any:
    """ONNX's `DeformConv` for torchvision's operator; `settings` are its integers in order."""
    from torch.onnx.symbolic_helper import _get_const

    stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x, groups, offset_groups = (
        _get_const(value, "i", "deform_conv2d") for value in settings[:8]
    )
    return graph.op(
        "DeformConv",
        *(x, weight, offset, bias, mask),
        strides_i=[stride_y, stride_x],
        pads_i=[pad_y, pad_x, pad_y, pad_x],
        dilations_i=[dilation_y, dilation_x],
        group_i=groups,
        offset_group_i=offset_groups,
    )


def export(
    graph: nn.Module, inputs: tuple[Tensor, ...], input_names: Sequence[str], output_names: Sequence[str], file: Path
) -> None:
    """A graph whose batch, heights, widths and tokens may vary."""
    sizes = {
        name: {0: "batch", 1: "tokens"} if name.startswith("text") else {0: "batch", 2: f"{name}_h", 3: f"{name}_w"}
        for name in input_names
    }
    with warnings.catch_warnings(), deform_conv_exported():
        # Of sizes that are compared in Python: which way is taken is the same for all sizes, as `compare` shows.
        warnings.simplefilter("ignore")
        try:
            # The other exporter, by `torch.export`, keeps sizes as formulas, which outgrow it over a backbone.
            torch.onnx.export(
                graph,
                inputs,
                file,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_axes=sizes,
                opset_version=OPSET,
                dynamo=False,
            )
        except (RuntimeError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
            raise ValueError(f'This model cannot be exported to ONNX ({error}); use `backend="torch"`.') from error


# Sessions ------------------------------------------------------------------------------------------------------------


def open_session(file: Path) -> Any:
    """An `onnxruntime.InferenceSession` with as many threads as PyTorch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Errors come as exceptions.
    options.log_severity_level = 4
    # Threads that spin while they wait would take the processor from PyTorch's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def run_session(session: Any, feeds: Mapping[str, Tensor]) -> list[Tensor]:
    """All outputs of a session, without copies; under autocast inputs may be in half precision."""
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in feeds.items()}
    arrays = {name: np.ascontiguousarray(tensor.detach().numpy()) for name, tensor in floats.items()}
    return [torch.from_numpy(array) for array in session.run(None, arrays)]


def compare(file: Path, feeds: Mapping[str, Tensor], expected: Sequence[Tensor]) -> None:
    """Raises ValueError where a graph does not give what PyTorch does."""
    wrong = f"In ONNX Runtime the graph {file.stem!r} does not compute what PyTorch does"
    try:
        outputs = run_session(open_session(file), feeds)
    except Exception as error:  # ONNX Runtime's own classes
        raise ValueError(f'{wrong} ({error}); use `backend="torch"`.') from error
    for output, tensor in zip(outputs, expected, strict=True):
        same = output.shape == tensor.shape
        if not same or not (output - tensor).abs().max() <= TOLERANCE * tensor.abs().max():
            raise ValueError(f'{wrong}; use `backend="torch"`.')


__all__ = ["OPSET", "export_graphs", "open_session", "run_session"]
