"""The metadata and the contents of a release. `pyproject-build && twine check --strict dist/*` checks the files."""

from __future__ import annotations

import re
import tomllib
from configparser import ConfigParser
from pathlib import Path

from packaging.requirements import Requirement

import worldlm

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def setup_cfg() -> ConfigParser:
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", "utf-8")
    return parser


def test_the_version_is_one_that_an_index_accepts() -> None:
    assert setup_cfg()["metadata"]["version"] == "attr: worldlm.__version__"
    assert re.fullmatch(r"\d+(\.\d+)+((a|b|rc)\d+)?", worldlm.__version__)


def test_the_files_that_the_metadata_names_exist() -> None:
    for name in (PROJECT["readme"], *PROJECT["license-files"], "worldlm/py.typed"):
        assert (ROOT / name).is_file(), name


def test_every_dependency_has_a_lowest_version() -> None:
    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert any(bound.operator == ">=" for bound in requirement.specifier), requirement.name


def test_every_recipe_and_topology_is_packaged() -> None:
    patterns = setup_cfg()["options.data_files"].values()
    packaged = {path for pattern in patterns for path in ROOT.glob(pattern)}
    assert packaged == {path for name in ("recipes", "topologies") for path in (ROOT / name).rglob("*.yaml")}
