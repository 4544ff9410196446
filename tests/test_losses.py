"""The losses against hand-computed cases, bad labels, and two processes against one."""

import math
import os

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch.nn.functional import logsigmoid
from torchvision.ops import generalized_box_iou_loss

from tests.tiny import tiny_config, tiny_inputs
from transformers_glipv2.losses import (
    AnchorTargets,
    choose_regions,
    classes_of_tokens,
    contrastive_loss,
    giou_loss,
    inter_image_loss,
    masked_token_loss,
    match_anchors,
    token_loss,
)
from transformers_glipv2.modeling_glipv2_joint import GLIPv2ForJointTraining
from transformers_glipv2.modeling_glipv2_pretraining import GLIPv2ForPreTraining
from transformers_glipv2.modeling_glipv2_vqa import answer_config
from transformers_glipv2.prompts import class_id, class_ids


def targets_of(tokens: torch.Tensor, anchors: list[int], is_labelled=(True,), images=None) -> AnchorTargets:
    count = len(anchors)
    return AnchorTargets(
        is_labelled=torch.tensor(is_labelled),
        is_positive=torch.ones(count, dtype=torch.bool),
        image=torch.tensor(images or [0] * count, dtype=torch.long),
        anchor=torch.tensor(anchors, dtype=torch.long),
        anchors_xyxy=torch.zeros(count, 4),
        boxes_xyxy=torch.zeros(count, 4),
        centerness=torch.linspace(1, 0.1, count) if count else torch.zeros(0),
        tokens=tokens,
        classes=torch.zeros(count, dtype=torch.long),
        pairs_of_images=[(images or [0] * count).count(image) for image in range(len(is_labelled))],
        num_positives=torch.tensor(max(1.0, count)),
        sum_centerness=torch.tensor(1.0),
    )


# L_intra -------------------------------------------------------------------------------------------------------------


def focal(logit: float, target: int, alpha: float = 0.25) -> float:
    probability = 1 / (1 + math.exp(-logit))
    if target:
        return -alpha * (1 - probability) ** 2 * math.log(probability)
    return -(1 - alpha) * probability**2 * math.log(1 - probability)


def test_token_loss_is_the_focal_loss_over_attended_words():
    logits = torch.tensor([[[0.3, -1.2, 2.0], [1.1, 0.2, -0.4]]])
    words = torch.tensor([[False, True, True]])
    attention_mask = torch.tensor([[1, 1, 0]])
    loss = token_loss(logits, targets_of(words, [1]), attention_mask, torch.tensor(2.0))
    expected = (focal(0.3, 0) + focal(-1.2, 0) + focal(1.1, 0) + focal(0.2, 1)) / 2
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_images_of_unknown_boxes_take_no_part():
    logits = torch.randn(2, 5, 3, requires_grad=True)
    targets = targets_of(torch.zeros(0, 3, dtype=torch.bool), [], is_labelled=(False, True))
    token_loss(logits, targets, None, torch.tensor(1.0)).backward()
    assert not logits.grad[0].any()
    assert logits.grad[1].all()


# L_loc ---------------------------------------------------------------------------------------------------------------


def test_giou_equals_torchvision():
    corners = torch.rand(2, 50, 2, generator=torch.Generator().manual_seed(0)) * 10
    one, other = torch.cat([corners, corners + corners.flip(1) + 0.1], dim=2)
    one.requires_grad_()
    ours, theirs = giou_loss(one, other), generalized_box_iou_loss(one, other, eps=1e-7)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss.sum(), one)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)


# L_inter -------------------------------------------------------------------------------------------------------------


def test_contrast_shares_a_row_between_its_matches():
    similarity = torch.tensor([[1.0, 2.0, -torch.inf], [0.0, 0.0, -torch.inf]])
    is_match = torch.tensor([[True, True, False], [False, False, False]])
    log_z = math.log(math.e + math.e**2)
    assert float(contrastive_loss(similarity, is_match)) == pytest.approx(log_z - 1.5, rel=1e-6)


def inter_inputs() -> dict[str, torch.Tensor]:
    """Two images, two regions (the second image has one), three words (the second text has two)."""
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize
    dog, person = class_id("dog"), class_id("person")
    return {
        "regions": unit(torch.randn(2, 2, 4, generator=generator), dim=-1),
        "tokens": unit(torch.randn(2, 3, 4, generator=generator), dim=-1),
        "own_tokens": torch.tensor([[[True, False, False], [False, True, True]], [[False, True, False], [False] * 3]]),
        "region_mask": torch.tensor([[True, True], [True, False]]),
        "token_mask": torch.tensor([[True, True, True], [True, True, False]]),
        "region_classes": torch.tensor([[dog, person], [dog, 0]]),
        "token_classes": torch.tensor([[dog, person, person], [0, dog, 0]]),
        "log_temperature": torch.tensor([math.log(0.5)]),
        "normalizer": torch.tensor(3.0),
    }


