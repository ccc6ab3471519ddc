"""What a run's record says of its machine and code; what makes a step faster changes no result."""

import json
import os
import re
import subprocess
import sys
import tomllib
import types

import pytest
import torch

from lib import machine, paths, trainer
from lib.run import Run

CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Some Processor: 3.0 GHz
flags\t\t: fpu sse4_2 avx2 avx512f avx512_bf16 avx512_vnni

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""


def test_the_first_processor_s_name_and_instruction_sets_are_read_or_another_name(
    tmp_path, monkeypatch
):
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert machine.processor() == "Some Processor: 3.0 GHz"
    assert machine.instruction_sets() == ["avx2", "avx512f", "avx512_bf16"]
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "absent")  # another system
    assert machine.processor() and machine.instruction_sets() == []


def test_a_run_s_record_names_processor_threads_precision_and_commit(tmp_path):
    run = Run("digits", epochs=1, image_size=16, n_train=64, test_images=10, ablations=())
    trainer.fit([run], [tmp_path / run.name])
    env = json.loads((tmp_path / run.name / "env.json").read_text())
    assert env["processor"] == machine.processor()
    assert env["instruction_sets"] == machine.instruction_sets()
    assert (env["threads"], env["precision"]) == (1, "float32")  # of the training, not of this test
    assert env["commit"] == trainer.commit()


def test_the_commit_comes_from_git_else_from_the_environment_else_from_a_file(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.delenv("COMMIT", raising=False)
    assert trainer.commit() == "unknown"
    (tmp_path / "COMMIT").write_text("abc1234\n")
    assert trainer.commit() == "abc1234"
    monkeypatch.setenv("COMMIT", "def5678")
    assert trainer.commit() == "def5678"
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert trainer.commit() == "def5678"  # another project's, in which this one was installed
    monkeypatch.setattr(trainer, "__file__", str(tmp_path / "lib" / "trainer.py"))
    git = ["git", "-C", str(tmp_path), "-c", "user.name=A", "-c", "user.email=a@b.c"]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True)
    assert head.startswith(trainer.commit()) and len(trainer.commit()) >= 7


def test_without_one_dnn_there_are_no_products_in_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", types.SimpleNamespace())
    assert machine.has_bfloat16(torch.device("cpu")) is False


CORE = "losses schedules models measures cca data run run_dir bundle trainer store machine paths"


def imported_without(packages, code):
    blocked = f"import sys; sys.modules |= dict.fromkeys({packages})\n"
    command = [sys.executable, "-c", blocked + code]
    return subprocess.check_output(command, cwd=paths.ROOT, text=True)


@pytest.mark.slow
def test_training_needs_neither_papermill_nor_what_else_renders():
    """A machine that only trains installs a handful of packages."""
    rendering = ["papermill", "nbclient", "IPython", "jupyterlab", "tensorboard"]
    code = "from lib.study import campaign\nprint(len(campaign.plan('quick')) > 0)"
    assert imported_without(rendering, code) == "True\n"


@pytest.mark.slow
def test_the_core_needs_no_more_than_its_dependencies():
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.match(r"[\w-]+", name).group() for name in project["dependencies"]}
    pinned = set(re.findall(r"- ([\w-]+)==", (paths.ROOT / "environment.yml").read_text()))
    assert needed < pinned
    imported_as = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
    others = [imported_as.get(name, name) for name in sorted(pinned - needed)]
    code = f"import importlib\nfor name in {CORE!r}.split(): importlib.import_module('lib.' + name)"
    assert imported_without([*others, "IPython"], code) == ""


@pytest.mark.parametrize(("asked", "number"), [(None, "32"), ("4", "4")])
def test_a_gpu_gets_a_queue_for_each_stream_unless_the_user_says_otherwise(asked, number):
    name = "CUDA_DEVICE_MAX_CONNECTIONS"
    environment = {key: value for key, value in os.environ.items() if key != name}
    environment |= {name: asked} if asked else {}
    command = [sys.executable, "-c", f"import os, lib.machine; print(os.environ['{name}'])"]
    said = subprocess.check_output(command, cwd=paths.ROOT, env=environment, text=True)
    assert said.strip() == number


@pytest.mark.parametrize(
    ("capability", "cuda", "has"),
    [((8, 0), "13.0", True), ((7, 5), "13.0", False), ((9, 4), None, False)],
)
def test_tf32_is_of_nvidia_s_gpus_since_ampere(monkeypatch, capability, cuda, has):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert machine.has_tf32(torch.device("cuda")) is has
    assert not machine.has_tf32(torch.device("cpu"))


def test_keep_memory_can_be_called_anywhere(monkeypatch):
    assert machine.keep_memory() in (True, False)
    # a C library without mallopt
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: object())
    assert machine.keep_memory.__wrapped__() is False


@pytest.mark.parametrize(
    "supported, device, warns", [(False, "cpu", True), (True, "cpu", False), (False, "cuda", False)]
)
def test_a_processor_without_fast_bfloat16_is_named(monkeypatch, recwarn, supported, device, warns):
    library = types.SimpleNamespace(_is_mkldnn_bf16_supported=lambda: supported)
    monkeypatch.setattr(torch.ops, "mkldnn", library)
    assert machine.warn_where_bfloat16_is_slow(torch.device(device)) is warns
    said = ["this processor has no fast bfloat16: a"] if warns else []
    assert [str(w.message)[:38] for w in recwarn] == said
