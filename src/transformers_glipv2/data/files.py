"""Text files: read as UTF-8 with or without a byte order mark, written as a whole or not at all."""

import codecs
import gzip
import json
import os
import platform
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def printable(name: str) -> str:
    """
    The name of a file as text that every UTF-8 stream takes.

    File systems and JSON hold names that are not UTF-8, which Python keeps as lone surrogates: b"\\xe9" becomes
    "\\udce9" in six characters.
    """
    return name.encode("utf-8", "backslashreplace").decode()


def read_text(path: str | Path) -> str:
    """
    The text of a file, without its byte order mark; a name that ends in `.gz` is decompressed.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is not UTF-8, or a damaged archive.
    """
    path = Path(path)
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}.") from error
    return _decoded(data, path)


def read_lines(path: str | Path) -> Iterator[str]:
    """
    The lines of a file, one in memory at a time, without their ends and the byte order mark; `.gz` is decompressed.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is not UTF-8, or a damaged archive; names the line.
    """
    path = Path(path)
    number = 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                where = path if number == 1 else f"{path}, line {number}"
                text = _decoded(line, where) if number == 1 else _decoded_rest(line, where)
                yield text.rstrip("\r\n")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file, after line {number}: {error}.") from error


def read_json(path: str | Path) -> Any:
    """
    The content of a JSON file, also of a gzipped one (`.gz`).

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is not JSON in UTF-8.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply to be read as JSON.") from error
    except ValueError as error:
        # Python refuses numbers of thousands of digits without saying where.
        raise ValueError(str(error) if str(path) in str(error) else f"{path} is not JSON: {error}.") from error


@contextmanager
def replaced_file(path: str | Path) -> Iterator[Path]:
    """
    A temporary name to write to, which becomes `path` when all went well: the file is there as a whole or not at all.
    Folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of several machines may share the folder.
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any, indent: int | None = 2) -> None:
    """Write a JSON file, whole or not at all; what JSON has no form for (a `Path`) is written as text."""
    write_text(path, json.dumps(content, indent=indent, default=str) + "\n")


def write_json_list(path: str | Path, entries: Iterable[Any]) -> int:
    """Write a JSON list entry by entry, whole or not at all; returns how many there are."""
    count = 0
    with replaced_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("[")
        for count, entry in enumerate(entries, start=1):
            file.write((",\n" if count > 1 else "\n") + json.dumps(entry))
        file.write("\n]\n")
    return count


def _decoded(data: bytes, where: str | Path) -> str:
    """The text of a whole file or its first line."""
    other = next((name for mark, name in _OTHER_MARKS if data.startswith(mark)), None)
    if other is not None:
        raise ValueError(f"{where} is {other}; save it as UTF-8.")
    return _decoded_rest(data.removeprefix(codecs.BOM_UTF8), where)


def _decoded_rest(data: bytes, where: str | Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not UTF-8: byte 0x{data[error.start]:02x} at position {error.start} (perhaps Latin-1 or "
            "Windows-1252); save it as UTF-8."
        ) from error
