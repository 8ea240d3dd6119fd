"""Mistakes on the command lines of serve, join and organisations: one line that says what would be right."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from identities import admit
from tutorial_files import files_of

from worldlm.cli import main
from worldlm.organisations.identity import Identity
from worldlm.organisations.proposal_files import ProposalFiles
from worldlm.organisations.proposals import Proposals
from worldlm.topology import load_topology, parse_topology

JOIN = "join --recipe pact.yaml --local clinic_text.yaml --node clinic --parent 127.0.0.1:7443"
SERVE = "serve --recipe pact.yaml --local hospital_text.yaml --node hospital --listen 127.0.0.1:7443"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the tutorial and the keys of both nodes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["worldlm"])
    for name, text in files_of("two_organisations").items():
        Path(name).write_text(text)
    hospital, clinic = Identity(Path("hospital/identity")), Identity(Path("clinic/identity"))
    hospital.create("hospital")
    clinic.create("clinic")
    admit(hospital, clinic)
    return tmp_path


@pytest.fixture
def error_of(desk: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    def run(line: str) -> str:
        assert main(line.split()) == 2
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            JOIN.replace("node clinic", "node klinic"),
            "pact has no node 'klinic'; .*did you mean",
        ),
        (JOIN.replace(" --node clinic", ""), "join needs --node NAME"),
        (JOIN.replace(" --parent 127.0.0.1:7443", ""), "join needs --parent HOST:PORT"),
        (JOIN.replace("127.0.0.1:7443", "127.0.0.1"), "--parent must be HOST:PORT, such as 192.0.2.7:7443"),
        (JOIN.replace(":7443", ":99999"), "--parent must be HOST:PORT"),
        (JOIN + " --listen 127.0.0.1:1", "clinic has no children: leave --listen out"),
        (SERVE.replace("node hospital", "node clinic"), "no children: leave --listen out; worldlm join runs it"),
        (JOIN.replace("node clinic", "node hospital"), "hospital has children: add --listen HOST:PORT"),
        (SERVE + " --parent 127.0.0.1:1", "hospital has no parent: leave --parent out"),
        (JOIN.replace(" --local clinic_text.yaml", ""), "no recipe has the corpus 'clinic_text' of clinic: --local"),
        (JOIN + " --home hospital", "has the keys of hospital, not of clinic"),
        (JOIN + " --home nowhere", "worldlm organisations keys --node NAME creates them"),
        (JOIN + " --trainer.devices 2", "trained by one process"),
        (JOIN + " --node hospital", "--node is given 2 times"),
        ("organisations revoke clinik --home hospital", "clinik was not admitted; admitted are clinic"),
        ("organisations admit hospital/clinic.pem --home hospital", "No such file|is not a certificate request"),
        ("organisations admit clinic/identity/certificate.pem --home hospital", "it is the answer to one: accept it"),
        ("organisations sent --home nowhere", "worldlm organisations keys --node NAME creates them"),
        ("organisations admitt x --home hospital", "no action 'admitt'.*did you mean 'admit'"),
        ("organisations keys", "organisations keys needs --node NAME"),
        (
            JOIN + " --approve joined,lefft",
            "--approve takes some of joined, left, moved, settings, but is given 'lefft'",
        ),
        ("organisations propose --home hospital", "organisations propose needs the file of a topology"),
        (
            "organisations propose pact_tree.yaml --home hospital",
            "hospital has not run yet: worldlm serve or join runs",
        ),
        (
            "organisations propose pact_tree.yaml --home clinic",
            "its root is hospital; only the root proposes, and clinic",
        ),
        ("organisations propose no.yaml --home hospital", "no.yaml"),
        ("organisations consent --home clinic", "clinic has not run yet"),
    ],
)
def test_mistakes(line: str, message: str, error_of: Callable[[str], str]) -> None:
    error = error_of(line)
    assert re.search(message, error), error
    assert len([text for text in error.splitlines() if "no checkpoint under" not in text]) == 1
    assert not Path("klinic").exists()
    assert not list(Path().glob("*/runs/*/version_*"))


def test_a_tokenizer_cannot_be_trained_on_text_of_all(error_of: Callable[[str], str]) -> None:
    pact = Path("pact.yaml")
    pact.write_text(pact.read_text().replace("tokenizer: bytes", "tokenizer: {class_path: worldlm.data.TrainedBPE}"))
    assert "trains a tokenizer on the text of all nodes, which nobody has" in error_of(JOIN)


def test_a_node_runs_once(error_of: Callable[[str], str]) -> None:
    with FileLock("clinic/.lock"):
        assert "clinic is at work: another process uses clinic" in error_of(JOIN)


def test_a_proposal_is_shown_and_consented_to(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> list[str]:
        assert main(["organisations", *words]) == 0
        return capsys.readouterr().out.splitlines()

    topology = load_topology("pact_tree.yaml")
    programs = {}
    for name in ("hospital", "clinic"):
        Path(name, "mail", "pact").mkdir(parents=True)
        files = ProposalFiles(Path(name, "mail", "pact", "changes"))
        programs[name] = Proposals(files, topology, name, lambda text: parse_topology(text, "proposal"))
    assert run("proposal", "--home", "hospital") == ["done. nothing is proposed"]
    text = Path("pact_tree.yaml").read_text()
    Path("next.yaml").write_text(text.replace("num_local_steps: 20", "num_local_steps: 30"))
    assert run("propose", "next.yaml", "--home", "hospital")[-1].startswith("done. hospital proposes next.yaml")
    assert "was not compared" in "".join(run("proposal", "--home", "hospital"))

    programs["hospital"].assess()
    programs["clinic"].take(programs["hospital"].proposed)
    programs["clinic"].assess()
    change = "changed: hospital, clinic num_local_steps 20 -> 30"
    shown = [change, "hospital: consents", "clinic, and all below it: not yet"]
    assert run("proposal", "--home", "hospital")[:3] == shown
    assert run("proposal", "--home", "clinic")[:2] == [change, "clinic: has not consented yet"]
    assert run("consent", "--home", "clinic")[:1] == [change]
    programs["hospital"].files.note("clinic", programs["clinic"].agreed())
    assert run("proposal", "--home", "hospital")[2] == "clinic, and all below it: consents"
    assert programs["hospital"].agreed()


def test_keys_are_shown(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["organisations", "show", "--home", "hospital"]) == 0
    assert "admitted: clinic, " in capsys.readouterr().out
    assert main(["organisations", "show", "--home", "clinic"]) == 0
    assert "admitted: none" in capsys.readouterr().out
