"""`worldlm serve` and `worldlm join`: an organisation trains its own node together with its neighbours."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from worldlm.callbacks.organisation_network import OrganisationNetwork
from worldlm.cli.fit import run_command
from worldlm.cli.parser import CommandLine, names, parse_command_line, split_option
from worldlm.cli.recipe_cli import Progress, RecipeCLI
from worldlm.commands.organisations.identities import AUDIT, CHANGES, IDENTITY, LOCK, MAIL
from worldlm.data import CorpusDataModule
from worldlm.monitoring.organisation_scores import OrganisationScores
from worldlm.organisations.audit import Audit
from worldlm.organisations.identity import Identity
from worldlm.organisations.mailbox import Mailbox
from worldlm.organisations.organisation import Organisation, neighbours
from worldlm.organisations.proposal_files import ProposalFiles
from worldlm.organisations.proposals import KINDS, Proposals, TopologyChanged
from worldlm.topology import ALL, Topology, load_topology, parse_topology, reshape
from worldlm.topology.errors import UserError

HELP = """\
usage: worldlm serve --recipe PACT --node NAME --listen HOST:PORT [--parent HOST:PORT] [--local MINE]
       worldlm join --recipe PACT --node NAME --parent HOST:PORT [--listen HOST:PORT] [--local MINE]

Trains one node of a world. The other nodes are run by other organisations, with the same PACT.

  --recipe PACT      what all organisations have agreed on: topology, model, method, number of rounds
  --local MINE       a recipe of your own with what nobody else needs to know, such as the paths of your text
  --node NAME        your node in the topology
  --home FOLDER      keys, messages and runs of the node; by default NAME
  --listen HOST:PORT where a federation waits for its children
  --parent HOST:PORT where the parent waits
  --approve KINDS    changes of the topology to consent to in advance, of joined,left,moved,settings
  --a.b value        settings, as of worldlm fit

