"""What this machine's processor is and can, as the operating system says it."""

import platform
from pathlib import Path

#: Instruction sets that the speed of products hangs on, as Linux calls them.
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
CPUINFO = Path("/proc/cpuinfo")  # only Linux has it


def processor() -> str:
    """The processor's model, such as "AMD EPYC"; without Linux, Python's word for it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Those of `INSTRUCTION_SETS` that the processor has; none where the system does not tell."""
    flags = _cpuinfo("flags").split()
    return [name for name in INSTRUCTION_SETS if name in flags]


def _cpuinfo(key: str) -> str:
    """The value of a line of the first processor; "" if there is none."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return ""
    values = (line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key)
    return next(values, "")
