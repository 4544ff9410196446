"""
Where the entries of a large JSON file are, found without parsing it.

A COCO file of gigabytes is one object with a few long lists. Its brackets are counted block by block, so that the
entries of a list can then be read in portions, whatever the order of the lists.
"""

import codecs
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_BLOCK = 1 << 22
# Of all that is not in the lists asked for; a file with more of it is read as a whole.
_MAX_REST = 1 << 26
_MAX_GAP = 1000


class NotIndexableError(ValueError):
    """The file is no JSON, or of a form that has to be read as a whole, which then says what is wrong."""


@dataclass
class Portion:
    """
    Neighbouring entries of a list, a few megabytes.

    Attributes:
        first (`int`): the index of the first.
        starts, lengths (`np.ndarray`): where each is in the file, in bytes.
        lines (`bytes`): the entries, a line each.
    """

    first: int
    starts: np.ndarray
    lengths: np.ndarray
    lines: bytes


@dataclass
class EntryList:
    """
    The entries of one list.

    Attributes:
        portions (`list[tuple[int, int, int]]`): of neighbouring entries, where the first begins and the last ends in
            the file, and how many there are.
    """

    portions: list[tuple[int, int, int]]

    def __len__(self) -> int:
        return sum(count for _, _, count in self.portions)

    def read(self, file: BinaryIO) -> Iterator[Portion]:
        """All entries, in order."""
        first = 0
        for begin, end, count in self.portions:
            file.seek(begin)
            data = file.read(end - begin)
            brackets = _brackets_of(data, depth=2, last_opens=False)
            starts = brackets.offsets[brackets.opens & (brackets.depths == 3)]
            ends = brackets.offsets[~brackets.opens & (brackets.depths == 2)] + 1
            text = bytearray(data.replace(b"\n", b" ").replace(b"\r", b" "))
            content = np.frombuffer(text, dtype=np.uint8)
            for offset, there in _gap_bytes(ends[:-1], starts[1:]):
                places = ends[:-1][there] + offset
                content[places[content[places] == ord(",")]] = ord("\n")
            yield Portion(first, starts + begin, ends - starts, bytes(text))
            first += count

    def entries(self, file: BinaryIO) -> Iterator[Any]:
        """All entries, parsed, in order."""
        for portion in self.read(file):
            yield from parsed_lines(portion.lines)


def read_entry(file: BinaryIO, start: int, length: int) -> Any:
    """One entry, parsed."""
    file.seek(start)
    return _parsed(file.read(length))


def parsed_lines(text: bytes) -> list[Any]:
    """The entries of a portion as Python's own reader parses them."""
    return [_parsed(line) for line in text.split(b"\n")]


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise NotIndexableError(str(error)) from error


def index_json(path: str | Path, keys: Sequence[str]) -> dict[str, EntryList]:
    """
    Where the entries of the lists of a JSON object are.

    Args:
        path (`str` or `Path`): the file, not compressed.
        keys (`Sequence[str]`): of lists of objects, in any order in the file, among anything else.

    Raises:
        OSError: when the file cannot be read.
        NotIndexableError: when it is no JSON, a list is missing or has entries that are no objects.
    """
    with open(path, "rb") as file:
        scan = _Scan(keys)
        scan.read(file)
        _check_rest(file, scan, keys)
    return {key: EntryList(scan.lists[key].portions) for key in keys}


@dataclass
class _List:
    """A list that is asked for: where its brackets are, its entries, and where one begins that has not ended yet."""

    start: int
    end: int = -1
    portions: list[tuple[int, int, int]] = field(default_factory=list)
    open_entry: int | None = None


@dataclass
class _Brackets:
    """
    The brackets of a block outside of strings.

    Attributes:
        offsets (`np.ndarray`): in the block, `opens` which open, `depths` how many are open after each.
        before, before_opens (`np.ndarray`): offset of the bracket before, -1 where it is the end of the last block,
            and whether it opens.
    """

    content: np.ndarray
    offsets: np.ndarray
    opens: np.ndarray
    depths: np.ndarray
    before: np.ndarray
    before_opens: np.ndarray

    def __getitem__(self, part: slice) -> "_Brackets":
        parts = (self.offsets[part], self.opens[part], self.depths[part], self.before[part], self.before_opens[part])
        return _Brackets(self.content, *parts)


