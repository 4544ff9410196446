"""examples/pretrain.py on two machines, here both on loopback, with shards that are streamed."""

import os
import socket
import subprocess
import sys

import pytest
from accelerate.state import AcceleratorState

from tests.scripts import REPOSITORY, load_script
from tests.tiny_training import drawn_coco, read_log, tiny_checkpoint
from transformers_glipv2.data.formats.coco import load_coco
from transformers_glipv2.data.webdataset import write_webdataset

pretrain = load_script("examples/pretrain.py")


@pytest.fixture
def folder(tmp_path):
    AcceleratorState._reset_state(True)
    tiny_checkpoint(tmp_path / "model")
    write_webdataset(load_coco(drawn_coco(tmp_path / "coco", train=16), split="train"), tmp_path / "shards", 2)
    lines = ["sources:", "  - {kind: webdataset, path: shards, shuffle_buffer: 2}", "stream_readers: 2"]
    lines += ["augment: {flip: 0.5}", "sizes: [64]", "max_size: 96", "mlm_probability: 0.5"]
    (tmp_path / "data.yaml").write_text("\n".join(lines))
    yield tmp_path
    AcceleratorState._reset_state(True)


def arguments(folder, output):
    given = [
        "--model",
        folder / "model",
        "--data",
        folder / "data.yaml",
        "--output",
        folder / output,
        "--batch_size",
        4,
    ]
    given += ["--num_steps", 4, "--eval_steps", 1, "--warmup_steps", 1, "--learning_rate", 1e-3, "--num_workers", 2]
    return [str(value) for value in given]


def test_two_machines_go_on_exactly_with_what_one_began(folder):
    pretrain.main(arguments(folder, "one"))
    AcceleratorState._reset_state(True)
    (folder / "two").mkdir()

    # Two steps on one machine, then the rest on two.
    pretrain.main([*arguments(folder, "two"), "--num_steps", "2"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    launch += ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    script = [str(REPOSITORY / "examples" / "pretrain.py"), *arguments(folder, "two"), "--resume", "latest"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    machines = [
        subprocess.Popen(
            [*launch, "--node_rank", str(rank), *script], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for machine in machines:
        _, errors = machine.communicate(timeout=300)
        assert machine.returncode == 0, errors[-3000:]
    assert (folder / "two" / "checkpoints" / "step-0000004" / "random_states_1.pkl").exists()  # of the second
    one, two = read_log(folder / "one"), read_log(folder / "two")
    assert [line["step"] for line in two] == [1, 2, 3, 4]
    for line, other in zip(one, two, strict=True):
        for name in line.keys() & {name for name in line if name.startswith("loss")}:
            assert line[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), (line["step"], name)
