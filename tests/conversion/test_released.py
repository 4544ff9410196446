"""Released checkpoints by name, from a server that speaks the Hub's interface."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

from tests.conftest import REPOSITORY
from tests.conversion.original_checkpoints import (
    bert_tokenizer_files,
    mmdetection_state,
    original_state,
    released_model,
    saved,
)
from tests.hub.hub_server import HubServer, Repo
from tests.tiny import tiny_inputs
from transformers_glipv2 import Detector, GLIPv2ForInstanceSegmentation, load_pretrained, resolve_model
from transformers_glipv2.conversion import convert_glip_checkpoint, released
from transformers_glipv2.conversion.released import RELEASED, cache_folder

NAME = "glip-tiny"
FILE = "glip_tiny_model_o365_goldg_cc_sbu.pth"
PATH = f"/GLIPModel/GLIP/resolve/main/{FILE}"


@pytest.fixture(scope="module")
def original() -> dict[str, torch.Tensor]:
    return original_state(released_model())


@pytest.fixture(scope="module")
def checkpoint(original, tmp_path_factory) -> bytes:
    """As training runs leave it: the optimizer's state and settings beside the weights."""
    optimizer = {"state": {0: {"exp_avg": torch.zeros(1000)}}, "param_groups": [{"lr": 1e-4}]}
    content = {"model": original, "optimizer": optimizer, "iteration": 7, "arguments": namedtuple}
    return saved(content, tmp_path_factory.mktemp("released") / FILE)


@pytest.fixture(scope="module")
def server():
    with HubServer() as server:
        yield server


@pytest.fixture
def hub(server, checkpoint, tmp_path, monkeypatch):
    """The Hub with the released file and BERT's tokenizer, and an empty cache."""
    server.repos = {
        "models/GLIPModel/GLIP": Repo({FILE: checkpoint}, {FILE}),
        "models/google-bert/bert-base-uncased": Repo(bert_tokenizer_files()),
    }
    server.cut_after, server.was_cut = None, False
    server.sent.clear()
    server.requests.clear()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    # The Hub's client keeps whole chunks of what arrived; 10 MB are more than the files here.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    monkeypatch.setenv("GLIPV2_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return server


def fetched(server: HubServer) -> list[str]:
    """The downloads of the checkpoint."""
    return [request for request in server.requests if request.startswith("GET") and request.endswith(FILE)]


def left_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


# The first time ------------------------------------------------------------------------------------------------------


def test_a_name_is_downloaded_converted_and_kept(hub, tmp_path, caplog, monkeypatch):
    with caplog.at_level(logging.WARNING):
        folder = resolve_model(NAME)
    assert folder == str(tmp_path / "cache" / NAME)
    assert "Its licence: MIT (microsoft/GLIP)" in caplog.text
    assert len(fetched(hub)) == 1
    # Neither the download nor anything else but the folder stays.
    assert left_in(tmp_path / "cache") == ["downloads", NAME]
    assert left_in(tmp_path / "cache" / "downloads") == []
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "cache" / NAME).iterdir()}
    (tmp_path / "new").touch()
    assert modes == {(tmp_path / "new").stat().st_mode & 0o777}
    source = json.loads((tmp_path / "cache" / NAME / "source.json").read_text())
    assert source["sha256"] == hashlib.sha256(hub.repos["models/GLIPModel/GLIP"].files[FILE]).hexdigest()

    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    reference, inputs = released_model(), tiny_inputs()
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, reference(**inputs).logits, atol=1e-5, rtol=1e-5)
    processor = AutoProcessor.from_pretrained(folder)
    assert processor(text=["a teddy bear"])["input_ids"].shape == (1, 5)
    assert processor.image_processor.do_bgr

    # Offline afterwards: the licence is not shown again, and nothing is asked of any server.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    caplog.clear()
    assert resolve_model(NAME) == folder
    loaded, its_processor = load_pretrained(NAME)
    assert type(loaded).__name__ == "GLIPv2ForObjectDetection"
    assert not loaded.training
    assert type(its_processor).__name__ == "GLIPv2Processor"
    assert type(load_pretrained(NAME, GLIPv2ForInstanceSegmentation)[0]) is GLIPv2ForInstanceSegmentation
    assert isinstance(Detector.from_pretrained(NAME, threshold=0.0), Detector)
    assert hub.requests == []
    assert "licence" not in caplog.text


