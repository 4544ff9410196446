import pickle
import random
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader

from tests.data.scene_assets_folder import NOUNS, make_assets
from transformers_glipv2.data.augment import flip_example, mask_box
from transformers_glipv2.data.dataset import ImageDataset
from transformers_glipv2.data.mixture import MixtureDataset
from transformers_glipv2.data.sampling import DetectionSampler
from transformers_glipv2.data.scenes import render as scene_render
from transformers_glipv2.data.scenes.assets import Background, SceneAssets, empty_crops
from transformers_glipv2.data.scenes.colours import PAINTS, named_colour, recolour, recolour_way
from transformers_glipv2.data.scenes.language import (
    QUESTION_TYPES,
    answers_of,
    group_name,
    holds,
    list_caption,
    names_of,
    question,
    referring_phrase,
    relation_caption,
)
from transformers_glipv2.data.scenes.render import ObjectSpec, SceneComposer, SceneObject
from transformers_glipv2.data.scenes.scenes import CompositeScenes, ReferringScenes, test_scenes
from transformers_glipv2.data.scenes.words import plural, related_nouns, with_article
from transformers_glipv2.data.schema import check_example


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return SceneAssets(make_assets(tmp_path_factory.mktemp("assets")))


def scenes(assets, kind=None, **kwargs):
    return CompositeScenes(assets, size=160, kinds={kind: 1.0} if kind else None, **kwargs)


def same_rows(one, other):
    same = {key: value for key, value in one.items() if key not in ("image", "objects")} == {
        key: value for key, value in other.items() if key not in ("image", "objects")
    }
    masks = zip(one["objects"]["segmentation"], other["objects"]["segmentation"], strict=True)
    return (
        same
        and one["image"].tobytes() == other["image"].tobytes()
        and one["objects"]["bbox"] == other["objects"]["bbox"]
        and all((a == b).all() for a, b in masks)
    )


def words_of(example):
    texts = [
        example.get("text"),
        example.get("question"),
        *example.get("labels", ()),
        *example.get("negative_labels", ()),
    ]
    texts += [*example.get("captions", ()), *example.get("answers", ()), *example["objects"].get("category", ())]
    return [text for text in texts if text]


# ------------------------------------------------------------------------------------------------ examples and
# determinism


def test_rows_depend_on_seed_and_number_alone(assets):
    source = scenes(assets)
    examples = [source[index] for index in range(12)]
    again = scenes(SceneAssets(assets.folder))
    for index in (11, 3, 7):
        assert same_rows(again[index], examples[index])
    assert same_rows(pickle.loads(pickle.dumps(source))[5], examples[5])
    assert not same_rows(scenes(assets, "detection", seed=1)[5], scenes(assets, "detection")[5])
    mixture = MixtureDataset([source], length=12)
    workers = DataLoader(mixture, batch_size=4, collate_fn=list, num_workers=2, multiprocessing_context="fork")
    for index, example in enumerate(example for batch in workers for example in batch):
        assert (example.pop("sample_index"), example.pop("source")) == (index, 0)
        assert same_rows(example, examples[index])
    with pytest.raises(TypeError):
        len(source)


def test_rows_fit_the_schema_and_boxes_fit_masks(assets):
    kinds = set()
    for index in range(60):
        example = check_example(scenes(assets)[index])
        kinds.add(example["kind"])
        width, height = example["image"].size
        assert max(width, height) == 160 and min(width, height) >= 120
        objects = example["objects"]
        assert len({len(column) for column in objects.values()}) == 1
        for box, mask, area in zip(objects["bbox"], objects["segmentation"], objects["area"], strict=True):
            assert mask.dtype == bool and mask.shape == (height, width) and mask.sum() == area > 0
            assert box == mask_box(mask)
        if objects["segmentation"]:
            assert np.sum(objects["segmentation"], axis=0).max() == 1
        text = example.get("question") or example.get("text")
        for spans in objects.get("tokens_positive", ()):
            assert spans and all(text[start:end].strip() == text[start:end] != "" for start, end in spans)
    assert kinds == {"detection", "grounding", "vqa", "caption"}


def test_objects_stay_visible(assets):
    composer = SceneComposer(assets, "train", 200, min_visible=0.4)
    full = {}
    for seed in range(25):
        rng = random.Random(seed)
        canvas, _ = composer.draw_background(rng)
        _, objects = composer.compose(canvas, [ObjectSpec(noun) for noun in NOUNS[:8]], rng)
        full[seed] = len(objects)
        for o in objects:
            assert sum(o.hidden_by.values()) <= 0.6 + 1e-9
    assert sum(full.values()) > 100


