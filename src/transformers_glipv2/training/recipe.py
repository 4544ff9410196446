"""The defaults of fine-tuning, one rule for every data set."""

import math
from dataclasses import dataclass

# Images that a run looks at: a small data set so many times, a larger one so often, and these bounds.
PASSES_OF_FEW, PASSES, SAMPLES, MAX_SAMPLES = 60, 12, 1800, 60_000
# Images from which a learning rate is used in full; fewer are soon overfitted at it.
FULL_RATE_IMAGES = 100
LARGE_MODEL = 50_000_000  # parameters
# Of `full` and its kin: rates for small and for large models. The others change few weights, which learn faster.
RATES = {"head": 1e-3, "prompt": 5e-2, "lora": 5e-4}
FULL_RATES = (3e-4, 1e-4)
# Object sides in pixels below which training images are enlarged, and the largest enlargement.
SMALL_OBJECT, LARGEST_SCALE = 32, 1.6


@dataclass(frozen=True)
class Recipe:
    """
    How a run trains.

    Attributes:
        num_steps (`int`): optimizer steps.
        learning_rate (`float`): at its height; it falls to 0 along a cosine.
        image_size (`tuple[int, ...]`): shortest edges in pixels that batches are resized to; the largest is used for
            evaluation and saved.
        ema_decay (`float`): of the averaged weights that are evaluated and kept; 0 for none.
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
    object_size: float,
    own_size: int,
    batch_size: int,
    num_parameters: int,
    epochs: float | None = None,
    num_steps: int | None = None,
) -> Recipe:
    """
    The defaults of a run.

    Args:
        way (`str`): what is trained, see `training.tuning`.
        num_images (`int`), num_val_images (`int`): of the data set.
        object_size (`float`): median over objects of the root of their area, over the shortest edge of their image.
        own_size (`int`): shortest edge in pixels of the processor of the start.
        batch_size (`int`): images of a step.
        num_parameters (`int`): of the model.
        epochs (`float`, *optional*), num_steps (`int`, *optional*): the length of the run, where it is given.

    Returns:
        `Recipe`: the same for the same numbers, so a run that is resumed gets the recipe that it began with.
    """
    if num_steps is None:
        few = min(PASSES_OF_FEW * num_images, SAMPLES)
        samples = min(max(few, PASSES * num_images), MAX_SAMPLES) if epochs is None else epochs * num_images
        num_steps = max(1, math.ceil(samples / batch_size))
    rate = RATES.get(way, FULL_RATES[num_parameters > LARGE_MODEL])
    if way not in RATES:
        rate *= min(1.0, math.sqrt(num_images / FULL_RATE_IMAGES))
    return Recipe(
        num_steps=num_steps,
        learning_rate=rate,
        image_size=(best_size(object_size, own_size),),
        ema_decay=average_decay(num_steps),
        eval_steps=steps_between_evaluations(num_steps, batch_size, num_val_images),
        scramble=0.0,
    )


def best_size(object_size: float, own_size: int) -> int:
    """The shortest edge in pixels, a multiple of 32, at which the median object has a side of `SMALL_OBJECT`."""
    wanted = SMALL_OBJECT / max(object_size, 1e-6)
    return round(min(max(wanted, own_size), LARGEST_SCALE * own_size) / 32) * 32 if wanted > own_size else own_size


def average_decay(num_steps: int) -> float:
    """Averages over about a twentieth of the run, and at most 1,000 steps."""
    return 1 - 1 / min(max(num_steps / 20, 1), 1000)


def steps_between_evaluations(num_steps: int, batch_size: int, num_val_images: int) -> int:
    """
    Between 2 and 20 evaluations, so many that they take about a sixth of the time: an image takes a third of the time
    of its training.
    """
    affordable = 0.5 * num_steps * batch_size / max(num_val_images, 1)
    return max(1, num_steps // round(min(max(affordable, 2), 20)))