def test_inter_image_loss_by_hand():
    inputs = inter_inputs()
    regions = torch.cat([inputs["regions"][0], inputs["regions"][1, :1]])
    words = torch.cat([inputs["tokens"][0], inputs["tokens"][1, :2]])
    similarity = regions @ words.T / 0.5
    # Regions: dog, person | dog. Words: dog, person, person | other, dog.
    matches = torch.tensor([[1, 0, 0, 0, 1], [0, 1, 1, 0, 0], [1, 0, 0, 0, 1]], dtype=torch.float)
    by_region = -(similarity.log_softmax(1) * matches / matches.sum(1, keepdim=True)).sum()
    by_word = -(similarity.log_softmax(0) * matches / matches.sum(0).clamp(min=1)).sum()
    torch.testing.assert_close(inter_image_loss(**inputs), (by_region + by_word) / 2 / 3)


def test_words_of_captions_match_no_other_image():
    inputs = inter_inputs()
    inputs["token_classes"][1] = 0
    inputs["region_classes"][1] = 0
    regions = torch.cat([inputs["regions"][0], inputs["regions"][1, :1]])
    words = torch.cat([inputs["tokens"][0], inputs["tokens"][1, :2]])
    similarity = regions @ words.T / 0.5
    matches = torch.tensor([[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.float)
    by_region = -(similarity.log_softmax(1) * matches / matches.sum(1, keepdim=True)).sum()
    by_word = -(similarity.log_softmax(0) * matches / matches.sum(0).clamp(min=1)).sum()
    torch.testing.assert_close(inter_image_loss(**inputs), (by_region + by_word) / 2 / 3)


def test_fillers_and_padding_change_nothing():
    inputs = inter_inputs()
    changed = {name: value.clone() for name, value in inputs.items()}
    changed["regions"][1, 1] = 0.5
    changed["tokens"][1, 2] = -0.5
    torch.testing.assert_close(inter_image_loss(**changed), inter_image_loss(**inputs))


def test_the_most_central_regions_are_chosen():
    words = torch.eye(5, dtype=torch.bool)
    targets = targets_of(words, [3, 1, 4, 0, 2], (True, True), [0, 0, 0, 0, 1])
    anchors, own_words, _, mask = choose_regions(targets, batch=2, limit=2)
    assert anchors.tolist() == [[3, 1], [2, 0]]
    assert mask.tolist() == [[True, True], [True, False]]
    assert own_words[0].equal(words[:2])
    assert not own_words[1, 1].any()


def test_classes_of_tokens_prefer_the_whole_prompt():
    boxes_only = {"class_ids": class_ids(["dog"]), "positive_map": torch.tensor([[0.0, 1.0, 0.0, 0.0]])}
    listed = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 1]])
    whole = {**boxes_only, "prompt_class_ids": class_ids(["Dog", "cat"]), "prompt_map": listed}
    caption = {"positive_map": torch.ones(1, 4)}
    classes = classes_of_tokens([boxes_only, whole, caption, None], 4, torch.device("cpu"))
    dog, cat = class_id("dog"), class_id("cat")
    assert classes.tolist() == [[0, dog, 0, 0], [0, dog, 0, cat], [0] * 4, [0] * 4]


# L_mlm ---------------------------------------------------------------------------------------------------------------


