"""The lines below the closing table."""

from types import SimpleNamespace

from worldlm.monitoring.summary import limits_line


def test_a_closing_line_states_that_only_a_part_was_evaluated() -> None:
    loop = SimpleNamespace(val_loaders=lambda: {"a": range(9), "b": range(2)})
    cut, whole = (SimpleNamespace(fit_loop=loop, num_val_batches=limits) for limits in ([4, 2], [9, 2]))
    (line,) = limits_line(cut)  # type: ignore[arg-type]
    assert line == "limit_val_batches: of each node's held-out text, at most 4 batches are evaluated"
    assert not list(limits_line(whole))  # type: ignore[arg-type]
