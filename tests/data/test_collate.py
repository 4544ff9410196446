import pytest
import torch
from PIL import Image

from tests.tiny_training import tiny_processor
from transformers_glipv2 import GLIPv2Processor
from transformers_glipv2.data.collate import GroundingCollator
from transformers_glipv2.data.masking import mask_tokens
from transformers_glipv2.data.sampling import DetectionSampler
from transformers_glipv2.prompts import class_ids

from .stub_processor import StubProcessor, tiny_tokenizer

LABELS = ["person", "dog", "traffic light", "umbrella", "teddy bear"]


def detection_example(image_id=1, categories=("dog", "person"), **fields):
    count = len(categories)
    return {
        "image": Image.new("RGB", (40, 30), (image_id, 0, 0)),
        "image_id": image_id,
        "kind": "detection",
        "labels": LABELS,
        "objects": {"bbox": [[index, 2.0, 10.0, 12.0] for index in range(count)], "category": list(categories)},
        **fields,
    }


def grounding_example(text="a dog next the red table", spans=((2, 5), (15, 24)), **fields):
    return {
        "image": Image.new("RGB", (20, 30)),
        "image_id": "g",
        "kind": "grounding",
        "text": text,
        "objects": {"bbox": [[0.0, 0.0, 5.0, 5.0]] * len(spans), "tokens_positive": [[list(s)] for s in spans]},
        **fields,
    }


def test_boxes_keep_their_words_and_classes():
    processor = StubProcessor()
    batch = GroundingCollator(processor)([detection_example(), grounding_example(), detection_example(categories=())])
    call = processor.calls[0]
    for annotation, text in zip(call["annotations"], call["text"], strict=True):
        words = [text[start:end] for spans in annotation["spans"] for start, end in spans]
        assert words in (["dog", "person"], ["dog", "red table"], [])
    assert call["annotations"][0]["class_names"] == ["dog", "person"]
    assert call["annotations"][1]["class_names"] is None
    assert call["annotations"][2]["boxes"].shape == (0, 4)
    assert len(batch["labels"]) == 3
    assert "mlm_labels" not in batch


def test_rows_with_a_draw_number_do_not_depend_on_their_batch():
    examples = [detection_example(index, sample_index=index) for index in range(6)]
    arguments = {
        "mlm_probability": 0.5,
        "seed": 7,
        "augment": lambda example, rng: {**example, "chance": rng.random()},
    }
    processor = StubProcessor()
    together = GroundingCollator(processor, **arguments)(examples)
    for index, example in enumerate(examples):
        alone = GroundingCollator(processor, **arguments)([example])
        length = alone["input_ids"].shape[1]
        torch.testing.assert_close(alone["input_ids"][0], together["input_ids"][index, :length])
        torch.testing.assert_close(alone["mlm_labels"][0], together["mlm_labels"][index, :length])
        assert (together["mlm_labels"][index, length:] == -100).all()
        assert processor.calls[-1]["text"] == [processor.calls[0]["text"][index]]


def test_the_count_resumes():
    examples = [detection_example(index) for index in range(3)]
    processor = StubProcessor()
    collator = GroundingCollator(processor, mlm_probability=0.3, seed=3)
    collator(examples)
    state = collator.state_dict()
    expected = collator(examples)
    resumed = GroundingCollator(processor, mlm_probability=0.3)
    resumed.load_state_dict(state)
    got = resumed(examples)
    assert processor.calls[-1]["text"] == processor.calls[-2]["text"] != processor.calls[0]["text"]
    torch.testing.assert_close(got["input_ids"], expected["input_ids"])


def test_only_words_with_boxes_are_hidden_in_detection_sentences():
    processor = StubProcessor()
    collator = GroundingCollator(processor, mlm_probability=0.99, sampler=DetectionSampler(full_probability=1.0))
    batch = collator(
        [detection_example(categories=("traffic light",), sample_index=0), grounding_example(sample_index=1)]
    )
    tokenizer = processor.tokenizer
    asked = [tokenizer.convert_ids_to_tokens(example[example != -100]) for example in batch["mlm_labels"]]
    assert set(asked[0]) <= {"traffic", "light"} and asked[0]
    assert len(asked[1]) == 6
    assert not set(asked[0] + asked[1]) & set(tokenizer.all_special_tokens)


def test_boxes_whose_words_are_cut_off_are_left_out():
    processor = StubProcessor(max_length=6)
    collator = GroundingCollator(processor)
    batch = collator([grounding_example("a dog next the red table", spans=((2, 5), (15, 24)))])
    assert batch["labels"][0]["spans"] == [[(2, 5)]]
    assert collator.cut_off == 1


