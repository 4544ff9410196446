"""A weighted mixture of data sets in which the index of a sample alone decides which example it is."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from transformers_glipv2.data.lanes import LaneStream, can_be_dealt
from transformers_glipv2.data.seeding import derive_random


class MixtureDataset(Dataset):
    """
    Samples examples of several data sets.

    Sample `i` belongs to block `i // block_size`. Every block holds the same number of examples of each source,
    shuffled anew; within a source examples come without replacement, pass after pass, each shuffled anew. So
    `mixture[i]` needs no history: any process and worker may ask for any sample, and a run resumes by asking for the
    next index.

    Args:
        sources (`Sequence`): data sets of schema examples. One without `len` is endless: it is asked for examples 0,
            1, 2, ... in its own order. One without `__getitem__` is read as an `IndexedStream`.
        weights (`Sequence[float]`, *optional*): fractions of the samples, up to a common factor; by default equal.
            They are rounded to whole examples of a block.
        seed (`int`, *optional*, defaults to 0).
        length (`int`, *optional*): samples altogether; by default one pass over the finite sources' examples.
        block_size (`int`, *optional*, defaults to 1000): a smaller one mixes more evenly and rounds fractions more.
        shuffle (`bool`, *optional*, defaults to `True`): `False` keeps the order of examples within the sources.
        lanes (`int`, *optional*, defaults to 1): sample `i` belongs to lane `i % lanes`. Every lane has blocks of its
            own, and shards of streamed sources of its own (see `LaneStream`).

    Examples get `sample_index` (`int`) and `source` (`int`, index into the sources) added; what `GroundingCollator`
    chooses at random depends on the sample index.

    Raises:
        ValueError: when weights do not fit the sources, a source is empty or gets no example of a block, or `length`
            is missing where every source is endless.
    """

    def __init__(
        self,
        sources: Sequence[Any],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        length: int | None = None,
        block_size: int = 1000,
        shuffle: bool = True,
        lanes: int = 1,
    ):
        weights = [1.0] * len(sources) if weights is None else list(weights)
        if len(weights) != len(sources) or not sources or min(weights) <= 0:
            raise ValueError(f"`weights` must give one positive number for each of {len(sources)} sources: {weights}.")
        self.lanes = lanes
        self.sources = [self._indexed(source) for source in sources]
        self.source_lengths = [_length(source) for source in self.sources]
        if 0 in self.source_lengths:
            raise ValueError(f"source {self.source_lengths.index(0)} of the mixture is empty.")
        finite = [count for count in self.source_lengths if count is not None]
        if length is None and not finite:
            raise ValueError("every source is endless: pass `length`, the number of samples.")
        self.seed = seed
        self.length = sum(finite) if length is None else length
        self.block_size = block_size
        self.shuffle = shuffle
        self.per_block = block_counts(weights, block_size)
        self._blocks: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._orders: dict[int, tuple[int, list[int]]] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, sample_index: int) -> dict[str, Any]:
        if not 0 <= sample_index < self.length:
            raise IndexError(f"sample {sample_index} of a mixture of {self.length} samples")
        source, index = self.locate(sample_index)
        return {**self.sources[source][index], "sample_index": sample_index, "source": source}

    def locate(self, sample_index: int) -> tuple[int, int]:
        """Source of a sample and index of its example there, without reading the example."""
        sample, lane = divmod(sample_index, self.lanes)
        block, position = divmod(sample, self.block_size)
        source, nth = self._block(lane, block)[position]
        nth = (nth + block * self.per_block[source]) * self.lanes + lane
        length = self.source_lengths[source]
        if length is None:
            return source, nth
        epoch, position = divmod(nth, length)
        return source, self._order(source, epoch, length)[position] if self.shuffle else position

    def __getstate__(self) -> dict[str, Any]:
        # Workers rebuild the caches; sending them would cost more.
        return {**self.__dict__, "_blocks": {}, "_orders": {}}

    def _indexed(self, source: Any) -> Any:
        # PyTorch's class for streams has a `__getitem__` too, which only raises.
        if hasattr(source, "__getitem__") and not isinstance(source, IterableDataset):
            return source
        return LaneStream(source, self.lanes) if self.lanes > 1 and can_be_dealt(source) else IndexedStream(source)

    def _block(self, lane: int, block: int) -> list[tuple[int, int]]:
        """(source, how many of this source came before in the block) of each sample of a block of a lane."""
        if (lane, block) not in self._blocks:
            order = [source for source, count in enumerate(self.per_block) for _ in range(count)]
            derive_random(self.seed, "block", block, *([lane] if lane else [])).shuffle(order)
            seen = [0] * len(self.sources)
            samples = []
            for source in order:
                samples.append((source, seen[source]))
                seen[source] += 1
            # A batch is in at most two blocks; older ones do not come back.
            self._blocks.pop((lane, block - 2), None)
            self._blocks[lane, block] = samples
        return self._blocks[lane, block]

    def _order(self, source: int, epoch: int, length: int) -> list[int]:
        key, order = self._orders.get(source, (-1, []))
        if key != epoch:
            order = list(range(length))
            derive_random(self.seed, "order", source, epoch).shuffle(order)
            self._orders[source] = (epoch, order)
        return order


def block_counts(weights: Sequence[float], block_size: int) -> list[int]:
    """
    Examples of each source in a block, by largest remainders.

    Raises:
        ValueError: when a source gets less than one example.
    """
    exact = [weight / sum(weights) * block_size for weight in weights]
    counts = [int(count) for count in exact]
    for index in sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])[: block_size - sum(counts)]:
        counts[index] += 1
    if 0 in counts:
        raise ValueError(f"weights {list(weights)} give a source no example in a block of {block_size}; enlarge it.")
    return counts


class IndexedStream:
    """
    An iterable as an endless source: example n is the n-th of the iterable, which starts over when it ends.

    Examples can only be read in order (gaps are read and dropped), so a resumed run first reads up to its sample,
    and each data loader worker reads all of it. Where a source can be indexed, do that instead; where it is made of
    shards, use `LaneStream`.

    Args:
        iterable: of schema examples; each `iter` of it starts at the first. Its `set_epoch`, where it has one (as
            streaming `datasets` do), is called with the number of the pass.
    """

    def __init__(self, iterable: Any):
        self.iterable = iterable
        self._iterator: Iterator[dict[str, Any]] | None = None
        self._next = 0
        self._epoch = 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._iterator is None or index < self._next:
            self._epoch, self._next = 0, 0
            self._start()
        while True:
            example = self._advance()
            if self._next > index:
                return example

    def __getstate__(self) -> dict[str, Any]:
        return {"iterable": self.iterable, "_iterator": None, "_next": 0, "_epoch": 0}

    def _start(self) -> Iterator[dict[str, Any]]:
        if hasattr(self.iterable, "set_epoch"):
            self.iterable.set_epoch(self._epoch)
        # An `ImageStream` gives each data loader worker a part; here the number of an example must be the same in all.
        whole = getattr(self.iterable, "all_examples", None)
        self._iterator = iter(self.iterable) if whole is None else whole()
        return self._iterator

    def _advance(self) -> dict[str, Any]:
        example = next(self._iterator or self._start(), None)
        if example is None:
            self._epoch += 1
            example = next(self._start(), None)
            if example is None:
                raise ValueError("the iterable of an `IndexedStream` gives no examples.")
        self._next += 1
        return example


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except (TypeError, NotImplementedError):
        return None
