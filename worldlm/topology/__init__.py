"""The YAML graph: typed nodes and settings, loading with file and line, drawing. No torch."""

from worldlm.topology.draw import draw_tree
from worldlm.topology.find import find_file
from worldlm.topology.load import TopologyError, load_topology, parse_topology
from worldlm.topology.settings import Link, OuterOptimizer, Privacy, Residuals, Settings
from worldlm.topology.tree import Node, Topology

__all__ = [
    "Link",
    "Node",
    "OuterOptimizer",
    "Privacy",
    "Residuals",
    "Settings",
    "Topology",
    "TopologyError",
    "draw_tree",
    "find_file",
    "load_topology",
    "parse_topology",
]
