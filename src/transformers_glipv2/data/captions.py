"""Captions: COCO's json, and the json of Karpathy and Fei-Fei's splits of COCO, Flickr30k and Flickr8k."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers_glipv2.data.dataset import ImageDataset, PackedRecords
from transformers_glipv2.data.formats.coco_json import by_image, clean_id, read_coco_json
from transformers_glipv2.data.image_files import ImageFinder
from transformers_glipv2.data.schema import BoxReport


def load_coco_captions(
    annotation_file: str | Path,
    image_folder: str | Path | None = None,
    *,
    policy: str | Mapping[str, str] = "skip",
    per_image: bool = False,
    allow_outside_paths: bool = False,
) -> ImageDataset:
    """
    Caption examples of a COCO caption file.

    Args:
        annotation_file (`str` or `Path`): json with `images` and `annotations` of image_id and caption (`.gz` too).
        image_folder (`str` or `Path`, *optional*): where `file_name` starts from; the json's folder by default.
        policy (`str` or `Mapping`, *optional*, defaults to `"skip"`): see `BoxReport`.
        per_image (`bool`, *optional*, defaults to `False`): one example an image, for evaluation, instead of one
            a caption, for training.
        allow_outside_paths (`bool`, *optional*, defaults to `False`): follow file names and links that lead out of
            the image folder. Only for files that are trusted.

    Returns:
        `ImageDataset`: examples with text and, per image, `captions` (all of them; text is the first).

    Raises:
        FileNotFoundError: when there is no annotation file, or none of its images.
        ValueError: when the file is of another kind, or the policy refuses.
    """
    path = Path(annotation_file)
    content = read_coco_json(path, ("images", "annotations"), "caption")
    report = BoxReport(policy, path.name)
    find = ImageFinder(image_folder if image_folder is not None else path.parent, allow_outside_paths)

    def records() -> Iterator[tuple[dict[str, Any], list[Any]]]:
        for image, annotations in by_image(content, report, ("file_name",)):
            image_path = find(image["file_name"], report, f"image {image['id']!r}")
            size = {name: image[name] for name in ("width", "height") if image[name]}
            if image_path is not None:
                record = {"image_id": image["id"], "image_path": image_path, **size}
                yield record, [entry.get("caption") for entry in annotations]

    dataset = _dataset(records(), report, per_image)
    find.check_any_found(path)
    return dataset


def load_karpathy_captions(
    annotation_file: str | Path,
    image_folder: str | Path,
    split: str = "train",
    *,
    policy: str | Mapping[str, str] = "skip",
    per_image: bool = False,
    allow_outside_paths: bool = False,
) -> ImageDataset:
    """
    Caption examples of `dataset_coco.json`, `dataset_flickr30k.json` or `dataset_flickr8k.json`.

    Args:
        annotation_file (`str` or `Path`): the json (`.gz` too).
        image_folder (`str` or `Path`): holds the images, with COCO's folders `train2014/` and `val2014/` or not.
        split (`str`, *optional*, defaults to `"train"`): "train", with which "restval" goes as in all that is
            published on these splits; "restval" alone, "val" or "test".
        policy, per_image, allow_outside_paths: as for `load_coco_captions`.

    Returns:
        `ImageDataset`: examples as of `load_coco_captions`; `image_id` is COCO's id, elsewhere the file's running one.

    Raises:
        FileNotFoundError: when there is no annotation file, or none of its images.
        ValueError: when the file is of another kind, has no image of a split, or the policy refuses.
    """
    path = Path(annotation_file)
    images = read_coco_json(path, ("images",), "Karpathy split")["images"]
    images = [image for image in images if isinstance(image, Mapping)]
    found = {str(image.get("split")) for image in images}
    if split not in found:
        raise ValueError(f"{path} has no images of the split {split!r}; it has {', '.join(sorted(found))}.")
    splits = ("train", "restval") if split == "train" else (split,)
    report = BoxReport(policy, f"{path.name} {split}")
    find = ImageFinder(image_folder, allow_outside_paths)

    def records() -> Iterator[tuple[dict[str, Any], list[Any]]]:
        for image in images:
            if image.get("split") not in splits:
                continue
            image_id, file_name = clean_id(image.get("cocoid", image.get("imgid"))), image.get("filename")
            # Flickr's files have no folder.
            parts = [part for part in (image.get("filepath"), file_name) if part]
            sentences = image.get("sentences") or []
            is_text = file_name and all(isinstance(part, str) for part in parts) and "\0" not in file_name
            if image_id is None or not is_text or not isinstance(sentences, list):
                report.add("bad_entry", f"image {image_id!r} with the file name {file_name!r}")
                continue
            image_path = find("/".join(parts), report, f"image {image_id!r}")
            if image_path is not None:
                captions = [entry.get("raw") if isinstance(entry, Mapping) else entry for entry in sentences]
                yield {"image_id": image_id, "image_path": image_path}, captions

    dataset = _dataset(records(), report, per_image)
    find.check_any_found(path)
    return dataset


def _dataset(images: Iterable[tuple[dict[str, Any], list[Any]]], report: BoxReport, per_image: bool) -> ImageDataset:
    def records() -> Iterator[dict[str, Any]]:
        for record, captions in images:
            texts = [text for text in captions if isinstance(text, str) and text.strip()]
            if not captions:
                report.add("empty_text", f"image {record['image_id']!r} has no caption")
            for text in captions:
                if text not in texts:
                    report.add("empty_text", f"image {record['image_id']!r}, caption {text!r}")
            if per_image and texts:
                yield {"kind": "caption", **record, "text": texts[0], "captions": texts}
            elif not per_image:
                for text in texts:
                    yield {"kind": "caption", **record, "text": text}

    packed = PackedRecords(records())
    report.warn_once()
    return ImageDataset(packed, report=report)
