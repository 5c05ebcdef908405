"""Long texts have the ids of the whole, whatever the tokenizer."""

import numpy as np
import pytest

from tests.unit.data_pipeline.test_leading_ids import TOKENIZERS, make, text_of
from transpooler.data_pipeline.prepare.encoding import encode_long


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_long_text_in_pieces_has_the_ids_of_the_whole(kind: str) -> None:
    backend = make(kind).backend_tokenizer
    backend.encode_special_tokens = True
    for text in (text_of(1), "x" * 3000 + " " + text_of(2), " " * 2500 + text_of(3), ""):
        pieces = encode_long(backend, text, 2000)
        assert np.concatenate(pieces).tolist() == backend.encode(text, add_special_tokens=False).ids
    assert (len(encode_long(backend, text_of(1), 2000)) > 1) == (kind not in ("whole_text", "added_tokens"))