def test_masked_token_loss_without_hidden_words_is_zero():
    logits = torch.zeros(0, 7, requires_grad=True)
    loss = masked_token_loss(logits, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0


def test_masked_token_loss_is_the_mean():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    expected = -(logsigmoid(torch.tensor(2.0)) + logsigmoid(torch.tensor(-1.0))) / 2
    torch.testing.assert_close(masked_token_loss(logits, torch.tensor([0, 0])), expected)


# The model -----------------------------------------------------------------------------------------------------------


def tiny_labels(tokens: int = 9) -> list[dict]:
    """Labels of two images: two boxes and none."""
    positive_map = torch.zeros(2, tokens)
    positive_map[0, 1] = positive_map[1, 3] = 1
    boxes = torch.tensor([[0.5, 0.5, 0.6, 0.7], [0.3, 0.4, 0.3, 0.3]])
    none = {"boxes": torch.zeros(0, 4), "positive_map": torch.zeros(0, tokens), "class_ids": class_ids([])}
    return [{"boxes": boxes, "positive_map": positive_map, "class_ids": class_ids(["dog", "cat"])}, none]


def tiny_mlm_labels(input_ids: torch.Tensor) -> torch.Tensor:
    labels = torch.full_like(input_ids, -100)
    labels[:, 2] = input_ids[:, 2]
    return labels


def test_every_parameter_receives_a_gradient():
    torch.manual_seed(0)
    model = GLIPv2ForPreTraining(tiny_config()).train()
    inputs = tiny_inputs()
    labels = tiny_labels()
    # Every level must learn a box for its scale to be trained.
    labels[0]["boxes"][0] = torch.tensor([0.5, 0.5, 1.0, 1.0])
    output = model(**inputs, labels=labels, mlm_labels=tiny_mlm_labels(inputs["input_ids"]))
    assert set(output.loss_dict) == {"loss_box", "loss_centerness", "loss_intra", "loss_inter", "loss_mlm"}
    torch.testing.assert_close(output.loss, sum(output.loss_dict.values()))
    output.loss.backward()
    # transformers' Swin has a last norm that backbones never apply.
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert all("swin.layernorm" in name for name in without)


def test_a_batch_without_any_box_trains():
    torch.manual_seed(0)
    model = GLIPv2ForPreTraining(tiny_config()).train()
    inputs = tiny_inputs()
    empty = tiny_labels()[1]
    for labels in ([empty, empty], [None, empty], [None, None]):
        model.zero_grad()
        output = model(**inputs, labels=labels, mlm_labels=torch.full_like(inputs["input_ids"], -100))
        output.loss.backward()
        assert output.loss.isfinite()
        assert output.loss_dict["loss_box"].item() == output.loss_dict["loss_inter"].item() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda labels: labels[:1], "1 entries for 2 images"),
        (lambda labels: [{"boxes": labels[0]["boxes"]}, None], "lacks positive_map"),
        (lambda labels: [{**labels[0], "positive_map": torch.zeros(2, 5)}, None], r"\(2, 5\)"),
        (lambda labels: [{**labels[0], "boxes": torch.full((2, 4), torch.nan)}, None], r"labels\[0\]\['boxes'\]"),
        (lambda labels: [{**labels[0], "class_ids": class_ids(["cat"] * 3)}, None], r"\(3,\).* for 2 boxes"),
        (lambda labels: [{**labels[0], "class_ids": torch.ones(2)}, None], r"float32 for 2 boxes"),
        (lambda labels: [{**labels[0], "class_ids": ["cat", "dog"]}, None], r"'class_ids'\]` must be a tensor"),
        (lambda labels: [{**labels[0], "masks": None}, None], r"'masks'\]` must be a tensor, got NoneType"),
        (
            lambda labels: [{**labels[0], "prompt_map": torch.ones(2, 9), "prompt_class_ids": class_ids(["a"])}, None],
            "for 2 rows of `prompt_map`",
        ),
    ],
)
def test_bad_labels_are_refused(change, message):
    anchors = torch.tensor([[0.0, 0.0, 15.0, 15.0]] * 2)
    with pytest.raises((TypeError, ValueError), match=message):
        match_anchors(change(tiny_labels()), anchors, [2], torch.tensor([[32, 32]] * 2), 9)


# Processes -----------------------------------------------------------------------------------------------------------


def step(images: slice) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one step on some images of a batch of two: one asks a question, one has a caption."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = GLIPv2ForJointTraining(tiny_config(**answer_config(["yes", "no", "red"])))
    # Texts of different lengths meet in the contrast.
    inputs = {name: value[images] for name, value in tiny_inputs().items()}
    labels = tiny_labels()
    labels[1] = {**labels[0], "class_ids": class_ids(["dog", "bird"]), "boxes": labels[0]["boxes"] / 2}
    answers = torch.tensor([[1.0, 0.0, 0.3], [torch.nan] * 3])[images]
    captions = inputs["input_ids"].clone()
    captions[inputs["attention_mask"] == 0] = -100
    if images.start == 0:
        captions[0] = -100
    output = model(
        **inputs,
        labels=labels[images],
        mlm_labels=tiny_mlm_labels(inputs["input_ids"]),
        answer_labels=answers,
        caption_labels=captions,
    )
    output.loss.backward()
    gradients = [torch.zeros_like(one) if one.grad is None else one.grad for one in model.parameters()]
    return float(output.loss), torch.cat([gradient.flatten() for gradient in gradients])


def step_of_process(rank: int, port: int, queue: multiprocessing.Queue) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    loss, gradient = step(slice(rank, rank + 1))
    torch.distributed.all_reduce(gradient)
    queue.put((rank, loss, (gradient / 2).numpy()))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=step_of_process, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    loss, gradient = step(slice(0, 2))
    assert sum(result[1] for result in results) / 2 == pytest.approx(loss, rel=1e-5)
    for result in results:
        # One of 400,000 entries may sit at a kink of the bilinear sampling.
        difference = torch.from_numpy(result[2]) - gradient
        assert difference.norm() < 1e-4 * gradient.norm()
