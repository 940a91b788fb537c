"""If these fail, the stored terms of a chunk are not those that searches compute, or a topic has invalid JSON."""

import numpy as np
import orjson
from hypothesis import given
from hypothesis import strategies as st

from stream.models.terms import SparseVector, Vocabulary

NAMES = ["socket", '"\\', "字", "...", "a.b", "\n", "##er", "💡", "\0"]
WEIGHTS = st.floats(0, 89, width=32)  # log1p of float32's largest number is 88.7


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), WEIGHTS, max_size=4), min_size=1))
def test_any_terms_are_written_as_json(weights):
    vocabulary = Vocabulary(NAMES)
    vectors = []
    for one in weights:
        heaviest = sorted(one, key=lambda name: -one[name])
        ids = np.array([NAMES.index(name) for name in heaviest], np.int32)
        vectors.append(SparseVector(ids, np.array([one[name] for name in heaviest], np.float32), 1, vocabulary))
    for vector, written in zip(vectors, vocabulary.as_json(vectors), strict=True):
        assert list(orjson.loads(written).items()) == list(vector.terms.items())
