import pytest

from worldlm.commands.inference.arguments import line_by_line
from worldlm.topology.errors import UserError


def test_a_record_that_lacks_what_every_run_has_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLDLM_DEBUG", raising=False)
    record: dict[str, int] = {}
    told = r"a file of the run, results\.json or config\.yaml, is not as worldlm writes it: KeyError 'data_nodes'"
    with pytest.raises(UserError, match=told), line_by_line():
        record["data_nodes"]
    monkeypatch.setenv("WORLDLM_DEBUG", "1")
    with pytest.raises(KeyError), line_by_line():
        record["data_nodes"]
