"""Captions: COCO's json, and the json of Karpathy and Fei-Fei's splits of COCO, Flickr30k and Flickr8k."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers_glipv2.data.dataset import ImageDataset, PackedRecords
from transformers_glipv2.data.formats.coco import ImageFinder, by_image, read_coco_json
from transformers_glipv2.data.schema import BoxReport


def load_coco_captions(
    annotation_file: str | Path,
    image_folder: str | Path | None = None,
    *,
    policy: str | Mapping[str, str] = "skip",
    per_image: bool = False,
) -> ImageDataset:
    """
    Caption rows of a COCO caption file.

    Args:
        annotation_file (`str` or `Path`): json with `images` and `annotations` of image_id and caption (`.gz` too).
        image_folder (`str` or `Path`, *optional*): where `file_name` points from; the json's folder by default.
        policy (`str` or `Mapping`, *optional*, defaults to `"skip"`): see `BoxReport`.
        per_image (`bool`, *optional*, defaults to `False`): one row an image, for evaluation, in the place of one
            row a caption, for training.

    Returns:
        `ImageDataset`: rows with text and, per image, `captions` (all of them; text is the first).

    Raises:
        FileNotFoundError: when there is no annotation file.
        ValueError: when the file is of another kind, or the policy refuses.
    """
    path = Path(annotation_file)
    content = read_coco_json(path, ("images", "annotations"), "caption")
    report = BoxReport(policy, path.name)
    find = ImageFinder(Path(image_folder) if image_folder is not None else path.parent)

    def records() -> Iterator[tuple[dict[str, Any], list[Any]]]:
        for image, annotations in by_image(content, report, ("file_name",)):
            size = {name: int(image[name]) for name in ("width", "height") if image.get(name)}
            record = {"image_id": image["id"], "image_path": find(image["file_name"]), **size}
            yield record, [entry.get("caption") for entry in annotations]

    return _dataset(records(), report, per_image)


def load_karpathy_captions(
    annotation_file: str | Path,
    image_folder: str | Path,
    split: str = "train",
    *,
    policy: str | Mapping[str, str] = "skip",
    per_image: bool = False,
) -> ImageDataset:
    """
    Caption rows of `dataset_coco.json`, `dataset_flickr30k.json` or `dataset_flickr8k.json`.

    Args:
        annotation_file (`str` or `Path`): the json (`.gz` too).
        image_folder (`str` or `Path`): holds the images, with COCO's folders `train2014/` and `val2014/` or not.
        split (`str`, *optional*, defaults to `"train"`): "train", with which "restval" goes as in all that is
            published on these splits; "restval" alone, "val" or "test".
        policy, per_image: as for `load_coco_captions`.

    Returns:
        `ImageDataset`: rows as of `load_coco_captions`; `image_id` is COCO's id, elsewhere the file's running one.

    Raises:
        FileNotFoundError: when there is no annotation file.
        ValueError: when the file is of another kind, has no image of a split, or the policy refuses.
    """
    path = Path(annotation_file)
    images = read_coco_json(path, ("images",), "Karpathy split")["images"]
    found = {str(image.get("split")) for image in images}
    if split not in found:
        raise ValueError(f"{path} has no images of the split {split!r}; it has {', '.join(sorted(found))}.")
    splits = ("train", "restval") if split == "train" else (split,)
    report = BoxReport(policy, f"{path.name} {split}")
    find = ImageFinder(Path(image_folder))

    def records() -> Iterator[tuple[dict[str, Any], list[Any]]]:
        for image in images:
            if image.get("split") not in splits:
                continue
            image_id = image.get("cocoid", image.get("imgid"))
            if image_id is None or not image.get("filename"):
                report.add("bad_entry", f"image {image_id!r} with the file name {image.get('filename')!r}")
                continue
            # Flickr's files have no folder.
            file_name = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
            sentences = [sentence.get("raw") for sentence in image.get("sentences", ())]
            yield {"image_id": image_id, "image_path": find(file_name)}, sentences

    return _dataset(records(), report, per_image)


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
