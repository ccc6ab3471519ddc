"""`python -m lib.bench`: measure this machine, and write what was found.

On a CPU: `cpu.csv` (tidy: what, its settings, median and range over the rounds, unit),
`profile.csv` (operators of a training step before and after) and `machine.json`, in a few
minutes on two idle cores. On a GPU (`--device cuda`): `cuda.csv`, see `lib.bench.gpu`.
"""

import sys
import tempfile
from pathlib import Path

import torch

from lib import machine, trainer
from lib.bench import cpu, gpu, record, tables

SECONDS = {"cpu": 5.0, "cuda": 2.0}
ROUNDS = 5


def main(arguments: list[str] | None = None) -> None:
    """The command; see `--help`."""
    parser = record.parser("lib.bench", "Time the trainer, plain loops and the floor.")
    most = machine.cores()
    add = parser.add_argument
    add("--device", choices=SECONDS, help="default: cuda where there is a GPU")
    add("--seconds", type=float, help="of a row: 5 on a CPU, over all rounds; 2 on a GPU")
    add("--cores", type=int, default=min(2, most), help="of a CPU, default: 2")
    add("--rounds", type=int, default=ROUNDS, help=f"on a CPU, default: {ROUNDS}; more say better")
    add(
        "--tiny",
        action="store_true",
        help="few rows at tiny sizes, to try the command; without --out in a temporary folder",
    )
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "error: --device cuda needs a GPU, and PyTorch finds none here; "
            "python -m lib.bench --device cpu measures the processor"
        )
    try:
        device = torch.device(options.device or trainer.default_device())
    except ValueError as error:
        sys.exit(f"error: {error}")
    seconds = SECONDS[device.type] if options.seconds is None else options.seconds
    if not 0 < seconds < float("inf"):
        parser.error(f"--seconds is {seconds:g}; it has to be a positive number")
    if not 1 <= options.cores <= most:
        parser.error(f"--cores is {options.cores}; this machine gives 1 to {most}")
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; at least one is needed")
    if options.tiny and options.out == parser.get_default("out"):
        options.out = Path(tempfile.mkdtemp())  # not among the project's measurements
        print(f"written to {options.out}")
    try:
        record.known(options.out)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    described = record.machine(str(device)) | {"seconds": seconds}
    if device.type == "cuda":
        record.describe(options.out, "cuda", described)
        gpu.measure(device, seconds, options.out / "cuda.csv", options.tiny)
        return
    described |= {"cores_used": options.cores, "busy_before": busy_cores()}
    table, profiles = cpu.measure(options.cores, seconds, options.rounds, options.tiny)
    record.write(table, options.out / "cpu.csv")
    record.write(profiles, options.out / "profile.csv")
    record.describe(options.out, "cpu", described | {"busy_after": busy_cores()})
    units = [tables.HOURLY, tables.FACTOR, tables.SHARE]
    shown = table[table.unit.isin(units)]
    wide = shown.pivot_table(index=tables.KEY, columns="unit", values="median", sort=False)
    print(wide.to_string(float_format="%.3g", na_rep=""))


def busy_cores(seconds: float = 2.0) -> float:
    """How many cores other programs keep busy: looked at for so long while this process waits."""
    import psutil  # here: the GPU's half does without it

    return round(psutil.cpu_percent(interval=seconds) / 100 * psutil.cpu_count(), 2)


if __name__ == "__main__":
    main()
