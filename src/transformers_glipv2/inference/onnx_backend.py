"""
`Detector(model, processor, backend="onnx")`: the backbone and the fused tower of a detector in ONNX Runtime.

The two graphs take images of any size, any number of images and any number of tokens. They are exported once for the
weights of a model and kept in a folder of the cache. The text encoder, whose features are cached, and the detection
head, which is a few products, stay in PyTorch, and so do the heads for masks, answers and captions. A backbone whose
graph fits only the size that was traced (Swin's windows are counted in Python) stays in PyTorch too.
"""

import hashlib
import os
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
from huggingface_hub import constants
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..layers.feature_maps import FeatureMaps
from ..layers.input_checks import check_pixels, image_sizes_of
from ..modeling_glipv2 import (
    GLIPv2ForObjectDetection,
    GLIPv2ImageFeatures,
    GLIPv2ModelOutput,
    GLIPv2ObjectDetectionOutput,
    match_batches,
    token_features,
)

logger = logging.get_logger(__name__)

BACKENDS = ("torch", "onnx")
# Raise it when a change of the graphs must not meet files of before.
GRAPH_VERSION = 1
# The first one with every operator of the graphs is 19; the exporter that keeps sizes variable ends at 20.
OPSET = 20
# Relative to the largest value of an output.
TOLERANCE = 1e-3
LEVELS = tuple(f"p{level}" for level in range(3, 8))
# Heights and widths in pixels and numbers of tokens, of the inputs that are traced and of those that are compared.
TRACED, COMPARED = (2, 192, 256, 12), (1, 320, 160, 7)
_EXPORT_LOCK = threading.Lock()


