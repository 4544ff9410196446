"""A weighted mixture of data sets in which every draw has a number, and the number alone decides what is drawn."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset, Sampler

from transformers_glipv2.data.seeding import derive_random


class MixtureDataset(Dataset):
    """
    Draws rows of several data sets.

    Draw `d` belongs to block `d // block_size`. Every block holds the same number of rows of each source, shuffled
    anew; within a source rows come without replacement, pass after pass, each shuffled anew. So `mixture[d]` needs no
    history: any process and worker may ask for any draw, and a run resumes by asking for the next number.

    Args:
        sources (`Sequence`): map-style data sets of schema rows. One without `len` is endless: it is asked for rows
            0, 1, 2, ... in its own order.
        weights (`Sequence[float]`, *optional*): shares of the draws; by default equal. They are rounded to whole rows
            of a block.
        seed (`int`, *optional*, defaults to 0).
        length (`int`, *optional*): draws altogether; by default one pass over the finite sources' rows.
        block_size (`int`, *optional*, defaults to 1000): a smaller one mixes more evenly and rounds shares more.
        shuffle (`bool`, *optional*, defaults to `True`): `False` keeps the order of rows within the sources.

    Rows get `draw` (`int`) and `source` (`int`, index into the sources) added; `GroundingCollator` chooses by
    the draw.

    Raises:
        ValueError: when weights do not fit the sources, a source is empty or gets no row of a block, or `length` is
            missing where every source is endless.
    """

    def __init__(
        self,
        sources: Sequence[Any],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        length: int | None = None,
        block_size: int = 1000,
        shuffle: bool = True,
    ):
        weights = [1.0] * len(sources) if weights is None else list(weights)
        if len(weights) != len(sources) or not sources or min(weights) <= 0:
            raise ValueError(f"`weights` must give one positive number for each of {len(sources)} sources: {weights}.")
        self.sources = list(sources)
        self.source_lengths = [_length(source) for source in self.sources]
        if 0 in self.source_lengths:
            raise ValueError(f"source {self.source_lengths.index(0)} of the mixture is empty.")
        finite = [count for count in self.source_lengths if count is not None]
        if length is None and not finite:
            raise ValueError("every source is endless: pass `length`, the number of draws.")
        self.seed = seed
        self.length = sum(finite) if length is None else length
        self.block_size = block_size
        self.shuffle = shuffle
        self.per_block = block_shares(weights, block_size)
        self._blocks: dict[int, list[tuple[int, int]]] = {}
        self._orders: dict[int, tuple[int, list[int]]] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, draw: int) -> dict[str, Any]:
        if not 0 <= draw < self.length:
            raise IndexError(f"draw {draw} of a mixture of {self.length} draws")
        source, index = self.locate(draw)
        return {**self.sources[source][index], "draw": draw, "source": source}

    def locate(self, draw: int) -> tuple[int, int]:
        """Source and row of a draw, without reading the row."""
        block, place = divmod(draw, self.block_size)
        source, nth = self._block(block)[place]
        nth += block * self.per_block[source]
        length = self.source_lengths[source]
        if length is None:
            return source, nth
        epoch, position = divmod(nth, length)
        return source, self._order(source, epoch, length)[position] if self.shuffle else position

    def __getstate__(self) -> dict[str, Any]:
        # Workers rebuild the caches; sending them would cost more.
        return {**self.__dict__, "_blocks": {}, "_orders": {}}

    def _block(self, block: int) -> list[tuple[int, int]]:
        """(source, how many of this source came before in the block) of each place."""
        if block not in self._blocks:
            order = [source for source, count in enumerate(self.per_block) for _ in range(count)]
            derive_random(self.seed, "block", block).shuffle(order)
            seen = [0] * len(self.sources)
            places = []
            for source in order:
                places.append((source, seen[source]))
                seen[source] += 1
            # A batch lies in at most two blocks; older ones do not come back.
            self._blocks = {key: value for key, value in self._blocks.items() if key == block - 1}
            self._blocks[block] = places
        return self._blocks[block]

    def _order(self, source: int, epoch: int, length: int) -> list[int]:
        key, order = self._orders.get(source, (-1, []))
        if key != epoch:
            order = list(range(length))
            derive_random(self.seed, "order", source, epoch).shuffle(order)
            self._orders[source] = (epoch, order)
        return order


def block_shares(weights: Sequence[float], block_size: int) -> list[int]:
    """
    Rows of each source in a block, by largest remainders.

    Raises:
        ValueError: when a source's share is below one row.
    """
    exact = [weight / sum(weights) * block_size for weight in weights]
    shares = [int(share) for share in exact]
    for index in sorted(range(len(exact)), key=lambda i: shares[i] - exact[i])[: block_size - sum(shares)]:
        shares[index] += 1
    if 0 in shares:
        raise ValueError(f"weights {list(weights)} give a source no row in a block of {block_size}; enlarge it.")
    return shares


class DrawSampler(Sampler[int]):
    """
    The draws of a run from a step on, in order: an uninterrupted run and a resumed one ask for the same.

    Args:
        num_draws (`int`): of the whole run, over all processes.
        start (`int`, *optional*, defaults to 0): draws already made, over all processes.
    """

    def __init__(self, num_draws: int, start: int = 0):
        if not 0 <= start <= num_draws:
            raise ValueError(f"`start` must be in [0, {num_draws}], got {start}.")
        self.num_draws = num_draws
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.num_draws))

    def __len__(self) -> int:
        return self.num_draws - self.start

    def state_dict(self) -> dict[str, int]:
        """What `load_state_dict` needs; set `start` to the draws made before saving."""
        return {"num_draws": self.num_draws, "start": self.start}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self.num_draws, self.start = state["num_draws"], state["start"]


class IndexedStream:
    """
    An iterable as an endless source: row n is the n-th that it gives, starting over when it ends.

    Rows can only be asked for in order (gaps are read and thrown away), so a resumed run first reads up to its place,
    and each data loader worker reads all of it. Where a source can be indexed, do that instead.

    Args:
        iterable: gives schema rows; each `iter` of it starts at the first. Its `set_epoch`, where it has one (as
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
            row = self._advance()
            if self._next > index:
                return row

    def __getstate__(self) -> dict[str, Any]:
        return {"iterable": self.iterable, "_iterator": None, "_next": 0, "_epoch": 0}

    def _start(self) -> Iterator[dict[str, Any]]:
        if hasattr(self.iterable, "set_epoch"):
            self.iterable.set_epoch(self._epoch)
        # A `ImageStream` gives each data loader worker a part; here the number of a row must be the same in all.
        whole = getattr(self.iterable, "all_examples", None)
        self._iterator = iter(self.iterable) if whole is None else whole()
        return self._iterator

    def _advance(self) -> dict[str, Any]:
        row = next(self._iterator or self._start(), None)
        if row is None:
            self._epoch += 1
            row = next(self._start(), None)
            if row is None:
                raise ValueError("the iterable of an `IndexedStream` gives no rows.")
        self._next += 1
        return row


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except (TypeError, NotImplementedError):
        return None
