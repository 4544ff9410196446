"""
`Detector(model, processor, backend="onnx")`: the backbone and the fused tower of a detector in ONNX Runtime.

The two graphs take images of any size, any number of images and any number of tokens. They are exported once for the
weights of a model and kept in a folder of the cache. The text encoder, whose features are cached, and the detection
head, which is a few products, stay in PyTorch, and so do the heads for masks, answers and captions. A backbone whose
graph fits only the size that was traced (Swin's windows are counted in Python) stays in PyTorch too.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from ..layers.input_checks import check_pixels, image_sizes_of
from ..modeling_glipv2 import (
    GLIPv2ForObjectDetection,
    GLIPv2ImageFeatures,
    GLIPv2ModelOutput,
    GLIPv2ObjectDetectionOutput,
    match_batches,
    token_features,
)
from .onnx_graphs import LEVELS, OPSET, export_graphs, open_session, run_session

logger = logging.get_logger(__name__)

BACKENDS = ("torch", "onnx")
# Raise it when a change of the graphs must not meet files of before.
GRAPH_VERSION = 1


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


__all__ = ["BACKENDS", "OnnxNetwork", "check_backend"]