def test_unknown_boxes_are_not_no_boxes():
    example = {"image": Image.new("RGB", (8, 8)), "image_id": 1, "kind": "caption", "text": "a dog"}
    batch = GroundingCollator(StubProcessor())([example, detection_example(categories=())])
    assert batch["labels"][0] is None
    assert batch["labels"][1]["boxes"].shape == (0, 4)


def test_every_listed_class_has_its_words():
    processor = StubProcessor()
    batch = GroundingCollator(processor)(
        [detection_example(categories=("teddy bear",), sample_index=3), grounding_example(sample_index=4)]
    )
    label = batch["labels"][0]
    names = [processor.tokenizer.decode(batch["input_ids"][0][own > 0]) for own in label["prompt_map"]]
    assert set(names) > {"teddy bear"} and len(set(names)) == len(names)
    assert label["prompt_class_ids"].equal(class_ids(names))
    assert "prompt_class_ids" not in batch["labels"][1]


def test_a_size_is_shared_by_a_period():
    processor = StubProcessor()
    collator = GroundingCollator(processor, sizes=[320, 352, 384], max_size=640, size_period=4)
    shortest = []
    for sample in range(0, 40, 2):
        collator([detection_example(sample_index=sample), detection_example(sample_index=sample + 1)])
        shortest.append(processor.calls[-1]["size"]["shortest_edge"])
        assert processor.calls[-1]["size"]["longest_edge"] == 640
    assert shortest[::2] == shortest[1::2]
    assert set(shortest) == {320, 352, 384}


def test_masks_come_at_the_size_of_the_image():
    example = detection_example(categories=("dog", "person"))
    example["objects"]["segmentation"] = [[[0, 2, 10, 2, 10, 14, 0, 14]], None]
    pytest.importorskip("pycocotools")
    processor = StubProcessor()
    GroundingCollator(processor, with_masks=True)([example])
    masks = processor.calls[0]["annotations"][0]["masks"]
    assert masks.shape == (2, 30, 40) and masks.dtype == torch.bool
    assert masks[0].sum() == 120 and not masks[1].any()


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="mlm_probability"):
        GroundingCollator(StubProcessor(), mlm_probability=1.0)
    with pytest.raises(ValueError, match="size_period"):
        GroundingCollator(StubProcessor(), size_period=0)


def test_masking_follows_bert():
    ids = torch.arange(1000, 21000)
    maskable = torch.ones(20000, dtype=torch.bool)
    maskable[:5000] = False
    masked, labels = mask_tokens(ids, maskable, 4, 1000, torch.Generator().manual_seed(0))
    chosen = labels != -100
    assert not chosen[:5000].any()
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(masked[~chosen], ids[~chosen])
    assert abs(chosen[5000:].float().mean() - 0.15) < 0.01
    kinds = masked[chosen]
    assert abs((kinds == 4).float().mean() - 0.8) < 0.02
    assert abs((kinds == ids[chosen]).float().mean() - 0.1) < 0.02


def test_default_sampler_fits_the_text():
    processor = StubProcessor(max_length=10)
    example = detection_example(categories=("teddy bear",))
    for sample in range(20):
        GroundingCollator(processor, seed=sample)([example])
        text = processor.calls[-1]["text"][0]
        assert len(processor.tokenizer(text)["input_ids"]) <= 10
        assert "teddy bear" in text


@pytest.mark.parametrize("limits", [{"processor": 32}, {"collator": 32}, {"processor": 40, "collator": 32}])
def test_texts_are_as_long_as_the_processor_says(limits):
    """32 tokens and 20 labels: the sampler, the labels and the ids agree."""
    processor = GLIPv2Processor(tiny_processor().image_processor, tiny_tokenizer(), limits.get("processor", 256))
    labels = [
        f"{one} {two}" for one in ("red", "black", "teddy", "wine") for two in ("dog", "cat", "man", "bear", "table")
    ]
    example = detection_example(categories=(labels[3], labels[17]), labels=labels)
    long = grounding_example("a dog next the red table " * 6, spans=((2, 5), (140, 149)))
    collator = GroundingCollator(processor, max_text_length=limits.get("collator"), mlm_probability=0.2)
    for _ in range(3):
        batch = collator([example, long])
        count = batch["input_ids"].shape[1]
        assert count <= 32 and batch["mlm_labels"].shape == batch["input_ids"].shape
        assert batch["labels"][0]["boxes"].shape == (2, 4) and batch["labels"][1]["boxes"].shape == (1, 4)
        for own in batch["labels"]:
            assert own["positive_map"].shape == (len(own["boxes"]), count) and own["positive_map"].any(1).all()
        assert batch["labels"][0]["prompt_map"].shape[1] == count
