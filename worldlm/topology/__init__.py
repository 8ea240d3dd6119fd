"""The topology: typed nodes and settings, loaded from YAML with file and line in errors, and drawings. No torch."""

from worldlm.topology.draw import draw_tree
from worldlm.topology.find import find_file
from worldlm.topology.load import TopologyError, load_topology, parse_topology
from worldlm.topology.mermaid import draw_mermaid
from worldlm.topology.settings import Link, OuterOptimizer, Privacy, PrivacyOfExamples, Residuals, Settings
from worldlm.topology.shape import ALL, SHAPES, Shape, reshape, single, split_rounds, star, steps_per_round
from worldlm.topology.tree import Node, Topology

__all__ = [
    "ALL",
    "SHAPES",
    "Link",
    "Node",
    "OuterOptimizer",
    "Privacy",
    "PrivacyOfExamples",
    "Residuals",
    "Settings",
    "Shape",
    "Topology",
    "TopologyError",
    "draw_mermaid",
    "draw_tree",
    "find_file",
    "load_topology",
    "parse_topology",
    "reshape",
    "single",
    "split_rounds",
    "star",
    "steps_per_round",
]
