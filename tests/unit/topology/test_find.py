"""Files found by path and by name."""

from importlib.metadata import PackagePath
from pathlib import Path

import pytest

from worldlm.topology import find, find_file

TOP = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("name: mine\n")
    return path


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", Path("quickstart")])
def test_shipped_files_are_found_by_name(name: str | Path) -> None:
    assert find_file("topologies", name) == TOP / "topologies" / "quickstart.yaml"


def test_a_path_wins_over_a_name(elsewhere: Path) -> None:
    mine = write(elsewhere / "quickstart.yaml")
    assert find_file("topologies", "quickstart.yaml").resolve() == mine.resolve()


def test_the_local_folder_wins_over_the_shipped(elsewhere: Path) -> None:
    mine = write(elsewhere / "topologies" / "quickstart.yaml")
    assert find_file("topologies", "quickstart").resolve() == mine.resolve()


def test_a_folder_of_that_name_hides_nothing(elsewhere: Path) -> None:
    (elsewhere / "quickstart").mkdir()
    assert find_file("topologies", "quickstart").name == "quickstart.yaml"


def test_installed_data_files_are_found(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = write(elsewhere / "share" / "worldlm" / "topologies" / "far.yaml")

    class Installed(PackagePath):
        def locate(self) -> Path:
            return shipped

    paths = [Installed("../../share/worldlm/topologies/far.yaml"), Installed("worldlm/cli.py")]
    monkeypatch.setattr(find, "files", lambda package: paths)
    assert find_file("topologies", "far") == shipped
    with pytest.raises(FileNotFoundError):
        find_file("recipes", "far")


@pytest.mark.parametrize("name", ["quickstrat", "elsewhere/quickstart", "../quickstart", "a\0b", "x" * 9999])
def test_an_unknown_name_is_reported_with_the_known_names(name: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        find_file("topologies", name)
    message = str(caught.value)
    assert "known: domains_three_level, domains_three_level_swapped, hundred_thousand, " in message
    assert "\n" not in message
    assert ("did you mean 'quickstart'?" in message) == ("quick" in name)


@pytest.mark.parametrize("name", ["methods/fedavg", "methods/fedavg.yaml", Path("methods") / "fedavg"])
def test_a_name_may_begin_with_a_folder(name: str | Path) -> None:
    assert find_file("recipes", name) == TOP / "recipes" / "methods" / "fedavg.yaml"


def test_a_local_folder_wins_over_the_shipped(elsewhere: Path) -> None:
    mine = write(elsewhere / "recipes" / "methods" / "fedavg.yaml")
    assert find_file("recipes", "methods/fedavg").resolve() == mine.resolve()
    assert find_file("recipes", "methods/fedper") == TOP / "recipes" / "methods" / "fedper.yaml"


def test_a_file_in_a_folder_is_not_found_by_its_bare_name() -> None:
    with pytest.raises(FileNotFoundError, match="no file 'fedavg', .*; did you mean 'methods/fedavg'"):
        find_file("recipes", "fedavg")


def test_installed_folders_are_found(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = write(elsewhere / "share" / "worldlm" / "recipes" / "methods" / "far.yaml")

    class Installed(PackagePath):
        def locate(self) -> Path:
            return shipped

    monkeypatch.setattr(find, "files", lambda _: [Installed("../../share/worldlm/recipes/methods/far.yaml")])
    assert find_file("recipes", "methods/far") == shipped
    with pytest.raises(FileNotFoundError):
        find_file("recipes", "far")
