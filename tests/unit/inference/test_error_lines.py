import pytest

from worldlm.commands.inference.errors import file_errors
from worldlm.topology.errors import UserError


def test_a_record_that_lacks_a_key_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLDLM_DEBUG", raising=False)
    record: dict[str, int] = {}
    line = r"a file of the run, results\.json or config\.yaml, is not as worldlm writes it: KeyError 'data_nodes'"
    with pytest.raises(UserError, match=line), file_errors():
        record["data_nodes"]
    monkeypatch.setenv("WORLDLM_DEBUG", "1")
    with pytest.raises(KeyError), file_errors():
        record["data_nodes"]
