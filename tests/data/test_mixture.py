import pickle
from collections import Counter

import pytest
from torch.utils.data import DataLoader

from transformers_glipv2.data.mixture import DrawSampler, IndexedStream, MixtureDataset, block_shares
from transformers_glipv2.data.seeding import derive_seed


class Rows:
    def __init__(self, name, count=None):
        self.name = name
        if count is not None:
            self.count = count

    def __len__(self):
        if not hasattr(self, "count"):
            raise TypeError("endless")
        return self.count

    def __getitem__(self, index):
        return {"name": self.name, "index": index}


def test_shares_and_passes():
    mixture = MixtureDataset([Rows("a", 30), Rows("b", 7), Rows("endless")], [2, 1, 1], length=400, block_size=40)
    rows = [mixture[draw] for draw in range(400)]
    assert Counter(row["name"] for row in rows) == {"a": 200, "b": 100, "endless": 100}
    for block in range(10):
        assert Counter(row["source"] for row in rows[block * 40 : block * 40 + 40]) == {0: 20, 1: 10, 2: 10}
    first_pass = [row["index"] for row in rows if row["name"] == "a"]
    assert sorted(first_pass[:30]) == list(range(30)) and first_pass[:30] != sorted(first_pass[:30])
    assert sorted(first_pass[30:60]) == list(range(30)) and first_pass[:30] != first_pass[30:60]
    assert [row["index"] for row in rows if row["name"] == "endless"] == list(range(100))
    assert [row["draw"] for row in rows] == list(range(400))


def test_a_draw_needs_no_history():
    def make(seed=3):
        return MixtureDataset([Rows("a", 11), Rows("b", 5)], [3, 1], seed, length=5000, block_size=8)

    mixture = make()
    rows = [mixture[draw] for draw in range(200)]
    for draw in (199, 3, 77, 8, 0):
        assert make()[draw] == rows[draw] == mixture[draw]
    assert pickle.loads(pickle.dumps(mixture))[50] == rows[50]
    assert [make(4)[draw] for draw in range(200)] != rows


def test_processes_share_the_draws():
    mixture = MixtureDataset([Rows("a", 11), Rows("b", 5)], length=64)
    whole = list(DataLoader(mixture, batch_size=8, sampler=DrawSampler(64), collate_fn=list))
    resumed = list(DataLoader(mixture, batch_size=8, sampler=DrawSampler(64, start=24), collate_fn=list))
    assert resumed == whole[3:]
    workers = list(DataLoader(mixture, batch_size=8, sampler=DrawSampler(64), collate_fn=list, num_workers=2))
    assert workers == whole
    sampler = DrawSampler(1)
    sampler.load_state_dict(DrawSampler(64, 60).state_dict())
    assert list(sampler) == [60, 61, 62, 63] and len(sampler) == 4


def test_default_length_and_order():
    mixture = MixtureDataset([Rows("a", 5)], shuffle=False)
    assert [mixture[draw]["index"] for draw in range(len(mixture))] == [0, 1, 2, 3, 4]
    with pytest.raises(IndexError):
        mixture[5]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="weights"):
        MixtureDataset([Rows("a", 5)], [1, 2])
    with pytest.raises(ValueError, match="weights"):
        MixtureDataset([Rows("a", 5)], [0])
    with pytest.raises(ValueError, match="empty"):
        MixtureDataset([Rows("a", 0)])
    with pytest.raises(ValueError, match="endless"):
        MixtureDataset([Rows("a")])
    with pytest.raises(ValueError, match="block"):
        MixtureDataset([Rows("a", 5), Rows("b", 5)], [1, 10000])
    with pytest.raises(ValueError, match="start"):
        DrawSampler(5, 6)
    assert block_shares([1, 1, 1], 100) == [34, 33, 33]


def test_streams_start_over():
    stream = IndexedStream([{"index": index} for index in range(3)])
    assert [stream[n]["index"] for n in (0, 1, 2, 3, 5, 6)] == [0, 1, 2, 0, 2, 0]
    assert stream[1]["index"] == 1
    mixture = MixtureDataset([stream], length=7)
    assert [mixture[draw]["index"] for draw in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(ValueError, match="no rows"):
        IndexedStream([])[0]


def test_seeds_are_fixed_for_all_time():
    assert derive_seed(1, "flip", 2) == derive_seed(1, "flip", 2) != derive_seed(1, "flip", 3)
    assert 0 <= derive_seed("x") < 2**63
    assert derive_seed(0, "order", 0, 0) == 3691087621341314152
