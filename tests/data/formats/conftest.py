import pytest

from transformers_glipv2.data.formats import coco_cache


@pytest.fixture
def annotation_cache(tmp_path_factory, monkeypatch):
    """Small files are read as large ones are, into a cache of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(coco_cache, "CACHED_FROM", 0)
    monkeypatch.setattr(coco_cache, "HF_HOME", str(folder))
    return folder / "glipv2" / "annotations"


@pytest.fixture(params=["whole", "cached"])
def reader(request):
    """Files are read as a whole, and through the cache."""
    if request.param == "cached":
        request.getfixturevalue("annotation_cache")
