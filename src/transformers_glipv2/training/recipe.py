"""The defaults of fine-tuning, one rule for every data set."""

import math
from dataclasses import dataclass

# Images that a run looks at: a small data set so many times, a larger one so often, and these bounds.
PASSES_OF_FEW, PASSES, SAMPLES, MAX_SAMPLES = 60, 12, 1800, 60_000
# Those that change few weights learn faster.
RATES = {"head": 1e-3, "prompt": 5e-2, "lora": 5e-4}
# Where all weights are trained: for each image, as a few are soon overfitted, and the bounds. 1e-4 is GLIP's rate for
# Swin; the convolutional backbones of timm bear more.
RATE_OF_AN_IMAGE, LOWEST_RATE, HIGHEST_RATE, HIGHEST_RATES = 1e-5, 3e-5, 1e-4, {"timm_backbone": 1e-3}
# Of training images whose objects are scrambled, as negatives.
SCRAMBLE = 0.25


@dataclass(frozen=True)
class Recipe:
    """
    How a run trains.

    Attributes:
        num_steps (`int`): optimizer steps.
        learning_rate (`float`): at its height; it falls to 0 along a cosine.
        image_size (`tuple[int, ...]`): shortest edges in pixels that batches are resized to; the largest is used for
            evaluation and saved.
        ema_decay (`float`): of the averaged weights that are evaluated and kept; 0, the default, for none.
        eval_steps (`int`): steps between evaluations.
        scramble (`float`): probability that the objects of an image are scrambled and count as background.
    """

    num_steps: int
    learning_rate: float
    image_size: tuple[int, ...]
    ema_decay: float
    eval_steps: int
    scramble: float


def choose_recipe(
    way: str,
    num_images: int,
    num_val_images: int,
    own_size: int,
    backbone: str,
    batch_size: int,
    epochs: float | None = None,
    num_steps: int | None = None,
) -> Recipe:
    """
    The defaults of a run.

    Args:
        way (`str`): what is trained, see `training.tuning`.
        num_images (`int`), num_val_images (`int`): of the data set.
        own_size (`int`): shortest edge in pixels of the processor of the start.
        backbone (`str`): the model type of the backbone's config.
        batch_size (`int`): images of a step.
        epochs (`float`, *optional*), num_steps (`int`, *optional*): the length of the run, where it is given.

    Returns:
        `Recipe`: the same for the same numbers, so a run that is resumed gets the recipe that it began with.
    """
    if num_steps is None:
        few = min(PASSES_OF_FEW * num_images, SAMPLES)
        samples = min(max(few, PASSES * num_images), MAX_SAMPLES) if epochs is None else epochs * num_images
        num_steps = max(1, math.ceil(samples / batch_size))
    return Recipe(
        num_steps=num_steps,
        learning_rate=RATES[way] if way in RATES else rate_of_all(num_images, backbone),
        image_size=(own_size,),
        ema_decay=0.0,
        eval_steps=steps_between_evaluations(num_steps, batch_size, num_val_images),
        scramble=SCRAMBLE,
    )


def rate_of_all(num_images: int, backbone: str) -> float:
    """The learning rate where all weights, or most of them, are trained."""
    return min(max(RATE_OF_AN_IMAGE * num_images, LOWEST_RATE), HIGHEST_RATES.get(backbone, HIGHEST_RATE))


def steps_between_evaluations(num_steps: int, batch_size: int, num_val_images: int) -> int:
    """
    Between 2 and 20 evaluations, so many that they take about a sixth of the time: an image takes a third of the time
    of its training.
    """
    affordable = 0.5 * num_steps * batch_size / max(num_val_images, 1)
    return max(1, num_steps // round(min(max(affordable, 2), 20)))