The same command continues a run that was stopped.
"""

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:]+\]|[\w.-]+):\d{1,5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """The options of `serve` and `join` that are no settings."""

    node: str
    home: Path
    listen: str | None
    parent: str | None
    approves: tuple[str, ...]
    """Kinds of changes of the topology to which the node consents in advance."""

    def mail(self, name: str) -> Path:
        """Return the folder of the messages of a run."""
        return self.home / MAIL / name

    def with_changes(self, command_line: CommandLine) -> CommandLine:
        """Return a command line with the topology since its last change."""
        names, _ = split_option(command_line.settings, "--name")
        topology = ProposalFiles(self.mail(names[-1]) / CHANGES).topology if names else None
        if topology is None:
            return command_line
        return replace(command_line, settings=(*command_line.settings, f"--federation.topology={topology}"))


def serve(arguments: Sequence[str]) -> int:
    """Run `worldlm serve`: a federation waits for its children.

    Args:
        arguments: The words after the command.

    Returns:
        The exit status.

    Raises:
        UserError: For mistakes that the user can correct.
    """
    return _run("serve", arguments)


def join(arguments: Sequence[str]) -> int:
    """Run `worldlm join`: a node connects to its parent. Arguments and errors are those of `serve`."""
    return _run("join", arguments)


def _run(command: str, arguments: Sequence[str]) -> int:
    if not {"-h", "--help"}.isdisjoint(arguments):
        print(HELP, end="")
        return 0
    options, command_line = parse(command, arguments)

    def make_cli(command_line: CommandLine, progress: Progress) -> OrganisationCLI:
        return OrganisationCLI(command_line, progress, options)

    warnings.filterwarnings("ignore", message=".*deadline_seconds has no effect")  # as in a simulation
    while True:
        try:
            return run_command(options.with_changes(command_line), make_cli)
        except TopologyChanged as change:
            if str(change):
                print(f"done. {change}")
                return 0


def parse(command: str, arguments: Sequence[str]) -> tuple[NodeOptions, CommandLine]:
    """Parse the command line of `serve` or `join`.

    Returns:
        The options that are no settings, and the rest as the command line of `fit`.

    Raises:
        UserError: If an option is missing or wrong.
    """
    options, words = _split_options(command, arguments)
    command_line = parse_command_line(["fit", *words])
    if command_line.repeat is not None:
        raise UserError([f"{command} cannot repeat a run: worldlm fit --repeat does, where all text is at hand"])
    return options, _with_defaults(command_line, options, ("worldlm", command, *arguments))


def _split_options(command: str, arguments: Sequence[str]) -> tuple[NodeOptions, list[str]]:
    """Separate the options of `serve` and `join` from the settings. Local recipes are laid over the others."""
    found: dict[str, str | None] = {}
    words = list(arguments)
    for name in ("node", "home", "listen", "parent", "approve"):
        values, words = split_option(words, f"--{name}")
        if len(values) > 1:
            raise UserError([f"{command}: --{name} is given {len(values)} times"])
        found[name] = values[0] if values else None
    local, words = split_option(words, "--local")
    words += [word for path in local for word in ("--recipe", path)]
    node = found["node"]
    if node is None:
        raise UserError([f"{command} needs --node NAME, your node in the topology"])
    needed = {"serve": "listen", "join": "parent"}[command]
    if found[needed] is None:
        raise UserError([f"{command} needs --{needed} HOST:PORT"])
    for name, example in (("listen", "0.0.0.0:7443"), ("parent", "192.0.2.7:7443")):
        if (address := found[name]) is not None and not _is_address(address):
            raise UserError([f"{command}: --{name} must be HOST:PORT, such as {example}, but is {address!r}"])
    approves = tuple(names(found["approve"] or ""))
    if unknown := [kind for kind in approves if kind not in KINDS]:
        raise UserError([f"{command}: --approve takes some of {', '.join(KINDS)}, but is given {unknown[0]!r}"])
    home = Path(found["home"] or node)
    options = NodeOptions(node=node, home=home, listen=found["listen"], parent=found["parent"], approves=approves)
    return options, words


def _is_address(text: str) -> bool:
    return _ADDRESS.fullmatch(text) is not None and int(text.rpartition(":")[2]) < 2**16


def _with_defaults(command_line: CommandLine, options: NodeOptions, typed: Sequence[str]) -> CommandLine:
    """Add the settings that follow from the options: name and folder of the runs, and to go on where possible."""
    settings = list(command_line.settings)
    given = {word.partition("=")[0] for word in settings}
    if "--name" not in given and command_line.recipes:
        settings += ["--name", command_line.recipes[0].stem]
    if "--runs" not in given:
        settings += ["--runs", str(options.home / "runs")]
    if "--ckpt_path" not in given:
        settings += ["--ckpt_path", "last"]
    return CommandLine(
        command="fit",
        settings=tuple(settings),
        recipes=command_line.recipes,
        safe=command_line.safe,
        typed=tuple(typed),
    )


class OrganisationCLI(RecipeCLI):
    """Builds model, data and trainer of one node, and trains it together with its neighbours.

    Args:
        command_line: As of `fit`.
        progress: As of `RecipeCLI`.
        options: Which node, and where its neighbours are.
    """

    def __init__(self, command_line: CommandLine, progress: Progress, options: NodeOptions) -> None:
        self.options = options
        super().__init__(command_line, progress)

    def before_instantiate_classes(self) -> None:
        """Check the node before anything is made, and lock its folder."""
        self._check_node()
        self.options.home.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.options.home / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError([f"{self.options.node} is at work: another process uses {self.options.home}"]) from None
        self._at_end.callback(lock.release)
        super().before_instantiate_classes()

    def _check_node(self) -> None:
        """Check that the topology has the node, that the options suit its place, and that it has keys and text."""
        options, config = self.options, self.config["fit"]
        topology = self._topology = reshape(
            load_topology(config.federation.topology, config.federation.settings), config.federation.shape
        )
        has_parent = options.node in neighbours(topology, options.node)
        node = topology.nodes[options.node]
        if bool(node.children) != (options.listen is not None):
            remedy = "add --listen HOST:PORT, where it waits for them" if node.children else "leave --listen out"
            hint = "; worldlm join runs it" if has_parent and not options.parent else ""
            raise UserError([f"{node.name} has {'' if node.children else 'no '}children: {remedy}{hint}"])
        if has_parent != (options.parent is not None):
            remedy = "add --parent HOST:PORT, where it waits" if has_parent else "leave --parent out"
            hint = "; worldlm serve runs it" if not has_parent and not options.listen else ""
            raise UserError([f"{node.name} has {'a' if has_parent else 'no'} parent: {remedy}{hint}"])
        if node.corpus is not None and node.corpus not in {*config.data.corpora, ALL}:
            raise UserError([f"no recipe has the corpus {node.corpus!r} of {node.name}: --local RECIPE adds yours"])
        identity = Identity(options.home / IDENTITY)
        if identity.node != node.name:
            raise UserError([f"{identity.folder} has the keys of {identity.node}, not of {node.name}"])
        if has_parent:
            identity.certificates()

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build the trainer of one node."""
        options, config = self.options, self.config["fit"]
        identity = Identity(options.home / IDENTITY)
        data = self.datamodule
        if isinstance(data, CorpusDataModule) and data.trains_tokenizer:
            raise UserError(
                ["the recipe trains a tokenizer on the text of all nodes, which nobody has: agree on the file of one, "
                 "or on bytes: data.tokenizer"]
            )  # fmt: skip
        mail = options.mail(str(config.name))
        settings = self._get(self.config_init, "trainer")
        callbacks = settings["callbacks"] or []
        network = OrganisationNetwork(identity, options.listen, options.parent)
        settings["callbacks"] = [
            *(callbacks if isinstance(callbacks, list) else [callbacks]),
            OrganisationScores(),
            network,
        ]
        if settings["noise_key"] is None:
            mail.mkdir(parents=True, exist_ok=True)
            settings["noise_key"] = str(mail / "noise.key")
        audit = Audit(options.home / AUDIT, str(config.name))

        def parse(text: str) -> Topology:
            return reshape(parse_topology(text, "proposal", config.federation.settings), config.federation.shape)

        organisation = Organisation(
            node=options.node,
            mailboxes=self._mailboxes(mail, audit),
            audit=audit,
            seed=identity.seed,
            is_revoked=identity.is_revoked,
            proposals=Proposals(
                ProposalFiles(mail / CHANGES),
                self._topology,
                options.node,
                parse,
                options.approves,
                identity.is_revoked,
            ),
        )
        return super().instantiate_trainer(organisation=organisation, **kwargs)

    def _mailboxes(self, folder: Path, audit: Audit) -> Mapping[str, Mailbox]:
        """Return a mailbox for each neighbour."""
        return {
            edge: Mailbox(folder / edge, edge, partial(audit.add_message, neighbour))
            for edge, neighbour in neighbours(self._topology, self.options.node).items()
        }
