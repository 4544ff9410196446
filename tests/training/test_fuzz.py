"""Random data files: each is read, or refused in an error that names it. Seeded, so that every run tries the same."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.data.test_fuzz import NUMBERS, fuzz
from transformers_glipv2.training.data_file import read_data_file

# PyYAML writes no other characters, and a data file is written by a person.
TEXTS = st.one_of(st.sampled_from(["", "coco", "os:system", "train", "a.json"]), st.text(st.characters(codec="ascii")))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
KEYS = ("sources", "sizes", "max_size", "mlm_probability", "max_negatives", "augment", "evaluation", "typo")


def sources(value):
    return st.lists(
        st.dictionaries(
            st.sampled_from(["kind", "path", "weight", "split", "max_samples", "name"]), value, max_size=5
        ),
        max_size=3,
    )


@fuzz
@given(
    st.one_of(
        VALUES,
        st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5),
        st.fixed_dictionaries({"sources": sources(VALUES)}, optional=dict.fromkeys(KEYS[1:], VALUES)),
        st.fixed_dictionaries(
            {"sources": st.just([{"kind": "coco", "path": "x", "split": "train"}])},
            optional=dict.fromkeys(KEYS[1:], VALUES),
        ),
    )
)
def test_random_data_files_are_read_or_refused_by_name(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    try:
        data = read_data_file(path)
    except (ValueError, FileNotFoundError) as error:
        assert "fuzz.yaml" in str(error)
    else:
        assert data.sources and all(source["kind"] != "os:system" for source in data.sources)
        assert all(math.isfinite(source.get("weight", 1.0)) for source in data.sources)


@pytest.mark.parametrize("text", ["{", "a: [1", "\t- x", "!!python/object/apply:os.system [echo]", "- 1\nb: 2"])
def test_files_that_are_no_yaml_are_refused_by_name(tmp_path, text):
    (tmp_path / "fuzz.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"fuzz\.yaml"):
        read_data_file(tmp_path / "fuzz.yaml")
