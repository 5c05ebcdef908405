"""Zstandard streams: any number of frames, long windows too, and a cut-off frame is an error and not an end."""

import io
from typing import IO, Any

_CHUNK_BYTES = 32 << 10
_MAX_WINDOW_BYTES = 1 << 31
"""`zstd --long=31`, the longest that the format's own tool writes."""


def open_zstd(raw: IO[bytes]) -> IO[bytes]:
    """Decompress while reading. Raises EOFError where the last frame is cut short, ZstdError where one is damaged."""
    return io.BufferedReader(_Frames(raw), 1 << 20)


class _Frames(io.RawIOBase):
    def __init__(self, raw: IO[bytes]) -> None:
        import zstandard

        self._raw, self._decompressor = raw, zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
        self._frame: Any = None
        self._input, self._output = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._output:
            self._input = self._input or self._raw.read(_CHUNK_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("it ends inside a frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._output, self._input = memoryview(self._frame.decompress(self._input)), b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._output))
        buffer[:size] = self._output[:size]
        self._output = self._output[size:]
        return size
