import sys

import pytest

import transformers_glipv2.data as data


def test_every_name_is_there():
    for name in data.__all__:
        assert getattr(data, name).__module__.startswith("transformers_glipv2.data."), name
    assert "load_coco" in dir(data)
    with pytest.raises(AttributeError, match="load_cocoa"):
        data.load_cocoa  # noqa: B018


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"transformers-glipv2\[train\]"):
        data.load_hub("cppe-5")
