"""
Data sets in one schema, sampling, augmentation, mixtures and the collator. Needs the `train` extra.

| format | loader |
|---|---|
| your own boxes: COCO, YOLO, Pascal VOC, CSV, image folders, `datasets` | `open_dataset` |
| COCO, Objects365, Roboflow and ODinW folders | `load_coco` |
| LVIS | `load_lvis` |
| Flickr30k Entities | `load_flickr30k` |
| GoldG and other MDETR-style json | `load_mixed_grounding` |
| captions with pseudo boxes (json lines) | `load_pseudo_boxes` |
| PhraseCut | `load_phrasecut` |
| COCO captions, Karpathy's splits | `load_coco_captions`, `load_karpathy_captions` |
| VQA v2 | `load_vqa` |
| Hub, parquet and image folders | `load_hub`, `from_hf_dataset` |

An example is described in `data/schema.py`, memory and streaming in `data/dataset.py`.
"""

from importlib import import_module
from typing import Any

# Imported when asked for: most scripts need few of these modules, and some need further libraries.
_MODULES = {
    "answers": (
        "answer_targets",
        "build_answer_vocabulary",
        "load_answer_vocabulary",
        "save_answer_vocabulary",
        "soft_scores",
    ),
    "augment": ("Compose", "CopyPaste", "HorizontalFlip", "PhotometricDistortion"),
    "captions": ("load_coco_captions", "load_karpathy_captions"),
    "formats.coco": ("load_coco",),
    "formats.open": ("open_dataset",),
    "collate": ("GroundingCollator",),
    "dataset": ("ImageDataset", "ImageStream"),
    "flickr30k": ("load_flickr30k",),
    "hub": ("from_hf_dataset", "load_hub"),
    "hub_export": ("to_hf_dataset",),
    "lanes": ("LaneStream",),
    "lvis": ("load_lvis",),
    "mixed_grounding": ("load_mixed_grounding",),
    "mixture": ("IndexedStream", "MixtureDataset"),
    "phrasecut": ("load_phrasecut",),
    "pseudo_boxes": ("load_pseudo_boxes", "pseudo_box_entry"),
    "sampling": ("DetectionSampler",),
    "schema": ("BoxReport", "check_example"),
    "vqa": ("load_vqa",),
    "webdataset": ("load_webdataset", "write_webdataset"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}.")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
