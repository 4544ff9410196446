"""What a saved folder needs so that `trust_remote_code=True` loads it without this package."""

import ast
import inspect
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from transformers.models.auto import modeling_auto

from transformers_glipv2.configuration_glipv2 import GLIPv2Config
from transformers_glipv2.image_processing_glipv2 import GLIPv2ImageProcessor
from transformers_glipv2.image_processing_pil_glipv2 import GLIPv2ImageProcessorPil
from transformers_glipv2.pipelines import (
    image_text_to_text,
    visual_question_answering,
    zero_shot_instance_segmentation,
    zero_shot_object_detection,
)
from transformers_glipv2.processing_glipv2 import GLIPv2Processor

# Task -> the pipeline and the Auto class of its model.
PIPELINES: dict[str, tuple[type, str]] = {
    zero_shot_object_detection.TASK: (
        zero_shot_object_detection.GLIPv2ZeroShotObjectDetectionPipeline,
        "AutoModelForZeroShotObjectDetection",
    ),
    zero_shot_instance_segmentation.TASK: (
        zero_shot_instance_segmentation.GLIPv2ZeroShotInstanceSegmentationPipeline,
        "AutoModelForInstanceSegmentation",
    ),
    visual_question_answering.TASK: (
        visual_question_answering.GLIPv2VisualQuestionAnsweringPipeline,
        "AutoModelForVisualQuestionAnswering",
    ),
    image_text_to_text.TASK: (
        image_text_to_text.GLIPv2ImageTextToTextPipeline,
        "AutoModelForImageTextToText",
    ),
}


def class_reference(cls: type) -> str:
    """`"file.Class"`, as `auto_map` names a class of a folder."""
    return f"{cls.__module__.rsplit('.', 1)[-1]}.{cls.__name__}"


def _model_mappings() -> dict[str, Any]:
    """Auto class of models -> its mapping, where this package registered a model."""
    mappings = {
        name: getattr(auto_class, "_model_mapping", None)
        for name, auto_class in sorted(vars(modeling_auto).items())
        if name.startswith("AutoModel")
    }
    return {name: mapping for name, mapping in mappings.items() if mapping is not None and GLIPv2Config in mapping}


def model_auto_map() -> dict[str, str]:
    """The `auto_map` of config.json: the config, and every model that is registered for it."""
    references = {name: class_reference(mapping[GLIPv2Config]) for name, mapping in _model_mappings().items()}
    return {"AutoConfig": class_reference(GLIPv2Config), **references}


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
    """
    The files that the classes named above live in, and those that they import, in order of their names.

    Raises:
        ValueError: when two of them have one name: the Hub's folder is flat.
    """
    classes = [GLIPv2Config, GLIPv2Processor, GLIPv2ImageProcessor, GLIPv2ImageProcessorPil]
    classes += [mapping[GLIPv2Config] for mapping in _model_mappings().values()]
    classes += [pipeline for pipeline, _ in PIPELINES.values()]
    waiting = {Path(inspect.getfile(cls)) for cls in classes}
    files: set[Path] = set()
    while waiting:
        file = waiting.pop()
        files.add(file)
        waiting |= {imported for _, imported in _relative_imports(file)} - files
    by_name: dict[str, Path] = {}
    for file in files:
        other = by_name.setdefault(file.name, file)
        if other != file:
            raise ValueError(f"{file} and {other} have the same name; the folder of a model is flat, so rename one.")
    return [by_name[name] for name in sorted(by_name)]


def flat_code(file: Path) -> str:
    """The text of a file of this package with its relative imports as they are in a flat folder."""
    lines = file.read_text(encoding="utf-8").split("\n")
    for node, imported in _relative_imports(file):
        line = lines[node.lineno - 1]
        lines[node.lineno - 1] = line.replace(f"{'.' * node.level}{node.module} import", f".{imported.stem} import")
    return "\n".join(lines)


@cache
def _relative_imports(file: Path) -> list[tuple[ast.ImportFrom, Path]]:
    """The relative imports of a file of this package, each with the file that it reads; parsed once in a process."""
    imports = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = file.parents[node.level - 1]
            imports.append((node, folder.joinpath(*(node.module or "").split(".")).with_suffix(".py")))
    missing = next((imported for _, imported in imports if not imported.is_file()), None)
    if missing is not None:
        raise ValueError(f"{file} imports {missing}, which is no file; code for the Hub imports from files only.")
    return imports


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
    written = [_write(folder / file.name, flat_code(file)) for file in code_files()]
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
    return _write(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def _write(path: Path, text: str) -> Path:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


__all__ = [
    "code_files",
    "custom_pipelines",
    "flat_code",
    "image_processor_auto_map",
    "model_auto_map",
    "save_remote_code",
]