class _Scan:
    """One pass over the brackets of a file."""

    def __init__(self, keys: Sequence[str]):
        self.keys = keys
        self.lists: dict[str, _List] = {}
        self.current: _List | None = None  # the list asked for that the scan is in
        self.base = 0  # offset of the first byte behind the last bracket
        self.depth = 0
        self.last_opens = False

    def read(self, file: BinaryIO) -> None:
        mark = file.read(3)
        self.base = 3 if mark == codecs.BOM_UTF8 else 0
        file.seek(self.base)
        decoder = codecs.getincrementaldecoder("utf-8")()
        rest = b""
        while block := file.read(_BLOCK):
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                raise NotIndexableError(str(error)) from error
            rest = self._count(rest + block)
        if self.depth != 0 or rest.strip():
            raise NotIndexableError("the brackets do not match")

    def _count(self, data: bytes) -> bytes:
        """Count the brackets of a block, which begins outside of strings; returns what follows the last."""
        brackets = _brackets_of(data, self.depth, self.last_opens)
        if not len(brackets.offsets):
            return data
        self._walk(data, brackets)
        end = int(brackets.offsets[-1]) + 1
        self.base += end
        self.depth, self.last_opens = int(brackets.depths[-1]), bool(brackets.opens[-1])
        return data[end:]

    def _walk(self, data: bytes, brackets: _Brackets) -> None:
        """Take note of the lists asked for, and of the entries in them."""
        done = 0
        for index in np.flatnonzero(brackets.depths - brackets.opens <= 1).tolist():
            offset = int(brackets.offsets[index])
            if self.current is not None:
                # Nothing but its end is on the level of the keys while a list is open.
                self._take_entries(self.current, brackets[done : index + 1])
                self.current.end = self.base + offset
                self.current = None
            elif brackets.depths[index] == 2 and data[offset : offset + 1] == b"[":
                key = _last_key(data[int(brackets.before[index]) + 1 : offset])
                if key in self.lists:
                    raise NotIndexableError(f"{key} comes twice")
                if key is not None and key in self.keys:
                    self.current = self.lists[key] = _List(self.base + offset)
            done = index + 1
        if self.current is not None:
            self._take_entries(self.current, brackets[done:])

    def _take_entries(self, current: _List, brackets: _Brackets) -> None:
        """The entries among these brackets of a list, of which only the last may close it."""
        is_start = brackets.opens & (brackets.depths == 3)
        starts = (brackets.offsets[is_start] + self.base).tolist()
        ends = brackets.offsets[~brackets.opens & (brackets.depths == 2)] + self.base + 1
        if current.open_entry is not None:
            starts.insert(0, current.open_entry)
        if len(ends):
            current.portions.append((starts[0], int(ends[-1]), len(ends)))
        current.open_entry = starts[-1] if len(starts) > len(ends) else None
        # Between two entries there is a comma, before the first and after the last nothing but spaces.
        follows = is_start | (brackets.depths == 1)
        begins, ends = brackets.before[follows] + 1, brackets.offsets[follows]
        commas = np.zeros(len(ends), dtype=np.int64)
        for offset, there in _gap_bytes(begins, ends):
            characters = brackets.content[begins[there] + offset]
            commas[there] += characters == ord(",")
            if not np.isin(characters, np.frombuffer(b", \t\r\n", dtype=np.uint8)).all():
                raise NotIndexableError("a list has entries that are no objects")
        is_between = is_start[follows] & ~brackets.before_opens[follows]
        if (commas != is_between).any() or (brackets.content[brackets.offsets[is_start]] != ord("{")).any():
            raise NotIndexableError("a list has entries that are no objects")


def _brackets_of(data: bytes, depth: int, last_opens: bool) -> _Brackets:
    """
    The brackets of a part of a file that begins outside of strings.

    Raises:
        NotIndexableError: where a string has a character that JSON does not allow there.
    """
    content = np.frombuffer(data, dtype=np.uint8)
    # Escaped quotes do not end strings.
    plain = re.sub(rb"\\.", b"__", data, flags=re.DOTALL) if b"\\" in data else data
    quotes = np.flatnonzero(np.frombuffer(plain, dtype=np.uint8) == ord('"'))
    controls = np.flatnonzero(content < 32)
    if (np.searchsorted(quotes, controls) % 2).any():
        raise NotIndexableError("a control character in a string")
    # The bits that []{} have in common; few other characters have them.
    offsets = np.flatnonzero((content & 0xD9) == 0x59)
    is_bracket = np.isin(content[offsets], np.frombuffer(b"[]{}", dtype=np.uint8))
    is_bracket &= np.searchsorted(quotes, offsets) % 2 == 0
    offsets = offsets[is_bracket]
    opens = np.isin(content[offsets], np.frombuffer(b"[{", dtype=np.uint8))
    depths = np.cumsum(np.where(opens, 1, -1)) + depth
    before, before_opens = np.r_[-1, offsets[:-1]], np.r_[last_opens, opens[:-1]]
    return _Brackets(content, offsets, opens, depths, before, before_opens)


def _gap_bytes(begins: np.ndarray, ends: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """For each offset into gaps of a few bytes, which gaps are that long."""
    gaps = ends - begins
    longest = int(gaps.max(initial=0))
    if longest > _MAX_GAP:
        raise NotIndexableError("entries are far apart")
    for offset in range(longest):
        yield offset, np.flatnonzero(gaps > offset)


def _last_key(text: bytes) -> str | None:
    """The key before a value."""
    match = re.search(rb'("(?:[^"\\]|\\.)*")\s*:\s*$', text, flags=re.DOTALL)
    return _parsed(match[1]) if match else None


def _check_rest(file: BinaryIO, scan: _Scan, keys: Sequence[str]) -> None:
    """Everything but the entries of the lists, parsed; raises NotIndexableError where it is not as expected."""
    found = sorted(scan.lists.values(), key=lambda entry: entry.start)
    begins = [0, *(entry.end for entry in found)]
    ends = [*(entry.start + 1 for entry in found), file.seek(0, os.SEEK_END)]
    if sum(ends) - sum(begins) > _MAX_REST:
        raise NotIndexableError("much of the file is in other lists")
    rest = b""
    for begin, end in zip(begins, ends, strict=True):
        file.seek(begin)
        rest += file.read(end - begin)
    content = _parsed(rest.removeprefix(codecs.BOM_UTF8))
    if not isinstance(content, dict) or any(content.get(key) != [] for key in keys) or set(keys) - set(scan.lists):
        raise NotIndexableError("a list is missing")
