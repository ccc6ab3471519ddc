"""What makes a step faster changes no result."""

import types

import pytest
import torch

from lib import fast


def test_keep_memory_can_be_called_anywhere(monkeypatch):
    assert fast.keep_memory() in (True, False)
    monkeypatch.setattr(fast.ctypes, "CDLL", lambda name: object())  # a C library without mallopt
    assert fast.keep_memory.__wrapped__() is False


@pytest.mark.parametrize("supported, device, warns", [(False, "cpu", True), (True, "cpu", False), (False, "cuda", False)])
def test_a_processor_without_fast_bfloat16_is_named(monkeypatch, recwarn, supported, device, warns):
    library = types.SimpleNamespace(_is_mkldnn_bf16_supported=lambda: supported)
    monkeypatch.setattr(torch.ops, "mkldnn", library)
    assert fast.warn_where_bfloat16_is_slow(torch.device(device)) is warns
    assert [str(w.message)[:38] for w in recwarn] == ["this processor has no fast bfloat16: a"] * warns
