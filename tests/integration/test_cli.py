"""The command line as a user meets it."""

import html
import json
import multiprocessing
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from breaking import carry_out

import worldlm
from worldlm.cli import main
from worldlm.models import LanguageModule
from worldlm.runs.lock import at_work
from worldlm.topology import find_file

FORK = "ignore:.*multi-threaded, use of fork:DeprecationWarning"


def change(recipe: Path, *pairs: tuple[str, str]) -> Path:
    text = recipe.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    recipe.write_text(text)
    return recipe


def worldlm_command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "worldlm", *arguments], capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Run a command that must fail, and return its error lines, without the name of the program."""
    assert main(arguments) == 2
    output = capsys.readouterr().err
    assert "Traceback" not in output
    lines = [line for line in output.splitlines() if line.startswith("worldlm: ")]
    return [line.removeprefix("worldlm: ") for line in lines]


def test_help_and_version_need_no_torch() -> None:
    code = "import sys; from worldlm.cli import main; assert main(['--help']) == 0; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "worldlm fit --recipe" in done.stdout
    assert worldlm_command("--version").stdout == f"worldlm {worldlm.__version__}\n"


def test_no_arguments_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "worldlm topology check FILE" in capsys.readouterr().out


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "fitt") == [
        "no command 'fitt'; there are fit, validate, prepare, compare, runs, export, generate, evaluate, topology, "
        "report, organisations, serve, join; did you mean 'fit'?"
    ]


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for command, message in (("topology", "usage: worldlm topology check FILE"), ("nothing", "")):
        assert main(["help", command]) == (0 if message else 2)
        assert capsys.readouterr().out.startswith(message)
    with pytest.raises(SystemExit) as stopped:
        main(["help", "runs"])
    assert stopped.value.code == 0
    assert "usage: worldlm runs" in capsys.readouterr().out


def test_topology_check_and_show(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "check", "shore.yaml"]) == 0
    assert "5 nodes, 3 levels, 3 with data" in capsys.readouterr().out
    assert main(["topology", "show", "quickstart"]) == 0
    assert "docstrings" in capsys.readouterr().out


def test_topology_show_draws_in_several_formats(shore: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["topology", "show", "shore.yaml", "--format", "png"]) == 0
    assert capsysbinary.readouterr().out == b"done. picture of shore: shore.png\n"
    assert Path("shore.png").read_bytes().startswith(b"\x89PNG")
    assert main(["topology", "show", "shore.yaml", "--format", "svg", "--out", "-"]) == 0
    assert b">hills</text>" in capsysbinary.readouterr().out
    assert main(["topology", "show", "shore.yaml", "--format", "mermaid", "--out", "m.txt"]) == 0
    assert Path("m.txt").read_text().startswith("flowchart LR\n")
    assert main(["topology", "show", "shore.yaml", "--out", "shore.yaml/m.txt"]) == 2
    assert main(["topology", "show", "shore.yaml", "--format", "pdf"]) == 2


def test_topology_without_a_command_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology"]) == 2
    assert "usage: worldlm topology check FILE" in capsys.readouterr().out
    assert refused(capsys, "topology", "shwo")[0] == "topology: no command 'shwo'; did you mean 'show'?"


@pytest.mark.usefixtures("pictures")
def test_a_run_that_diverges_is_carried_through(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its pictures, its texts and its table; and afterwards one may ask its nodes."""
    wild = ["--model.optimizer.lr", "1e30", "--trainer.gradient_clip_val", "null"]
    assert main(["fit", "--recipe", "tiny.yaml", "--trainer.max_epochs", "1", *wild]) == 0
    captured = capsys.readouterr()
    assert "rejected the upload of sea" in captured.err
    assert captured.out.splitlines()[-1].startswith("done. results: runs/tiny/version_0")
    assert main(["generate", "runs/tiny", "wave", "--node", "world,sea"]) == 0
    assert "wave (the model has diverged: its logits are not finite)" in capsys.readouterr().out
    assert main(["report", "runs/tiny"]) == 0


