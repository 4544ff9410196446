"""A signal stops a run after a step, on one process and on all of several."""

import os
import signal
import socket

import torch.multiprocessing as multiprocessing
from accelerate import Accelerator

from transformers_glipv2.training.loop import StopSignal


def test_one_process_stops_after_the_step():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal(Accelerator(cpu=True)) as stop:
        assert not stop.requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested()
    assert signal.getsignal(signal.SIGTERM) == before


def steps_of_process(rank: int, port: int, queue: multiprocessing.Queue) -> None:
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in environment.items()})
    answers = []
    with StopSignal(Accelerator(cpu=True)) as stop:
        for step in range(5):
            if step == 2 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            answers.append(stop.requested())
            if answers[-1]:
                break
    queue.put(answers)


def test_processes_stop_at_the_same_step():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=steps_of_process, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    answers = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert answers == [[False, False, False, True]] * 2
