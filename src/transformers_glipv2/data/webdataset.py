"""
WebDataset shards: tar files in which the files of one example stand together and share a name.

    000017.jpg    the image
    000017.json   `objects` of bbox (x, y, width, height in pixels) and category, or any example of the schema
    000017.txt    instead of the json: a caption

Shards are read from their beginning to their end, so they may lie on the Hub or any other store that fsspec knows.
"""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec.core import has_magic, url_to_fs
from PIL import Image
from tqdm.auto import tqdm

from transformers_glipv2.data.dataset import ImageDataset, ImageStream
from transformers_glipv2.data.files import replaced_file
from transformers_glipv2.data.hub import from_hf_dataset
from transformers_glipv2.data.hub_export import import_datasets

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def load_webdataset(
    path: str | Path | Sequence[str | Path],
    *,
    box_format: str = "xywh",
    columns: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    policy: str | Mapping[str, str] = "skip",
    shuffle_buffer: int = 0,
    seed: int = 0,
) -> ImageStream:
    """
    A stream of the examples of WebDataset shards.

    Args:
        path (`str`, `Path` or a sequence of them): a folder of `.tar` files, or files, URLs and patterns such as
            `hf://datasets/user/name/train-*.tar`.
        box_format, columns, class_names, policy: as of [`load_hub`]; categories are names, or indices into
            `class_names`.
        shuffle_buffer (`int`, *optional*, defaults to 0): examples of a shard among which the next is chosen at
            random; the order of the shards is shuffled too. 0 keeps all orders.
        seed (`int`, *optional*, defaults to 0): of the shuffling.

    Returns:
        `ImageStream`: shards are its unit of work; [`LaneStream`] deals them out to processes and workers.

    Raises:
        FileNotFoundError: when no shard is found.
        ValueError: when a shard is no tar file, or the first example is not understood.
    """
    shards = find_shards(path)
    dataset = import_datasets().IterableDataset.from_generator(read_shards, gen_kwargs={"shards": shards})
    if shuffle_buffer:
        dataset = dataset.shuffle(seed=seed, buffer_size=shuffle_buffer)
    name = shards[0] if len(shards) == 1 else f"{shards[0]} and {len(shards) - 1} more shards"
    examples = from_hf_dataset(
        dataset, box_format=box_format, columns=columns, class_names=class_names, policy=policy, name=name
    )
    return cast(ImageStream, examples)


def find_shards(path: str | Path | Sequence[str | Path]) -> list[str]:
    """
    The shards of a folder or of patterns, sorted by name.

    Raises:
        FileNotFoundError: when there is none.
    """
    paths = [str(one) for one in ([path] if isinstance(path, (str, Path)) else path)]
    found: set[str] = set()
    for one in paths:
        pattern = f"{one}/*.tar" if Path(one).is_dir() else one
        filesystem, pattern = url_to_fs(pattern)
        names = filesystem.glob(pattern) if has_magic(pattern) else [pattern]
        found.update(filesystem.unstrip_protocol(name) for name in names if filesystem.exists(name))
    if not found:
        raise FileNotFoundError(
            f"no shard at {', '.join(map(repr, paths))}; give a folder of .tar files, their paths or URLs, or a "
            "pattern such as 'shards/train-*.tar'."
        )
    return sorted(name.removeprefix("file://") for name in found)


def read_shards(shards: Sequence[str]) -> Iterator[dict[str, Any]]:
    """
    The examples of shards, with "image" undecoded.

    Raises:
        ValueError: when a shard is no tar file, or an example has no image, or neither json nor txt.
    """
    for shard in shards:
        for key, files in _examples_of(shard):
            yield {"image_id": key, **_example(files, f"{key} in {shard}")}


def _examples_of(shard: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Names of examples, and the contents of their files by lower-case suffix."""
    try:
        with fsspec.open(shard, "rb") as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
            key = ""
            files: dict[str, bytes] = {}
            for member in archive:
                if not member.isfile() or Path(member.name).name.startswith("."):
                    continue
                # As WebDataset has it: all from the first dot of the file's name on is the suffix.
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if f"{folder}/{stem}" != key and files:
                    yield key.removeprefix("/"), files
                    files = {}
                key = f"{folder}/{stem}"
                content = archive.extractfile(member)
                files[f".{suffix.lower()}"] = content.read() if content is not None else b""
            if files:
                yield key.removeprefix("/"), files
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard!r} is no whole tar file: {error}; write the shard anew.") from error


def _example(files: Mapping[str, bytes], where: str) -> dict[str, Any]:
    image = next((files[suffix] for suffix in _IMAGES if suffix in files), None)
    if image is None:
        raise ValueError(f"the example {where} has no image, only {', '.join(files)}; known: {', '.join(_IMAGES)}.")
    example: dict[str, Any] = {"image": {"bytes": image, "path": None}}
    if ".json" in files:
        try:
            content = json.loads(files[".json"])
        except ValueError as error:
            raise ValueError(f"the .json of the example {where} cannot be read: {error}.") from error
        if not isinstance(content, Mapping):
            raise ValueError(f"the .json of the example {where} holds a {type(content).__name__}, not an object.")
        return {**content, **example}
    if ".txt" in files:
        return {"kind": "caption", "text": files[".txt"].decode().strip(), **example}
    raise ValueError(f"the example {where} has neither .json nor .txt beside its image.")


def write_webdataset(dataset: ImageDataset, folder: str | Path, samples_per_shard: int = 1000) -> list[Path]:
    """
    Writes a data set as shards that [`load_webdataset`] reads; images are copied as they are stored.

    Args:
        dataset (`ImageDataset`): of any loader.
        folder (`str` or `Path`): to write `000000.tar`, `000001.tar` and so on to.
        samples_per_shard (`int`, *optional*, defaults to 1000): have at least as many shards as images in a step times
            workers of a process, so that each reads its own.

    Returns:
        `list[Path]`: the shards.

    Raises:
        ValueError: when `samples_per_shard` is less than 1.
    """
    if samples_per_shard < 1:
        raise ValueError(f"`samples_per_shard` is {samples_per_shard}; expected at least 1.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for start in tqdm(range(0, len(dataset), samples_per_shard), desc="writing shards", delay=5, leave=False):
        shards.append(folder / f"{start // samples_per_shard:06d}.tar")
        with replaced_file(shards[-1]) as temporary, tarfile.open(temporary, "w") as archive:
            for index in range(start, min(start + samples_per_shard, len(dataset))):
                _add_example(archive, f"{index:09d}", dataset.records[index], dataset.class_names)
    return shards


def _add_example(
    archive: tarfile.TarFile, key: str, record: Mapping[str, Any], class_names: Sequence[str] | None
) -> None:
    record = dict(record)
    source = record.pop("image_path")
    image = _stored_bytes(source() if callable(source) else source)
    if record["kind"] == "detection" and class_names is not None:
        record.setdefault("labels", list(class_names))
    suffix = (Image.open(io.BytesIO(image)).format or "png").lower()
    for name, content in ((f"{key}.{suffix}", image), (f"{key}.json", json.dumps(record).encode())):
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))


def _stored_bytes(source: Any) -> bytes:
    if isinstance(source, Image.Image):
        buffer = io.BytesIO()
        source.save(buffer, "png")
        return buffer.getvalue()
    return source if isinstance(source, bytes) else Path(source).read_bytes()
