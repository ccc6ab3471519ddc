"""What makes a step faster changes no result."""

from lib import fast


def test_keep_memory_can_be_called_anywhere(monkeypatch):
    assert fast.keep_memory() in (True, False)
    monkeypatch.setattr(fast.ctypes, "CDLL", lambda name: object())  # a C library without mallopt
    assert fast.keep_memory.__wrapped__() is False