def test_fit_go_on_and_validate(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way a user goes: train, train on in the same folder, evaluate."""
    nodes = ("world", "land", "hills", "woods", "sea")
    assert main(["fit", "--recipe", "tiny.yaml"]) == 0
    first = capsys.readouterr()
    assert first.out.splitlines()[-1].startswith("done. results: runs/tiny/version_0")
    assert all(re.search(rf"\b{node}\b", first.out) for node in nodes)
    assert "round 2/2: mean perplexity after fit" in first.err
    folder = Path("runs/tiny/version_0")
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert (folder / "config.yaml").is_file()
    layout = documented_layout()
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    patterns = [[pattern for pattern in layout if fnmatch(name, pattern)] for name in found]
    assert patterns == [
        [".lock"],
        ["checkpoints/last.ckpt"],
        ["config.yaml"],
        ["events.out.tfevents.*"],
        ["hparams.yaml"],
        ["noise-*.key"],
        ["results.json"],
        ["tokenizer.json"],
    ]
    there = ("always", "after the first round", "if the topology demands privacy")
    assert {pattern for pattern, when in layout.items() if when.startswith(there)} == {
        pattern_ for (pattern_,) in patterns
    }
    assert main(["fit", "--recipe", "tiny.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    more = capsys.readouterr()
    assert "resumes from runs/tiny/version_0/checkpoints/last.ckpt" in more.out
    assert "round 3/3" in more.err
    assert "round 2/3" not in more.err
    assert main(["fit", "--recipe", "tiny.yaml", "--ckpt_path", "last", "--trainer.max_epochs", "3"]) == 0
    expected = "done. all 3 rounds were done before; for more: --trainer.max_epochs 6. results: runs/"
    assert capsys.readouterr().out.splitlines()[-1].startswith(expected)
    assert [path.name for path in Path("runs/tiny").glob("version_*")] == ["version_0"]
    assert main(["validate", "--recipe", "tiny.yaml", "--ckpt_path", "last"]) == 0
    seen = capsys.readouterr().out
    assert all(re.search(rf"\b{node}\b", seen) for node in nodes)
    assert not Path("config.yaml").exists()


def documented_layout() -> dict[str, str]:
    """When each file of a run is there, by its pattern, as docs/reference/run_folder.md says."""
    page = Path(__file__).parents[2] / "docs" / "reference" / "run_folder.md"
    (table,) = re.findall(r"\| file \| what it is \| there \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", page.read_text())
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    return {name.strip("`"): when for name, _, when in rows}


def test_two_runs_do_not_share_a_folder(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--recipe", "tiny.yaml", "--trainer.max_epochs", "1"]) == 0
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.name != ".lock"}
    capsys.readouterr()
    with at_work(Path("runs/tiny/version_0")):
        assert main(["runs", "--json"]) == 0
        (run,) = json.loads(capsys.readouterr().out)
        assert run["state"] == "running"
        lines = refused(capsys, "fit", "--recipe", "tiny.yaml", "--ckpt_path", "last")
        assert lines == ["another worldlm fit is writing to runs/tiny/version_0: wait for it, or stop it first"]
        assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*") if path.name != ".lock"} == before
    assert main(["fit", "--recipe", "tiny.yaml", "--ckpt_path", "last"]) == 0


def test_help_lists_what_is_no_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    output = capsys.readouterr().out
    assert all(option in output for option in ("--safe", "--repeat RUN", "--ckpt_path", "--recipe"))


def test_a_start_that_fails_leaves_no_folder(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("sea.txt").unlink()
    refused(capsys, "fit", "--recipe", "tiny.yaml")
    assert list(Path("runs").rglob("version_*")) == []


def test_a_class_in_the_current_folder_is_found(
    shore: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    source = "from worldlm.callbacks import NodeMetrics\nclass Mine(NodeMetrics): ...\n"
    Path("of_my_own.py").write_text(source)
    change(shore, ("  callbacks:\n", "  callbacks:\n    - class_path: of_my_own.Mine\n"))
    assert main(["fit", "--recipe", "tiny.yaml"]) == 0
    change(shore, ("of_my_own.Mine", "of_my_own.Mien"))
    assert "did you mean 'Mine'?" in refused(capsys, "fit", "--recipe", "tiny.yaml")[0]
    assert sys.path[-1] == str(shore.parent)  # what is installed comes first


def test_a_trial_leaves_nothing_behind(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(shore.parent.rglob("*"))
    trial = ["--trainer.fast_dev_run", "true", "--data.cache_dir", "../cache", "--model.optimizer.warmup_steps", "0"]
    assert main(["fit", "--recipe", "tiny.yaml", *trial]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "done. a trial run, which writes no files"
    assert sorted(shore.parent.rglob("*")) == before


@pytest.mark.filterwarnings(FORK)
def test_a_terminal_has_a_bar_and_no_colours_if_told_so(shore: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    process, ours = pty.fork()
    if process == 0:
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        try:
            os._exit(main(["fit", "--recipe", "tiny.yaml", "--trainer.max_epochs", "1"]))
        finally:
            os._exit(1)
    seen = b""
    with suppress(OSError):  # the end of a terminal
        while part := os.read(ours, 65536):
            seen += part
    os.close(ours)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, seen
    assert b"/9 batches" in seen
    assert b"\x1b[2K" in seen
    assert re.findall(rb"\x1b\[(?:\d+;)*(?:3|4|9|10)[0-7](?:;\d+)*m", seen) == []


def test_libraries_show_no_bars_in_a_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "x")  # to be put back
        monkeypatch.delenv(name)
    refused(capsys, "fit")
    assert os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] == os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


def test_every_mistake_of_a_recipe_at_once(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(shore, ("temperature: 0.1", "temprature: 0.1"), ("lr: 6e-3", "lrr: 6e-3"), ("Averaging", "Averagin"))
    lines = refused(capsys, "fit", "--recipe", "tiny.yaml")
    assert [line.split(": ")[0] for line in lines] == ["tiny.yaml:6", "tiny.yaml:17", "tiny.yaml:20"]
    assert [re.findall(r"did you mean '(\w+)'", line) for line in lines] == [["lr"], ["Averaging"], ["temperature"]]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "temperature: 0.1",
            "temperature: -1",
            "tiny.yaml:20: temperature must be above 0, or two such numbers, first and last, got -1.0",
        ),
        (
            "temperature: 0.1",
            "temperature: hot",
            "tiny.yaml:20: temperature: must be float or tuple or nothing, but is hot",
        ),
        ("lr: 6e-3", "lr: ~", "tiny.yaml:6: model.optimizer.lr has no value; write one, or leave the key out"),
        ("max_epochs: 2", "max_epochs: 010", "tiny.yaml:14: trainer.max_epochs must be a decimal number, but is '010'"),
        ("  max_epochs: 2", "\tmax_epochs: 2", "tiny.yaml:14: is indented with a tab; YAML allows only spaces"),
        ("lr: 6e-3", "lr: -1", "tiny.yaml:6: lr is -1.0: it must be above 0"),
        ("max_epochs: 2", "max_epochs: x", "tiny.yaml:14: trainer.max_epochs: must be int or nothing, but is x"),
        ("max_epochs: 2", "max_steps: 2", "tiny.yaml:14: max_steps is 2: a world is counted in rounds"),
        ("shore.yaml", "shores.yaml", "tiny.yaml:2: no file 'shores.yaml', and no file of that name in topologies"),
        ("train: sea.txt", "train: see.txt", "tiny.yaml:12: node 'sea', corpus 'sea': no such file: see.txt"),
        (
            "    sea: {",
            "    see: {",
            "shore.yaml:11: node 'sea': unknown corpus 'sea'; known are hills, see, all; did you mean 'see'?",
        ),
        (
            "vocab_size: 257",
            "vocab_size: 99",
            "tiny.yaml:4: the tokenizer has 257 tokens, the model's vocab_size is 99",
        ),
        ("norm_f", "norm_g", "tiny.yaml:5: split.values pattern 'norm_g\\\\.' matches no parameter"),
        ("    - class_path: worldlm.callbacks.UpdatePrivacy\n", "", "the topology shore asks for privacy at land"),
    ],
)
def test_one_line_for_a_mistake(
    shore: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    change(shore, (old, new))
    lines = refused(capsys, "fit", "--recipe", "tiny.yaml")
    assert len(lines) == 1
    assert lines[0].startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit"], "fit needs a recipe"),
        (["fit", "--recipe", "tinny.yaml"], "no file 'tinny.yaml', and no file of that name in recipes"),
        (["fit", "--recipe", "tiny.yaml", "--trainer.max_epocs", "3"], "no setting --trainer.max_epocs; did you mean"),
        (["fit", "--recipe", "tiny.yaml", "--trainer.max_epoch", "3"], "no setting --trainer.max_epoch; did you mean"),
        (["fit", "--recipe", "tiny.yaml", "--seed", "3"], "no setting --seed; did you mean 'seed_everything'?"),
        (["validate", "--rec=a.yaml", "--recipe", "tiny.yaml"], "no setting --rec; did you mean 'recipe'?"),
        (["fit", "--recipe", "tiny.yaml", "--trainer.max_epochs", "x"], "--trainer.max_epochs: must be int or nothing"),
        (["fit", "--recipe", "tiny.yaml", "--ckpt_path", "none.ckpt"], "--ckpt_path: no checkpoint at none.ckpt"),
        (["fit", "--recipe", "tiny.yaml", "--ckpt_path", "sea.txt"], "sea.txt cannot be read as a checkpoint"),
        (["validate", "--recipe", "tiny.yaml"], "validate needs a checkpoint"),
    ],
)
def test_one_line_for_a_mistake_on_the_command_line(
    shore: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    lines = refused(capsys, *arguments)
    assert len(lines) == 1
    assert lines[0].startswith(message)


def test_names_and_values_of_records_are_taken_as_they_are_written(
    shore: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(
        shore, ("    sea: {", "    no: {"), ("train: hills.txt", "train: hills.txt, where: {country: no, code: 012}")
    )
    change(Path("shore.yaml"), ("corpus: sea", "corpus: no"))
    line = refused(capsys, "fit", "--recipe", "tiny.yaml")[-1]
    assert (
        "corpus 'hills' (train): there are no train documents; where requires {'country': 'no', 'code': '012'}" in line
    )
    line = refused(capsys, "prepare", "--recipe", "tiny.yaml", "--data.local", "{off: sea.txt}")[-1]
    assert line.endswith("local.off: there is no corpus of that name; known are hills, no")


def test_an_empty_corpus_names_node_and_corpus(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("sea.txt").write_text("  \n")
    lines = refused(capsys, "fit", "--recipe", "tiny.yaml")
    assert len(lines) == 1
    assert lines[0].startswith("node 'sea', corpus 'sea' (train): ")


def test_a_topology_with_mistakes_names_file_and_lines(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(Path("shore.yaml"), ("{name: sea", "&sea {nam: sea"), ("clip_norm: 0.5", "clip_norm: -1"))
    lines = refused(capsys, "fit", "--recipe", "tiny.yaml")
    assert [line.split(": ")[0] for line in lines] == ["shore.yaml:7", "shore.yaml:11", "shore.yaml:11"]


def test_a_run_that_ends_early_says_why(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", "--recipe", "tiny.yaml", "--trainer.max_time", "00:00:00:00"]
    assert main([*fit, "--trainer.enable_progress_bar", "false"]) == 0
    captured = capsys.readouterr()
    resume = f"worldlm {shlex.join(fit)} --trainer.enable_progress_bar false --ckpt_path last"
    why = "stopped after round 1 of 2: max_time of 0:00:00 is over; to go on with a longer max_time, which counts from"
    assert captured.out.splitlines()[-2] == f"{why} the run's start: {resume}"
    assert "round 1" not in captured.err
    assert main([*fit, "--ckpt_path", "last", "--trainer.enable_checkpointing", "false"]) == 0
    assert capsys.readouterr().out.splitlines()[-2].startswith("stopped after round 1 of 2: max_time of 0:00:00 is")


def test_a_metric_that_does_not_exist_is_one_line(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopping = "{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: see/perplexity_after_fit}}"
    Path("stop.yaml").write_text(f"trainer: {{callbacks+: [{stopping}]}}\n")
    (line,) = refused(capsys, "fit", "--recipe", "tiny.yaml", "--recipe", "stop.yaml")
    assert line.startswith(
        "stop.yaml:1: EarlyStopping monitors 'see/perplexity_after_fit', which nothing logs: there are"
    )
    assert line.endswith("; did you mean 'sea/perplexity_after_fit'?")


def test_a_stopped_run_ends_like_one_that_never_stopped(
    shore: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], default_signals: None
) -> None:
    """Stopped kindly, and taken up again: the same world, bit for bit, noise and ledgers included."""
    fit = ["fit", "--recipe", "tiny.yaml", "--trainer.max_epochs", "3", "--trainer.noise_key", "noise.key"]
    assert main([*fit, "--name", "whole"]) == 0
    original, steps = LanguageModule.training_step, 0

    def training_step(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 14:  # of 9 in each round
            os.kill(os.getpid(), signal.SIGHUP)  # which becomes SIGTERM
        return original(*args, **kwargs)

    monkeypatch.setattr(LanguageModule, "training_step", training_step)
    capsys.readouterr()
    assert main([*fit, "--name", "stopped"]) == 143
    again = f"{shlex.join(fit)} --name stopped --ckpt_path last"
    assert f"stopped; resume with: worldlm {again}. results so far" in capsys.readouterr().out
    assert steps == 14
    assert last("stopped")["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 1
    assert main([*fit, "--name", "stopped", "--ckpt_path", "last"]) == 0
    assert same(last("stopped")["callbacks"], last("whole")["callbacks"])
    assert same(last("stopped")["loops"], last("whole")["loops"])


def test_a_report_says_how_to_repeat_a_run(shore: Path) -> None:
    """What it says, typed in again, comes to the same."""
    assert main(["fit", "--recipe", str(shore), "--trainer.max_epochs", "1"]) == 0
    assert main(["report", "runs/tiny"]) == 0
    text = html.unescape(re.sub("<[^>]*>", "", Path("runs/tiny/version_0/report.html").read_text()))
    commands = re.findall("worldlm fit .*? --trainer.max_epochs 1|worldlm fit .*? --ckpt_path null", text)
    first, again = (shlex.split(command)[1:] for command in commands)
    assert first == ["fit", "--recipe", str(shore), "--trainer.max_epochs", "1"]
    assert again[1:5] == ["--recipe", "runs/tiny/version_0/config.yaml", "--name", "tiny-repeated"]
    assert main(again) == 0
    records = [
        json.loads(Path(f"runs/{name}/version_0/results.json").read_text()) for name in ("tiny", "tiny-repeated")
    ]
    own = {"seconds": 0, "last_start": {}}
    assert {**records[0], **own} == {**records[1], **own}


@pytest.mark.filterwarnings(FORK)
def test_several_processes(shore: Path) -> None:
    """They come to what one comes to, and speak with one voice; validate needs but one."""
    key, log = ["--trainer.noise_key", "noise.key"], shore.parent / "log.txt"
    two = ("fit", "--safe", "--recipe", str(shore), "--trainer.devices", "2", *key)
    process = multiprocessing.get_context("fork").Process(target=carry_out, args=(two, log, dict))
    process.start()  # it starts the other
    process.join(240)
    output = log.read_text()
    assert (process.exitcode, output.count("shore: 5 nodes"), output.count("done.")) == (0, 1, 1), output
    assert [mark for mark in ("\x1b", "\r", "%|") if mark in output] == []  # no terminal, no bars
    assert main(["fit", "--recipe", str(shore), "--name", "one", *key]) == 0
    records = [json.loads(Path(f"runs/{name}/version_0/results.json").read_text()) for name in ("tiny", "one")]
    own = {"seconds": 0, "last_start": {}}
    assert {**records[0], **own} == {**records[1], **own}
    assert same(
        last("tiny")["loops"]["fit_loop"]["state_dict"]["world"],
        last("one")["loops"]["fit_loop"]["state_dict"]["world"],
    )
    assert main(["validate", "--recipe", str(shore), "--ckpt_path", "last", "--trainer.devices", "2"]) == 0


@pytest.mark.slow
def test_a_process_that_is_killed(shore: Path) -> None:
    """The others end with a line that says so, and the run goes on from its last round, on as many as one likes."""
    given = ["fit", "--recipe", str(shore), "--trainer.max_epochs", "12"]
    command = [sys.executable, "-m", "worldlm", *given, "--trainer.devices", "3"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    checkpoint = Path("runs/tiny/version_0/checkpoints/last.ckpt")
    for _ in range(600):
        if checkpoint.is_file():
            break
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search("process 2 of the run ended with signal 9|another process of the run is gone", output)
    assert "resume with --ckpt_path last" in output
    assert main([*given, "--ckpt_path", "last"]) == 0
    (key,) = checkpoint.parents[1].glob("noise-*.key")
    assert main([*given, "--name", "whole", "--trainer.noise_key", str(key)]) == 0
    assert same(
        last("tiny")["loops"]["fit_loop"]["state_dict"]["world"],
        last("whole")["loops"]["fit_loop"]["state_dict"]["world"],
    )


def last(name: str) -> dict[str, Any]:
    return torch.load(Path("runs") / name / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)  # type: ignore[no-any-return]


def same(left: Any, right: Any) -> bool:
    """Compare two trees of plain containers and tensors, bit for bit."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else bool(left == right)


def test_shipped_recipes_parse(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = find_file("recipes", "quickstart").parent
    for recipe in sorted(folder.glob("*.yaml")):
        monkeypatch.setattr(sys, "argv", ["worldlm"])
        with pytest.raises(SystemExit) as stopped:
            main(["fit", "--recipe", str(recipe), "--print_config"])
        assert stopped.value.code == 0, recipe
        assert "max_epochs:" in capsys.readouterr().out
    assert os.path.basename(folder) == "recipes"


def test_prepare_packs_and_trains_nothing(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = shore.parent / "cache"
    for num_packed in (2, 0):  # the second time nothing is left to do
        assert main(["prepare", "--recipe", "tiny.yaml", "--data.cache_dir", str(cache)]) == 0
        lines = capsys.readouterr()
        assert len([line for line in lines.err.splitlines() if line.startswith("Packed ")]) == num_packed
        assert lines.out.splitlines()[-1] == f"done. packed text: {cache}"
        assert "sea: sea, train" in lines.out
    assert not (shore.parent / "runs").exists()


def test_a_cache_that_cannot_be_written_is_told_in_a_line(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = refused(capsys, "prepare", "--recipe", "tiny.yaml", "--data.cache_dir", str(shore / "cache"))
    assert lines == [f"--data.cache_dir {shore}/cache cannot be used: Not a directory: '{shore}/cache'"]


def test_settings_of_the_recipe_are_laid_over_the_topology(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = refused(capsys, "fit", "--recipe", "tiny.yaml", "--federation.settings.num_local_step", "1")
    assert lines[0].startswith("federation.settings: ")
    assert "did you mean 'num_local_steps'" in lines[0]
