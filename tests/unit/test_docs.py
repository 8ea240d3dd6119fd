"""What the documentation shows must work."""

import re
from pathlib import Path

import pytest

from worldlm.topology import parse_topology

TOP = Path(__file__).resolve().parents[2]
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_topology_shown_is_one() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", (TOP / "docs" / "topologies.md").read_text(), re.DOTALL)
    topology = parse_topology(shown, "docs/topologies.md")
    assert [node.name for node in topology.data_nodes] == ["topics", "docstrings", "network", "tools"]
    assert topology.nodes["network"].settings.privacy is not None
