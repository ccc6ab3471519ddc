"""What this machine's processor is and can, and what makes a training step faster on it."""

import contextlib
import ctypes
import os
import platform
import warnings
from functools import lru_cache
from pathlib import Path

import torch

#: Instruction sets that the speed of products hangs on, as Linux calls them.
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
CPUINFO = Path("/proc/cpuinfo")  # only Linux has it
# glibc's numbers for mallopt (malloc.h)
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_BLOCK = 32 << 20  # the largest that its heap will take (DEFAULT_MMAP_THRESHOLD_MAX)
_KEPT = 512 << 20

# Read when CUDA starts: 32 queues to a GPU in place of 8. A queue that several networks share lets
# one wait for another; PyTorch has 32 streams a GPU. What the user set stays.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")


def processor() -> str:
    """The processor's model, such as "AMD EPYC"; without Linux, Python's word for it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Those of `INSTRUCTION_SETS` that the processor has; none where the system does not tell."""
    flags = _cpuinfo("flags").split()
    return [name for name in INSTRUCTION_SETS if name in flags]


def _cpuinfo(key: str) -> str:
    """The value of a line of the first processor; "" if there is none."""
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def keep_memory() -> bool:
    """Let the C library keep up to 512 MiB of freed memory.

    A step then finds its 1–4 MB activations where the last left them. Otherwise the heap's end goes
    back to the system and comes again, zeroed page by page, up to two thousand pages a step. No
    result changes. For the whole process; done once. Gives whether it was: on Linux with glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # other systems and C libraries
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK) and mallopt(_M_TRIM_THRESHOLD, _KEPT))


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has fast products in bfloat16, and not a plain loop or an emulation."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not torch.backends.mkldnn.is_available():
        return False
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_tf32(device: torch.device) -> bool:
    """Whether a device multiplies float32 numbers in TF32, of 10 bits: NVIDIA's since Ampere."""
    if device.type != "cuda" or torch.version.cuda is None:  # AMD's GPUs are called cuda, too
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def warn_where_bfloat16_is_slow(device: torch.device) -> bool:
    """Warn of a processor whose convolutions in bfloat16 fall back to a plain loop.

    They are some ten times slower than float32 then: oneDNN, PyTorch's library for them, takes
    bfloat16 on AVX-512 and newer, not with AVX2 alone (`results/bench/epyc_avx2`). Results are the
    same. Gives whether it warned: never for a GPU.
    """
    if device.type != "cpu" or has_bfloat16(device):
        return False
    warnings.warn(
        "this processor has no fast bfloat16: a step takes some ten times as long as in float32 "
        "(notebook 80). Leave PRECISION unset; a checkpoint begun in bfloat16 goes on in it",
        RuntimeWarning,
        stacklevel=2,
    )
    return True
