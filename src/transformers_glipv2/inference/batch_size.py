"""`batch_size="auto"`: how many images a device takes at once, found out while it works."""

import threading

import torch

# A GPU is busy with fewer, and the images of some batches wait in memory.
MOST_IMAGES = 32


class AutoBatchSize:
    """
    The number of images of a batch, which doubles from batch to batch until a GPU runs out of memory; a batch that did
    not fit is cut in half and runs again. Memory goes with pixels, so it is pixels that are counted. Powers of two,
    of which a compiled network needs few. On a CPU the number follows from the threads, see [`images_for_threads`].
    """

    def __init__(self) -> None:
        self.pixels = 0
        self.is_full = False
        self._lock = threading.Lock()

    def images(self, height: int, width: int, device: torch.device) -> int:
        """How many images of a size in pixels the next batch may have."""
        if device.type == "cpu":
            return images_for_threads(torch.get_num_threads())
        fitting = max(1, self.pixels // (height * width))
        return min(MOST_IMAGES, 1 << (fitting.bit_length() - 1))

    def worked(self, pixels: int) -> None:
        """A batch of so many pixels went through."""
        with self._lock:
            if not self.is_full:
                self.pixels = max(self.pixels, 2 * pixels)

    def failed(self, pixels: int) -> None:
        """A batch of so many pixels did not fit."""
        with self._lock:
            self.is_full = True
            self.pixels = min(self.pixels, pixels // 2)


def images_for_threads(threads: int) -> int:
    """Images of a batch on a CPU: as many as there are threads, a power of two, up to 8."""
    return min(8, 1 << (threads.bit_length() - 1))


__all__ = ["AutoBatchSize"]