def test_other_sources_stay_as_they_are(hub, tmp_path):
    for source in ("hub_upload/glipv2-nano", "someone/glip-tiny", str(tmp_path), "bert-base-uncased"):
        assert resolve_model(source) == source
    assert resolve_model(tmp_path / "folder") == str(tmp_path / "folder")
    # A folder of the name comes first, as in transformers.
    (tmp_path / NAME).mkdir()
    assert resolve_model(NAME) == NAME
    assert hub.requests == []


def test_a_mistyped_name_is_an_error(hub):
    with pytest.raises(ValueError, match="no released checkpoint 'glip-tinny': did you mean 'glip-tiny'"):
        resolve_model("glip-tinny")


def test_a_fresh_process_finds_the_hub_and_the_cache_by_their_variables(hub, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "GLIPV2_CACHE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    code = "from transformers_glipv2 import resolve_model; print(resolve_model('glip-tiny'))"
    command = [sys.executable, "-c", code]
    # Two at once: one waits for the other.
    both = [
        subprocess.Popen(
            command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        printed, errors = process.communicate(timeout=300)
        assert printed.strip() == str(tmp_path / "home" / "glipv2" / NAME), errors
    assert len(fetched(hub)) == 1


# Interruptions -------------------------------------------------------------------------------------------------------


def test_a_download_goes_on_where_it_was_cut_off(hub, tmp_path, checkpoint):
    hub.cut_after = 5 << 16
    for number in (1, 2):
        with pytest.raises(ConnectionError, match="What has arrived so far is kept"):
            resolve_model(NAME)
        assert not (tmp_path / "cache" / NAME).exists()
        (kept,) = (tmp_path / "cache" / "downloads").iterdir()
        assert kept.stat().st_size == hub.sent[FILE] == number * (5 << 16)
    hub.cut_after = None
    folder = resolve_model(NAME)
    assert hub.sent[FILE] == len(checkpoint)
    AutoModelForZeroShotObjectDetection.from_pretrained(folder)


def test_the_beginning_of_another_version_is_not_continued(hub, tmp_path, original):
    hub.cut_after = 5 << 16
    with pytest.raises(ConnectionError):
        resolve_model(NAME)
    hub.cut_after = None
    newer = saved({"model": original}, tmp_path / "newer.pth")
    hub.repos["models/GLIPModel/GLIP"].files[FILE] = newer
    hub.sent.clear()
    resolve_model(NAME)
    assert hub.sent[FILE] == len(newer)


def test_a_file_with_another_hash_is_deleted_and_refused(hub, tmp_path, monkeypatch):
    wrong = "0" * 64
    monkeypatch.setattr(Repo, "oid", lambda repo, path: wrong if path == FILE else "1" * 40)
    with pytest.raises(ValueError, match=f"where {wrong} was expected. It was damaged .* was deleted"):
        resolve_model(NAME)
    assert left_in(tmp_path / "cache") == ["downloads"]
    assert left_in(tmp_path / "cache" / "downloads") == []


def test_a_file_that_does_not_convert_is_deleted(hub, tmp_path):
    hub.repos["models/GLIPModel/GLIP"].files[FILE] = saved({"model": {"a": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no tensor backbone"):
        resolve_model(NAME)
    assert left_in(tmp_path / "cache") == ["downloads"]
    assert left_in(tmp_path / "cache" / "downloads") == []


def test_a_conversion_that_was_killed_leaves_nothing_under_the_name(hub, tmp_path, monkeypatch):
    def killed(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(convert_glip_checkpoint, "check_fit", killed)
        with pytest.raises(KeyboardInterrupt):
            resolve_model(NAME)
    assert left_in(tmp_path / "cache") == ["downloads"]
    resolve_model(NAME)
    assert len(fetched(hub)) == 1


# What stands in the way ----------------------------------------------------------------------------------------------


def test_without_the_network_the_message_says_what_to_do(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    with pytest.raises(ConnectionError) as caught:
        resolve_model(NAME)
    for part in ("not in the cache", "Connect once", "HF_ENDPOINT", f"glipv2 convert {FILE} --output FOLDER"):
        assert part in str(caught.value)
    assert left_in(tmp_path / "cache") == []


def test_offline_the_message_names_the_variable(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"):
        resolve_model(NAME)


def test_without_the_tokenizer_nothing_large_is_downloaded(hub):
    del hub.repos["models/google-bert/bert-base-uncased"]
    with pytest.raises(ConnectionError, match="tokenizer bert-base-uncased"):
        resolve_model(NAME)
    assert fetched(hub) == []


def test_a_file_that_the_hub_does_not_have(hub):
    del hub.repos["models/GLIPModel/GLIP"].files[FILE]
    with pytest.raises(ConnectionError, match="404"):
        resolve_model(NAME)


def test_space_is_checked_before_the_download(hub, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 0, 10**8))
    with pytest.raises(OSError, match=r"'glip-tiny' needs 0\.9 GB in .*, and 0\.1 GB are free\. .*GLIPV2_CACHE"):
        resolve_model(NAME)
    assert fetched(hub) == []


# The table -----------------------------------------------------------------------------------------------------------


def test_the_cache_follows_its_variables(monkeypatch, tmp_path):
    monkeypatch.delenv("GLIPV2_CACHE", raising=False)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "glipv2"
    monkeypatch.setenv("GLIPV2_CACHE", "~/models")
    assert cache_folder().name == "models"
    assert "~" not in str(cache_folder())


@pytest.mark.parametrize("model", RELEASED.values(), ids=RELEASED)
def test_files_state_their_hash_and_where_they_are(model):
    if "://" in model.file:
        # mmdetection's files end in the first digits of their SHA-256.
        assert model.file.endswith(f"-{model.sha256}.pth")
        assert len(model.sha256) == 8
        assert not model.is_zero_shot
        assert model.file.split("/")[-1].startswith(model.file.split("/")[-2])
    else:
        assert model.url == f"{constants.ENDPOINT}/GLIPModel/GLIP/blob/main/{model.file}"
        assert model.is_zero_shot


def test_a_file_at_an_address_is_compared_with_the_digits_in_its_name(hub, original, tmp_path, monkeypatch):
    content = saved({"state_dict": mmdetection_state(original), "meta": {"epoch": 1}}, tmp_path / "file.pth")
    digits = hashlib.sha256(content).hexdigest()[:8]
    hub.repos["models/a/b"] = Repo({"tuned.pth": content})
    model = released.ReleasedModel(
        "glip-tiny-coco", f"{hub.url}/a/b/resolve/main/tuned.pth", 10**6, 55.2, "COCO", sha256=digits
    )
    monkeypatch.setitem(RELEASED, model.name, model)
    tuned, _ = load_pretrained(model.name)
    inputs = tiny_inputs()
    with torch.no_grad():
        torch.testing.assert_close(tuned(**inputs).logits, released_model()(**inputs).logits, atol=1e-5, rtol=1e-5)

    other = released.ReleasedModel("glip-large-coco", model.file, 10**6, 59.4, "COCO", sha256="00000000")
    monkeypatch.setitem(RELEASED, other.name, other)
    with pytest.raises(ValueError, match="where 00000000 was expected"):
        resolve_model(other.name)


# Files of the released size ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "keys"), [("glip-tiny-a", "glip_a_tiny"), ("glip-large", "glip_large")])
def test_released_shapes_go_all_the_way(reference_dir, hub, tmp_path, name, keys):
    """Every tensor in its released shape; the values of a tensor are one random number, which torch stores once."""
    if shutil.disk_usage(tmp_path).free < 3e9:
        pytest.skip("less than 3 GB of disk are free")
    shapes = json.loads((reference_dir / "released_checkpoints" / f"keys_{keys}.json").read_text())
    original = {
        key: (torch.zeros(1, dtype=torch.long) if key.endswith("relative_position_index") else torch.rand(1))
        .reshape([1] * len(shape))
        .expand(shape)
        for key, shape in shapes.items()
        if "cell_anchors" not in key
    }
    file = RELEASED[name].file
    hub.repos["models/GLIPModel/GLIP"].files[file] = saved({"model": original}, tmp_path / file)
    folder = resolve_model(name)
    config = AutoConfig.from_pretrained(folder)
    assert config.use_fusion == (name == "glip-large")
    with safe_open(f"{folder}/model.safetensors", framework="pt") as weights:
        scales = weights.get_tensor("detection_head.token_projection.weight")
        assert torch.equal(scales, original["module.rpn.head.dot_product_projection_text.weight"])
        count = sum(torch.Size(weights.get_slice(key).get_shape()).numel() for key in weights.keys())  # noqa: SIM118
    assert abs(count - RELEASED[name].parameters) < 0.01 * count
    shutil.rmtree(folder)
