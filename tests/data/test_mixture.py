import pickle
from collections import Counter

import pytest
from torch.utils.data import DataLoader

from transformers_glipv2.data.mixture import IndexedStream, MixtureDataset, block_counts
from transformers_glipv2.data.seeding import derive_seed


class Examples:
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
    mixture = MixtureDataset(
        [Examples("a", 30), Examples("b", 7), Examples("endless")], [2, 1, 1], length=400, block_size=40
    )
    examples = [mixture[sample_index] for sample_index in range(400)]
    assert Counter(example["name"] for example in examples) == {"a": 200, "b": 100, "endless": 100}
    for block in range(10):
        assert Counter(example["source"] for example in examples[block * 40 : block * 40 + 40]) == {
            0: 20,
            1: 10,
            2: 10,
        }
    first_pass = [example["index"] for example in examples if example["name"] == "a"]
    assert sorted(first_pass[:30]) == list(range(30)) and first_pass[:30] != sorted(first_pass[:30])
    assert sorted(first_pass[30:60]) == list(range(30)) and first_pass[:30] != first_pass[30:60]
    assert [example["index"] for example in examples if example["name"] == "endless"] == list(range(100))
    assert [example["sample_index"] for example in examples] == list(range(400))


def test_a_draw_needs_no_history():
    def make(seed=3):
        return MixtureDataset([Examples("a", 11), Examples("b", 5)], [3, 1], seed, length=5000, block_size=8)

    mixture = make()
    examples = [mixture[sample_index] for sample_index in range(200)]
    for sample_index in (199, 3, 77, 8, 0):
        assert make()[sample_index] == examples[sample_index] == mixture[sample_index]
    assert pickle.loads(pickle.dumps(mixture))[50] == examples[50]
    assert [make(4)[sample_index] for sample_index in range(200)] != examples


def test_samples_do_not_depend_on_the_process_that_asks():
    mixture = MixtureDataset([Examples("a", 11), Examples("b", 5)], length=64)
    whole = list(DataLoader(mixture, batch_size=8, sampler=range(64), collate_fn=list))
    resumed = list(DataLoader(mixture, batch_size=8, sampler=range(24, 64), collate_fn=list))
    assert resumed == whole[3:]
    workers = list(DataLoader(mixture, batch_size=8, sampler=range(64), collate_fn=list, num_workers=2))
    assert workers == whole


def test_streams_need_no_wrapper():
    class Stream:
        def __iter__(self):
            return iter([{"index": index} for index in range(3)])

    mixture = MixtureDataset([Stream()], length=5, shuffle=False)
    assert [mixture[index]["index"] for index in range(5)] == [0, 1, 2, 0, 1]


def test_default_length_and_order():
    mixture = MixtureDataset([Examples("a", 5)], shuffle=False)
    assert [mixture[sample_index]["index"] for sample_index in range(len(mixture))] == [0, 1, 2, 3, 4]
    with pytest.raises(IndexError):
        mixture[5]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="weights"):
        MixtureDataset([Examples("a", 5)], [1, 2])
    with pytest.raises(ValueError, match="weights"):
        MixtureDataset([Examples("a", 5)], [0])
    with pytest.raises(ValueError, match="empty"):
        MixtureDataset([Examples("a", 0)])
    with pytest.raises(ValueError, match="endless"):
        MixtureDataset([Examples("a")])
    with pytest.raises(ValueError, match="block"):
        MixtureDataset([Examples("a", 5), Examples("b", 5)], [1, 10000])
    assert block_counts([1, 1, 1], 100) == [34, 33, 33]


def test_streams_start_over():
    stream = IndexedStream([{"index": index} for index in range(3)])
    assert [stream[n]["index"] for n in (0, 1, 2, 3, 5, 6)] == [0, 1, 2, 0, 2, 0]
    assert stream[1]["index"] == 1
    mixture = MixtureDataset([stream], length=7)
    assert [mixture[sample_index]["index"] for sample_index in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(ValueError, match="no examples"):
        IndexedStream([])[0]


def test_seeds_are_fixed_for_all_time():
    assert derive_seed(1, "flip", 2) == derive_seed(1, "flip", 2) != derive_seed(1, "flip", 3)
    assert 0 <= derive_seed("x") < 2**63
    assert derive_seed(0, "order", 0, 0) == 3691087621341314152
