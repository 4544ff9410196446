import subprocess
import sys

import pytest

import transformers_glipv2.data as data


def test_every_name_is_there():
    for name in data.__all__:
        assert getattr(data, name).__module__.startswith("transformers_glipv2.data."), name
    assert "load_coco" in dir(data)
    with pytest.raises(AttributeError, match="load_cocoa"):
        data.load_cocoa  # noqa: B018


def test_loaders_do_not_need_the_extra():
    """Only the Hub's formats do; they say how to get it."""
    code = (
        "import sys; sys.modules['datasets'] = None\n"
        "from transformers_glipv2.data import *\n"
        "try:\n    load_hub('cppe-5')\n"
        "except ImportError as error:\n    assert 'transformers-glipv2[train]' in str(error)\n"
        "else:\n    raise SystemExit('no error')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
