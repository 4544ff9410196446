"""The defaults of fine-tuning."""

import pytest

from transformers_glipv2.training import TRAIN_WAYS
from transformers_glipv2.training.recipe import choose_recipe


def recipe(way="full", num_images=100, num_val_images=20, backbone="timm_backbone", batch_size=4, **length):
    return choose_recipe(way, num_images, num_val_images, 256, backbone, batch_size, **length)


def test_a_few_images_are_learned_slowly_and_many_fast():
    rates = [recipe(num_images=count).learning_rate for count in (1, 2, 5, 10, 50, 100, 1000)]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(3e-5) and rates[-1] == pytest.approx(1e-3)
    assert rates[3] == pytest.approx(10 * 1e-5)


@pytest.mark.parametrize("backbone", ["swin", "glipv2_coswin", "resnet"])
def test_other_backbones_stay_at_the_rate_of_glip(backbone):
    assert recipe(num_images=1000, backbone=backbone).learning_rate == pytest.approx(1e-4)
    assert recipe(num_images=4, backbone=backbone) == recipe(num_images=4)


@pytest.mark.parametrize("way", TRAIN_WAYS)
def test_what_few_weights_learn_does_not_depend_on_the_backbone(way):
    by_backbone = {recipe(way, 1000, backbone=backbone).learning_rate for backbone in ("swin", "timm_backbone")}
    assert len(by_backbone) == (1 if way in ("head", "prompt", "lora") else 2)


def test_small_data_sets_are_seen_more_often_and_all_within_bounds():
    passes = [4 * recipe(num_images=count).num_steps / count for count in (10, 30, 100, 300, 3000)]
    assert passes == sorted(passes, reverse=True)
    assert passes[0] == 60 and passes[-1] == 12
    assert 4 * recipe(num_images=10**6).num_steps == 60_000
    assert recipe(num_images=1, batch_size=64).num_steps == 1


def test_a_length_that_is_given_counts():
    assert recipe(epochs=2.5, num_images=10, batch_size=4).num_steps == 7
    assert recipe(num_steps=11).num_steps == 11
    assert recipe(num_steps=11).learning_rate == recipe().learning_rate


def test_evaluations_take_their_share_of_the_time():
    for num_val_images in (0, 1, 30, 1000, 10**6):
        found = recipe(num_images=500, num_val_images=num_val_images)
        assert 2 <= found.num_steps // found.eval_steps <= 20
    assert recipe(num_steps=1).eval_steps == 1
