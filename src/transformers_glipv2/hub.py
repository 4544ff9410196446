"""What a saved folder needs so that `trust_remote_code=True` loads it without this package."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files
from transformers.models.auto import modeling_auto

from .configuration_glipv2 import GLIPv2Config
from .image_processing_glipv2 import GLIPv2ImageProcessor
from .image_processing_pil_glipv2 import GLIPv2ImageProcessorPil
from .pipelines import TASK as DETECTION
from .pipelines import GLIPv2ZeroShotObjectDetectionPipeline
from .processing_glipv2 import GLIPv2Processor
from .segmentation_pipeline import TASK as SEGMENTATION
from .segmentation_pipeline import GLIPv2ZeroShotInstanceSegmentationPipeline
from .understanding_pipelines import (
    CAPTIONING_TASK,
    VQA_TASK,
    GLIPv2ImageTextToTextPipeline,
    GLIPv2VisualQuestionAnsweringPipeline,
)

# Task -> the pipeline and the Auto class of its model.
PIPELINES: dict[str, tuple[type, str]] = {
    DETECTION: (GLIPv2ZeroShotObjectDetectionPipeline, "AutoModelForZeroShotObjectDetection"),
    SEGMENTATION: (GLIPv2ZeroShotInstanceSegmentationPipeline, "AutoModelForInstanceSegmentation"),
    VQA_TASK: (GLIPv2VisualQuestionAnsweringPipeline, "AutoModelForVisualQuestionAnswering"),
    CAPTIONING_TASK: (GLIPv2ImageTextToTextPipeline, "AutoModelForImageTextToText"),
}


def class_reference(cls: type) -> str:
    """`"file.Class"`, as `auto_map` names a class of a folder."""
    return f"{cls.__module__.rsplit('.', 1)[-1]}.{cls.__name__}"


def model_auto_map() -> dict[str, str]:
    """The `auto_map` of config.json: the config, and every model that is registered for it."""
    references = {"AutoConfig": class_reference(GLIPv2Config)}
    for name, auto_class in sorted(vars(modeling_auto).items()):
        mapping = getattr(auto_class, "_model_mapping", None) if name.startswith("AutoModel") else None
        if mapping is not None and GLIPv2Config in mapping:
            references[name] = class_reference(mapping[GLIPv2Config])
    return references


def image_processor_auto_map() -> dict[str, Any]:
    """The `auto_map` of the image processor's settings."""
    classes = {"torchvision": GLIPv2ImageProcessor, "pil": GLIPv2ImageProcessorPil}
    return {"AutoImageProcessor": {backend: class_reference(cls) for backend, cls in classes.items()}}


def custom_pipelines() -> dict[str, Any]:
    """The `custom_pipelines` of config.json."""
    return {
        task: {"impl": class_reference(pipeline), "pt": [auto_class]}
        for task, (pipeline, auto_class) in PIPELINES.items()
    }


def code_files() -> list[Path]:
    """The files that the classes named above live in, and those that they import, in order of their names."""
    references = list(model_auto_map().values())
    references += image_processor_auto_map()["AutoImageProcessor"].values()
    references += [class_reference(GLIPv2Processor)]
    references += [class_reference(pipeline) for pipeline, _ in PIPELINES.values()]
    source = Path(__file__).parent
    files = {source / f"{reference.split('.')[0]}.py" for reference in references}
    for file in list(files):
        files |= {Path(needed) for needed in get_relative_import_files(str(file))}
    return sorted(files)


def save_remote_code(folder: str | os.PathLike) -> list[Path]:
    """
    Adds the code and the references to it to a folder with a saved model and processor.

    The folder then loads with `trust_remote_code=True` where this package is not installed: every Auto class that the
    package registers, AutoProcessor, AutoImageProcessor, and the zero-shot detection pipeline. Where the package is
    installed its own code is used.

    Args:
        folder: what `model.save_pretrained` and `processor.save_pretrained` wrote.

    Returns:
        The files that were written.

    Raises:
        FileNotFoundError: when config.json or processor_config.json is missing.
        ValueError: when the model is not a GLIPv2.
    """
    folder = Path(folder)
    config, processor = (_read_json(folder / name) for name in ("config.json", "processor_config.json"))
    if config.get("model_type") != GLIPv2Config.model_type:
        raise ValueError(
            f"'{folder / 'config.json'}' has model_type {config.get('model_type')!r}; expected "
            f"{GLIPv2Config.model_type!r}."
        )
    config["auto_map"] = model_auto_map()
    config["custom_pipelines"] = custom_pipelines()
    processor["auto_map"] = {"AutoProcessor": class_reference(GLIPv2Processor)}
    processor["image_processor"]["auto_map"] = image_processor_auto_map()
    written = [_copy(file, folder / file.name) for file in code_files()]
    # The references come last, so that they never name code that is not there.
    written.append(_write_json(folder / "processor_config.json", processor))
    written.append(_write_json(folder / "config.json", config))
    return written


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no '{path}'; call `model.save_pretrained` and `processor.save_pretrained` on the folder first."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: dict[str, Any]) -> Path:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    return path


def _copy(source: Path, target: Path) -> Path:
    temporary = target.with_name(target.name + ".tmp")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)
    return target


__all__ = ["code_files", "custom_pipelines", "image_processor_auto_map", "model_auto_map", "save_remote_code"]
