"""Streams whose shards are dealt out to the images of a step, so that no process reads another's."""

from collections.abc import Iterator
from typing import Any

from transformers.utils import logging

from transformers_glipv2.data.dataset import ImageStream, read_example
from transformers_glipv2.data.hub import StreamedRecords

logger = logging.get_logger(__name__)


def can_be_dealt(source: Any) -> bool:
    """Whether a source is a stream of shards that [`LaneStream`] takes."""
    return isinstance(source, ImageStream) and isinstance(source.read_records, StreamedRecords)


class LaneStream:
    """
    An endless source of which example `i` comes from lane `i % lanes`, and each lane reads shards of its own.

    A process that trains on images 4 to 7 of every step asks for their lanes only, so it opens their shards only: a
    data set is dealt out to machines, processes and workers without overlap, and which example a sample is still
    depends on its index alone. So a run goes on exactly, also on another number of processes.

    Where there are fewer shards than lanes, the lanes of a shard read all of it and take its examples in turn. Within
    a shard examples are read in order: a run that resumes first reads up to where it was, without decoding images.

    Args:
        stream (`ImageStream`): of `load_hub(..., streaming=True)` or `load_webdataset`.
        lanes (`int`): images of a step times data loader workers of a process.

    Raises:
        ValueError: when a lane has no example; the message says what to change.
    """

    def __init__(self, stream: ImageStream, lanes: int):
        self.stream = stream
        self.lanes = lanes
        self.class_names = stream.class_names
        self.report = stream.report
        self.shards = min(stream.read_records.dataset.num_shards, lanes)  # type: ignore[attr-defined]
        if lanes % self.shards:
            logger.warning_once(
                f"{self.shards} shards are dealt to {lanes} readers (images of a step times `stream_readers`), so "
                "some shards are read more often than others; use many more shards, or a multiple of the readers."
            )
        self._readers: dict[int, _LaneReader] = {}

    def __getitem__(self, index: int) -> dict[str, Any]:
        lane, position = index % self.lanes, index // self.lanes
        reader = self._readers.get(lane)
        if reader is None or position < reader.first:
            reader = self._readers[lane] = _LaneReader(self.stream, lane, self.lanes, self.shards)
        return reader.example(position)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}


class _LaneReader:
    """
    Reads one lane, pass after pass.

    Attributes:
        first (`int`): the lowest position that can be asked for: that of the last call.
    """

    def __init__(self, stream: ImageStream, lane: int, lanes: int, shards: int):
        self.stream = stream
        self.lane = lane
        self.lanes = lanes
        self.shards = shards
        self.first = 0
        self.epoch = 0
        self._read = 0  # examples read, over all passes
        self._last: dict[str, Any] | None = None  # the example at position `_read - 1`
        self._examples: Iterator[dict[str, Any]] | None = None

    def example(self, position: int) -> dict[str, Any]:
        """The example at a position of all passes, or the next one that can be read."""
        reached = None
        while self._last is None or self._read <= position:
            raw = self._next()
            self._read += 1
            if self._read <= position:
                self._last = None
                continue
            reached = self.epoch if reached is None else reached
            if self.epoch > reached + 1:
                raise ValueError(f"no image of reader {self.lane} can be read: {self.stream.report.summary()}")
            self._last = self._decoded(raw)
        self.first = position
        return dict(self._last)

    def _decoded(self, raw: dict[str, Any]) -> dict[str, Any] | None:
        record = self.stream.read_records.record(raw, self._read - 1, self.stream.report)  # type: ignore[attr-defined]
        return None if record is None else read_example(record, self.stream.class_names, self.stream.report)

    def _next(self) -> dict[str, Any]:
        if self._examples is None:
            self._examples = self._pass()
        raw = next(self._examples, None)
        if raw is None:
            self.epoch += 1
            self._examples = self._pass()
            raw = next(self._examples, None)
        if raw is None:
            raise ValueError(
                f"reader {self.lane} of {self.lanes} (images of a step times `stream_readers`) has no example of the "
                f"{self.shards} shards; use fewer images in a step or fewer `stream_readers`, or more examples."
            )
        return raw

    def _pass(self) -> Iterator[dict[str, Any]]:
        dataset = self.stream.read_records.dataset  # type: ignore[attr-defined]
        part = dataset.shard(num_shards=self.shards, index=self.lane % self.shards)
        part.set_epoch(self.epoch)
        first = self.lane // self.shards
        step = len(range(self.lane % self.shards, self.lanes, self.shards))
        # `iter` by batches, as the plain one would deal the shards to data loader workers once more.
        for number, batch in enumerate(part.iter(batch_size=1)):
            if number % step == first:
                yield {name: values[0] for name, values in batch.items()}
