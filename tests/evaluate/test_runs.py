"""If these fail, other tools read another ranking than the one that was measured."""

import ir_measures
import pytest

from stream.errors import ConfigurationError, StreamError
from stream.evaluate.measures import MEASURES, measure
from stream.evaluate.runs import ranked, write

RUN = {"q1": ranked(["b", "a", "c"]), "q2": {}, "q3": ranked(["a"])}
QRELS = {"q1": {"a": 1, "c": 2}, "q2": {"a": 1}, "q3": {"a": 1}}


def test_a_run_file_has_a_line_for_each_hit_in_trec_s_format(tmp_path):
    write(tmp_path / "new" / "runs", {"bm25": RUN, "dense": {}})
    assert (tmp_path / "new" / "runs" / "bm25.run").read_text().splitlines() == [
        "q1 Q0 b 1 3 bm25",
        "q1 Q0 a 2 2 bm25",
        "q1 Q0 c 3 1 bm25",
        "q3 Q0 a 1 1 bm25",
    ]
    assert (tmp_path / "new" / "runs" / "dense.run").read_text() == ""


def test_the_figures_of_a_run_file_are_those_that_were_printed(tmp_path):
    write(tmp_path, {"bm25": RUN})
    asked = [ir_measures.parse_measure(name) for name in MEASURES]
    theirs = ir_measures.calc_aggregate(asked, QRELS, ir_measures.read_trec_run(str(tmp_path / "bm25.run")))
    ours = measure(QRELS, RUN)
    assert {str(one): value for one, value in theirs.items()} == {
        name: pytest.approx(ours[name].mean()) for name in MEASURES
    }


@pytest.mark.parametrize("run", [{"q 1": {"a": 1.0}}, {"q1": {"a\u00a0b": 1.0}}, {"q1": {"b": 2.0, "a b": 1.0}}])
def test_an_id_with_white_space_is_refused_before_anything_is_written(tmp_path, run):
    with pytest.raises(StreamError, match="has white space, which a TREC run file cannot hold"):
        write(tmp_path / "runs", {"bm25": RUN, "dense": run})
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"cannot write into .*file/runs: Not a directory"):
        write(tmp_path / "file" / "runs", {"bm25": RUN})