class OnnxNetwork:
    """
    What a [`Detector`] asks of a model for boxes, computed by ONNX Runtime on the CPU.

    The graphs hold the weights that the model had when this object was made.

    Args:
        model: a detector in float32 on the CPU, in evaluation mode.
        folder: where the graphs are kept; by default `onnx` in the folder `GLIPV2_CACHE`, or in `glipv2` of
            `HF_HOME`.

    Raises:
        ImportError: without `onnx` and `onnxruntime`.
        ValueError: for a model that the graphs cannot hold, with the reason.
    """

    def __init__(self, model: GLIPv2ForObjectDetection, folder: str | os.PathLike | None = None):
        check_onnx()
        check_exportable(model)
        self.model = model
        self.folder = Path(folder or default_folder()) / graph_key(model)
        if not (self.folder / "tower.onnx").is_file():
            logger.warning("Exporting the model to ONNX, which is done once for its weights and takes a minute or so.")
            export_graphs(model, self.folder)
        self.image_session = None
        if (self.folder / "image.onnx").is_file():
            self.image_session = open_session(self.folder / "image.onnx")
        self.tower_session = open_session(self.folder / "tower.onnx")

    def get_image_features(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> GLIPv2ImageFeatures:
        """As `GLIPv2Model.get_image_features`, without the backbone's own maps."""
        if self.image_session is None:
            return self.model.get_image_features(pixel_values, pixel_mask)
        check_pixels(pixel_values, pixel_mask, self.model.config)
        if pixel_mask is None:
            image_sizes = torch.tensor([pixel_values.shape[2:]]).expand(len(pixel_values), 2)
        else:
            image_sizes = image_sizes_of(pixel_mask)
        maps = run_session(self.image_session, {"pixel_values": pixel_values})
        return GLIPv2ImageFeatures(feature_maps=tuple(maps), image_sizes=image_sizes)

    def ground(
        self,
        image_features: GLIPv2ImageFeatures,
        text_features: Any = None,
        attention_mask: Tensor | None = None,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> GLIPv2ObjectDetectionOutput:
        """As `GLIPv2ForObjectDetection.forward` with `image_features`."""
        if text_features is None:
            text_features = self.model.get_text_features(input_ids, attention_mask, token_type_ids, return_dict=True)
        feature_maps, image_sizes, text, attention_mask = match_batches(
            image_features, token_features(text_features), attention_mask
        )
        mask = torch.ones(text.shape[:2], dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        feeds = {"text": text, "text_mask": mask} | dict(zip(LEVELS, feature_maps, strict=True))
        fused_text, *fused_maps = run_session(self.tower_session, feeds)
        output = GLIPv2ModelOutput(
            fused_feature_maps=tuple(fused_maps),
            fused_text=fused_text,
            feature_maps=feature_maps,
            text_features=text,
            image_sizes=image_sizes,
            attention_mask=attention_mask,
            input_ids=None if input_ids is None else input_ids.expand(len(image_sizes), -1),
        )
        return self.model.detect(output)[0]


# Checks --------------------------------------------------------------------------------------------------------------


def check_backend(backend: str) -> None:
    """Raises ValueError unless `backend` is one of `BACKENDS`."""
    if backend not in BACKENDS:
        raise ValueError(f"`backend` is {backend!r}; choose one of {', '.join(BACKENDS)}.")


def check_onnx() -> None:
    """Raises ImportError, with what to install, where ONNX Runtime is missing."""
    try:
        import onnx  # noqa: F401  the exporter writes with it
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'The backend "onnx" needs `pip install "transformers-glipv2[export]"` (onnx and onnxruntime).'
        ) from error


def check_exportable(model: PreTrainedModel) -> None:
    """Raises ValueError for a model that the graphs cannot hold."""
    if not isinstance(model, GLIPv2ForObjectDetection):
        raise ValueError(f'The backend "onnx" takes a GLIPv2 detector, not {type(model).__name__}.')
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise ValueError(
            f'The backend "onnx" runs in float32 on the CPU, and the model is in {model.dtype} on {model.device}; '
            'load it with `dtype=torch.float32` and without a device, or use `backend="torch"`.'
        )
    if model.training:
        raise ValueError('The backend "onnx" takes a model in evaluation mode; call `model.eval()` first.')
    if model.config.mask_padded_pixels:
        raise ValueError(
            'The backend "onnx" cannot cut padding away; load the model with `mask_padded_pixels=False`, or use '
            '`backend="torch"`.'
        )


# Files ---------------------------------------------------------------------------------------------------------------


def default_folder() -> Path:
    """`onnx` in the folder of converted checkpoints: `GLIPV2_CACHE`, or `glipv2` in `HF_HOME`."""
    return Path(os.environ.get("GLIPV2_CACHE") or Path(constants.HF_HOME) / "glipv2").expanduser() / "onnx"


def graph_key(model: GLIPv2ForObjectDetection) -> str:
    """The name of the graphs' folder: a hash of what they depend on, the configuration and the weights."""
    digest = hashlib.sha256(f"{GRAPH_VERSION} {OPSET} {torch.__version__} ".encode())
    digest.update(model.config.to_json_string(use_diff=False).encode())
    for part in (model.model.backbone, model.model.neck, model.model.layers):
        for name, tensor in part.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


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
    """All outputs of a session, without copies."""
    arrays = {name: np.ascontiguousarray(tensor.detach().numpy()) for name, tensor in feeds.items()}
    return [torch.from_numpy(array) for array in session.run(None, arrays)]


# Export --------------------------------------------------------------------------------------------------------------


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
        self.layers = model.model.layers

    def forward(self, text: Tensor, text_mask: Tensor, *maps: Tensor) -> tuple[Tensor, ...]:
        """`text` `(batch, tokens, text_dim)`, `text_mask` boolean `(batch, tokens)`, and the maps."""
        for layer in self.layers:
            text, *maps = layer(text, *maps, text_mask=text_mask)
        return text, *maps


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
        with tracing(model):
            image, tower = ImageGraph(model).eval(), TowerGraph(model).eval()
            images = [image(inputs["pixel_values"]) for inputs in (traced, compared)]
            texts = [(inputs["text"], inputs["text_mask"]) for inputs in (traced, compared)]
            try:
                export(image, (traced["pixel_values"],), ("pixel_values",), LEVELS, partial / "image.onnx")
                compare(partial / "image.onnx", {"pixel_values": compared["pixel_values"]}, images[1])
            except ValueError as error:
                logger.info(f"The backbone stays in PyTorch. {error}")
                (partial / "image.onnx").unlink(missing_ok=True)
            tower_inputs, fused = ("text", "text_mask", *LEVELS), ("fused_text", *(f"fused_{p}" for p in LEVELS))
            export(tower, (*texts[0], *images[0]), tower_inputs, fused, partial / "tower.onnx")
        feeds = dict(zip(tower_inputs, (*texts[1], *images[1]), strict=True))
        compare(partial / "tower.onnx", feeds, tower(*feeds.values()))
        # Another process may have been faster.
        if not (folder / "tower.onnx").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
def tracing(model: GLIPv2ForObjectDetection) -> Iterator[None]:
    """
    In which graphs of the model can be traced: attention without loops over chunks, whose number would be traced, and
    deformable convolution as the operator of ONNX.
    """
    from torch.onnx import register_custom_op_symbolic, unregister_custom_op_symbolic

    operator = "torchvision::deform_conv2d"
    with _EXPORT_LOCK:
        implementation = model.config._attn_implementation
        register_custom_op_symbolic(operator, deform_conv_node, OPSET)
        model.config._attn_implementation = "eager"
        try:
            yield
        finally:
            model.config._attn_implementation = implementation
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
    with warnings.catch_warnings():
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


__all__ = ["BACKENDS", "OnnxNetwork", "check_backend"]