def test_wrong_arguments(assets, tmp_path):
    for wrong in ({"split": "val"}, {"kinds": {"boxes": 1}}, {"max_objects": 9}, {"colour_labels": 2}, {"size": 8}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CompositeScenes(assets, **wrong)
    with pytest.raises(ValueError, match=r"index\.jsonl does not exist"):
        SceneAssets(tmp_path)
    with pytest.raises(ValueError, match="part"):
        test_scenes(assets, "unseen")
    with pytest.raises(IndexError):
        scenes(assets)[-1]
    with pytest.raises(IndexError):
        test_scenes(assets, "seen", count=3)[3]


# ------------------------------------------------------------------------------------------------------- the splits


def test_training_never_shows_or_names_what_is_held_out(assets):
    assert assets.held_out_nouns and assets.held_out_pairs
    assert not assets.held_out_nouns & set(assets.nouns)
    for noun in assets.held_out_nouns:
        assert not assets.related[noun] & set(assets.nouns)
    patterns = [re.compile(rf"\b{noun}\b") for noun in assets.held_out_nouns]
    patterns += [re.compile(rf"\b{colour} {noun}\b") for colour, noun in assets.held_out_pairs]
    source = scenes(assets, colour_labels=1.0)
    shown = set()
    compose = source.composer.compose

    def watched(*args, **kwargs):
        image, objects = compose(*args, **kwargs)
        shown.update((o.colour, o.noun) for o in objects)
        return image, objects

    source.composer.compose = watched
    for index in range(150):
        for text in words_of(source[index]):
            assert not any(pattern.search(text) for pattern in patterns), text
    assert len(shown) > 60
    assert not shown & assets.held_out_pairs
    assert not {noun for _, noun in shown} & assets.held_out_nouns


def test_object_crops_and_backgrounds_are_divided(assets):
    for noun in assets.nouns:
        train, test = (assets.split_object_crops(noun, split) for split in ("train", "test"))
        assert train and test
        if len(assets.object_crops[noun]) > 1:
            assert not set(train) & set(test) and len(train) + len(test) == len(assets.object_crops[noun])
    extra = [Background(f"{number}.jpg") for number in range(4)]
    train, test = (assets.split_backgrounds(split, extra) for split in ("train", "test"))
    assert len(train) == 6 and len(test) == 2 and not set(train) & set(test)


def test_prompts_of_the_test(assets):
    for part in ("seen", "held_out_pairs", "held_out_nouns"):
        examples = test_scenes(assets, part, count=40, negatives=6, size=160)
        assert len(examples) == 40
        assert same_rows(examples[7], test_scenes(assets, part, negatives=6, size=160)[7])
        for example in map(examples.__getitem__, range(20)):
            check_example(example)
            present, negatives = set(example["objects"]["category"]), example["negative_labels"]
            assert present and len(negatives) == 6
            assert sorted(example["labels"]) == sorted([*present, *negatives]) and not present & set(negatives)
            nouns = {name.split()[-1] for name in present}
            if part == "held_out_pairs":
                assert {tuple(name.split()) for name in present} <= assets.held_out_pairs
            elif part == "held_out_nouns":
                assert nouns <= assets.held_out_nouns
            else:
                assert nouns <= set(assets.nouns)
            for negative in negatives:
                noun = negative.split()[-1]
                assert noun not in nouns and not assets.related[noun] & nouns


def test_negatives_are_absent(assets):
    source = scenes(assets, "detection", colour_labels=0.5)
    coloured = 0
    for index in range(80):
        example = source[index]
        categories, negatives = set(example["objects"]["category"]), set(example["negative_labels"])
        assert (
            categories <= set(example["labels"]) and negatives <= set(example["labels"]) and not categories & negatives
        )
        nouns = {name.split()[-1] for name in categories}
        for negative in negatives - {f"{c} {n}" for c in PAINTS for n in nouns}:
            words = negative.split()
            if words[-1] in nouns:
                # The same noun in another colour: then every one of that noun has a colour.
                assert len(words) == 2 and all(len(name.split()) == 2 for name in categories if words[-1] in name)
                coloured += 1
            else:
                assert not assets.related[words[-1]] & nouns
        text = DetectionSampler()(example, random.Random(index))
        assert len(text.kept) == len(example["objects"]["bbox"])
    assert coloured
    shown = [example for example in map(source.__getitem__, range(80)) if "volcano" not in example["negative_labels"]]
    assert shown, "photographs that may show a volcano must not deny it"


# ----------------------------------------------------------------------------------------------------- what is said


def thing(noun, x, y, w=20, h=20, colour=None, hidden_by=None, attributes=()):
    mask = np.zeros((200, 200), dtype=bool)
    mask[y : y + h, x : x + w] = True
    return SceneObject(noun, attributes, colour, mask, [float(v) for v in (x, y, w, h)], hidden_by or {})


def centre(o):
    return o.bbox[0] + o.bbox[2] / 2, o.bbox[1] + o.bbox[3] / 2


def meant_by(name, objects):
    """Independent reading of a name without relation: which objects it may mean."""
    words = name.split()
    adjectives, noun = words[:-1], words[-1]
    found = [i for i, o in enumerate(objects) if o.noun == noun]
    for adjective in adjectives:
        if adjective in ("large", "small"):
            order = sorted(found, key=lambda i: objects[i].area, reverse=adjective == "large")
            found = order[:1]
        elif adjective in ("leftmost", "rightmost", "top", "bottom"):
            axis = 0 if "most" in adjective else 1
            order = sorted(found, key=lambda i: centre(objects[i])[axis], reverse=adjective in ("rightmost", "bottom"))
            found = order[:1]
        else:
            found = [i for i in found if objects[i].colour == adjective or adjective in objects[i].attributes]
    return found


def is_true(relation, one, other, objects):
    (x1, y1), (x2, y2) = centre(objects[one]), centre(objects[other])
    return {
        "left of": x1 < x2,
        "right of": x1 > x2,
        "above": y1 < y2,
        "below": y1 > y2,
        "behind": objects[one].hidden_by.get(other, 0) >= 0.1,
        "in front of": objects[other].hidden_by.get(one, 0) >= 0.1,
    }[relation]


RELATION = re.compile(r" (?:to the )?(left of|right of|above|below|behind|in front of) ")


def some_scene(rng):
    nouns = rng.sample(["apple", "cup", "dog", "tent", "robot", "drum"], rng.randint(1, 3))
    objects = []
    for place, noun in enumerate(rng.choices(nouns, k=rng.randint(1, 5))):
        colour = rng.choice(["red", "blue", "green", None])
        w, h = rng.randint(10, 60), rng.randint(10, 60)
        hidden = {0: 0.2} if place == 1 else {}
        objects.append(thing(noun, rng.randint(0, 140), rng.randint(0, 140), w, h, colour, hidden))
    return objects


def test_referring_phrases_mean_one_object():
    rng = random.Random(0)
    seen = set()
    for _ in range(400):
        objects = some_scene(rng)
        sentence = referring_phrase(objects, rng)
        if sentence is None:
            continue
        (referent,) = sentence.referents
        head, *rest = RELATION.split(sentence.text.removeprefix("the "))
        side = re.search(r" on the (left|right)$", head)
        if rest:
            relation, landmark = rest
            landmarks = meant_by(landmark.removeprefix("the "), objects)
            assert len(landmarks) == 1
            others = [i for i in meant_by(head, objects) if i not in landmarks]
            fitting = [i for i in others if is_true(relation, i, landmarks[0], objects)]
            assert fitting == [referent], sentence.text
            assert set(sentence.spans) == {referent, *landmarks}
            seen.add(relation)
        elif side:
            noun = head[: side.start()]
            pick = min if side[1] == "left" else max
            assert pick(meant_by(noun, objects), key=lambda i: centre(objects[i])[0]) == referent
            seen.add("on the side")
        else:
            assert meant_by(head, objects) == [referent], sentence.text
            seen.add(head.split()[0])
        start, end = sentence.spans[referent][0]
        assert sentence.text[start:end].startswith("the ") and objects[referent].noun in sentence.text[start:end]
    assert {"left of", "right of", "above", "below", "in front of", "on the side", "leftmost", "red", "small"} <= seen


def test_relation_captions_are_true():
    rng = random.Random(1)
    count = 0
    for _ in range(300):
        objects = some_scene(rng)
        sentence = relation_caption(objects, rng)
        if sentence is None:
            continue
        text = re.sub(r"^(there is |a picture of )", "", sentence.text)
        head, *rest = RELATION.split(text.replace(" and ", " "))
        (one,) = meant_by(re.sub("^an? ", "", head), objects)
        for relation, name in zip(rest[::2], rest[1::2], strict=True):
            (other,) = meant_by(re.sub("^an? ", "", name), objects)
            assert is_true(relation, one, other, objects), sentence.text
            count += 1
    assert count > 100


def test_answers_are_true():
    rng = random.Random(2)
    counts = dict.fromkeys(QUESTION_TYPES, 0)
    answers = set(answers_of(NOUNS))
    absent = ["quiver", "gazebo"]
    for _ in range(700):
        objects = some_scene(rng)
        kind = rng.choice(QUESTION_TYPES)
        sentence = question(objects, absent, rng, kind)
        if sentence is None:
            continue
        assert sentence.answer in answers and sentence.text.endswith("?") and sentence.question_type == kind
        counts[kind] += 1
        text = sentence.text.rstrip("?")
        if kind == "how many":
            noun = text.split()[2]
            assert int(sentence.answer) == sum(plural(o.noun) == noun for o in objects)
        elif kind == "which color":
            (index,) = meant_by(text.removeprefix("what color is the "), objects)
            assert objects[index].colour == sentence.answer
        elif kind == "is there":
            found = meant_by(re.sub("^is there an? ", "", text), objects)
            assert sentence.answer == ("yes" if found else "no")
            assert sorted(sentence.spans) == found
        elif kind == "left or right":
            one, words, other = re.fullmatch(r"is the (.+?) (left or right|left|right) of the (.+)", text).groups()
            (one,), (other,) = meant_by(one, objects), meant_by(other, objects)
            truth = "left" if centre(objects[one])[0] < centre(objects[other])[0] else "right"
            assert sentence.answer == (truth if " or " in words else "yes" if words == truth else "no")
        elif RELATION.search(text + " "):
            _, relation, name = RELATION.split(text)
            (other,) = meant_by(name.removeprefix("the "), objects)
            fitting = [i for i in range(len(objects)) if i != other and is_true(relation, i, other, objects)]
            assert [objects[i].noun for i in fitting] == [sentence.answer], sentence.text
        elif "thing" in text:
            colour = text.split()[3]
            assert [o.noun for o in objects if o.colour in (colour, None)] == [sentence.answer]
        else:
            assert {o.noun for o in objects} == {sentence.answer}
    assert min(counts.values()) > 20, counts


def test_list_captions_tell_of_everything():
    objects = [thing("cup", 100, 0, colour="red"), thing("dog", 0, 0), thing("cup", 150, 0, colour="red")]
    sentence = list_caption(objects, "a picture of ")
    assert sentence.text == "a picture of a dog and two red cups"
    assert {i: [sentence.text[a:b] for a, b in spans] for i, spans in sentence.spans.items()} == {
        0: ["two red cups"],
        1: ["a dog"],
        2: ["two red cups"],
    }
    objects[2].colour = "blue"
    assert group_name("cup", objects) == ("two cups", [0, 2])
    assert names_of(0, objects) == ["red cup"] and names_of(1, objects) == ["dog"]
    assert group_name("chair", [thing("chair", 0, 0, attributes=("wooden",))]) == ("a wooden chair", [0])


def test_relations_need_room():
    left, right = thing("cup", 0, 50), thing("dog", 60, 50)
    assert holds("left of", left, right, 1, 0) and holds("right of", right, left, 0, 1)
    assert not holds("right of", left, right, 1, 0) and not holds("above", left, right, 1, 0)
    assert not holds("left of", left, thing("dog", 10, 50), 1, 0)
    assert not holds("left of", left, thing("dog", 40, 150), 1, 0)
    assert holds("above", thing("cup", 50, 0), thing("dog", 50, 90), 1, 0)
    hidden = thing("cup", 0, 0, hidden_by={1: 0.3})
    assert holds("behind", hidden, right, 1, 0) and holds("in front of", right, hidden, 0, 1)


def test_flipped_rows_stay_true(assets):
    for index in range(40):
        example = scenes(assets, "vqa")[index]
        flipped = check_example(flip_example(example))
        for box, mask in zip(flipped["objects"]["bbox"], flipped["objects"]["segmentation"], strict=True):
            assert mask_box(mask) == box
        if example["question_type"] == "left or right":
            asked = r"(?:is|are) the (.+?) (left or right|right or left|left|right) of the (.+)\?"
            one, words, other = re.fullmatch(asked, flipped["question"]).groups()
            phrases = dict(zip(flipped["objects"]["phrase"], flipped["objects"]["bbox"], strict=True))
            x1, x2 = (phrases[f"the {name}"][0] + phrases[f"the {name}"][2] / 2 for name in (one, other))
            truth = "left" if x1 < x2 else "right"
            assert flipped["answers"][0] == (truth if " or " in words else "yes" if words == truth else "no")


def test_referring_scenes(assets):
    examples = ReferringScenes(assets, count=10, size=160)
    assert len(examples) == 10
    for index in range(10):
        example = check_example(examples[index])
        (referent,) = example["referents"]
        assert example["objects"]["phrase"][referent] == example["text"]
    assert same_rows(examples[4], ReferringScenes(assets, size=160)[4])


# ------------------------------------------------------------------------------------------------- colours and words


def test_colours_are_named_and_painted():
    for name, paint in PAINTS.items():
        assert named_colour(Image.new("RGBA", (40, 40), (*paint, 255))) == name
    for level, name in ((10, "black"), (128, "gray"), (250, "white")):
        assert named_colour(Image.new("RGBA", (40, 40), (level, level, level, 255))) == name
    half = Image.new("RGBA", (40, 40), (*PAINTS["red"], 255))
    half.paste((*PAINTS["blue"], 255), (0, 0, 20, 40))
    assert named_colour(half) is None and recolour_way(half) == (None, 0)
    assert named_colour(Image.new("RGBA", (40, 40))) is None
    for ground in (PAINTS["green"], (235, 235, 235)):
        object_crop = Image.new("RGBA", (40, 40), (*ground, 255))
        way, hue = recolour_way(object_crop)
        assert way == ("shift" if ground == PAINTS["green"] else "tint")
        for name in PAINTS:
            painted = recolour(object_crop, way, hue, name)
            assert painted.getchannel("A").tobytes() == object_crop.getchannel("A").tobytes()
            # A shifted hue keeps the original's light, which is too dark for yellow and orange.
            if way == "tint" or name in ("red", "green", "blue", "purple"):
                assert named_colour(painted) == name


def test_words():
    nouns = ("apple", "cup", "red apple", "unicorn", "hourglass", "scissors", "red scissors", "green broccoli")
    assert " ".join(map(with_article, nouns)) == (
        "an apple a cup a red apple a unicorn an hourglass scissors red scissors some green broccoli"
    )
    assert group_name("bread", [thing("bread", 0, 0), thing("bread", 50, 0)])[0] == "two pieces of bread"
    assert [plural(noun) for noun in ("cup", "box", "baby", "knife", "sheep", "wine glass", "toy", "snowman")] == [
        "cups",
        "boxes",
        "babies",
        "knives",
        "sheep",
        "wine glasses",
        "toys",
        "snowmen",
    ]
    related = related_nouns(["cup", "cupcake", "chair", "armchair", "sofa", "ant", "elephant", "wine glass", "glass"])
    assert related["chair"] == {"armchair", "sofa"} and "wine glass" in related["glass"]
    assert "elephant" not in related["ant"] and "cup" in related["glass"]
    assert all(one in related[other] for one in related for other in related[one])


def test_empty_crops_hold_no_box():
    def record(name, width, *boxes):
        return {"image_id": name, "image_path": name, "width": width, "height": 300, "objects": {"bbox": boxes}}

    records = [record("1.jpg", 400, [0, 0, 150, 300]), record("2.jpg", 400, [5, 5, 390, 290]), record("3.jpg", 100)]
    (found,) = empty_crops(ImageDataset(records), min_side=160, tries=200)
    assert found.file == "1.jpg" and found.crop[0] >= 150
    assert found.crop[2] - found.crop[0] >= 160 and found.crop[3] - found.crop[1] >= 160


def test_object_crops_of_training_are_varied_and_stay_whole():
    image = Image.new("RGBA", (60, 40))
    ImageDraw.Draw(image).ellipse((5, 5, 54, 34), fill=(200, 60, 40, 255))
    solid = sum(image.getchannel("A").histogram()[128:])
    varied = [scene_render._varied(image, random.Random(seed)) for seed in range(60)]
    assert len({one.tobytes() for one in varied}) > 30
    for one in varied:
        assert one.mode == "RGBA" and one.height == image.height
        # Skewing moves examples and loses none; a coarse outline moves by a pixel.
        assert abs(sum(one.getchannel("A").histogram()[128:]) - solid) < 0.1 * solid
