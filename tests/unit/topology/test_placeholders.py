"""`${oc.env:HOME}` and the like, which nothing replaces, is warned of with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from worldlm.cli import main
from worldlm.topology import load_topology
from worldlm.topology.lint import MAX_WARNINGS, placeholders
from worldlm.topology.reader import Reader


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("${oc.env:HOME}/runs", "${oc.env:HOME}"),
        ("a ${data.root} b", "${data.root}"),
        ("${HOME}", "${HOME}"),
        ("$HOME", "$HOME"),
        ("$SCRATCH_1/cache", "$SCRATCH_1"),
        ("it costs $5, or $five", None),
        ("$HOMEs", None),
        (r"blocks\.1$", None),
        ("US$", None),
        ("$(pwd)", None),
    ],
)
def test_what_looks_like_a_placeholder(text: str, found: str | None) -> None:
    lines = list(placeholders(Reader(f"a: 1\nb:\n  - c: '{text}'\n", "r.yaml")))
    warning = f"r.yaml:3: {found} is taken as it is: nothing replaces it, so write the value"
    assert lines == ([] if found is None else [warning])


def test_each_is_named_once_and_not_too_many() -> None:
    (line,) = placeholders(Reader("a: &a ['${x}', '${x}']\nb: *a\n", "r.yaml"))
    assert line.startswith("r.yaml:1: ${x}")
    assert len(list(placeholders(Reader("'${x}': 1\n", "r.yaml")))) == 1
    many = "".join(f"- ${{x{number}}}\n" for number in range(MAX_WARNINGS + 5))
    lines = list(placeholders(Reader(many, "r.yaml")))
    assert len(lines) == MAX_WARNINGS + 1
    assert lines[-1] == "r.yaml: 5 more texts are taken as they are"


def test_a_topology_warns(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(
        "name: t\ndescription: of ${USER}\nroot: {name: world, corpus: a, settings: {num_local_steps: 1}}\n"
    )
    with pytest.warns(UserWarning, match=r"t\.yaml:2: \$\{USER\} is taken as it is"):
        assert load_topology(path).description == "of ${USER}"


@pytest.mark.filterwarnings("always")
def test_a_recipe_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["worldlm"])
    Path("r.yaml").write_text("runs: ${oc.env:HOME}/runs\nmodel: {init_from: nowhere}\nname: ..\n")
    assert main(["fit", "--recipe", "quickstart", "--recipe", "r.yaml"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "worldlm: warning: r.yaml:1: ${oc.env:HOME} is taken as it is: nothing replaces it, so write the value",
        "worldlm: r.yaml:3: name must be that of a folder below runs, but is '..'",
    ]
