"""What a process does for itself."""

import gc

import pytest

from transpooler.common import without_collection


def test_collection_stops_inside_the_block_and_is_as_it_was_behind_it() -> None:
    with pytest.raises(ImportError), without_collection():
        _fail_to_import()
    assert gc.isenabled()
    gc.disable()
    try:
        with without_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def _fail_to_import() -> None:
    assert not gc.isenabled()
    raise ImportError
