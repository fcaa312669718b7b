"""Exit codes, texts and what a run leaves behind."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from probcalc import cli, experiment
from probcalc.cli import BAD_INPUT, FLAGGED, GOOD, INTERRUPTED, USAGE, main

CHEAP = ["--max-evals", "4096", "--restarts", "2"]
TIMED = ("seconds",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Folder of one finished run."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert main(["run", "eight_schools", "--out", str(folder), "--seed", "7", *CHEAP]) == GOOD
    return folder


def numbers(folder: Path) -> dict:
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {key: value for key, value in result.items() if key not in TIMED}


# what is typed -> exit code, pieces of the message
MISTAKES = {
    "no command": ([], USAGE, ["a command is needed", "usage: probcalc list"]),
    "unknown command": (["rnu"], USAGE, ["unknown command 'rnu'; did you mean 'run'?"]),
    "no experiment": (["run"], USAGE, ["needs an experiment; known: ", "eight_schools"]),
    "unknown experiment": (
        ["run", "eight_scools"],
        USAGE,
        ["unknown experiment 'eight_scools'; did you mean 'eight_schools'"],
    ),
    "unknown option": (
        ["run", "eight_schools", "--mu-scal", "3"],
        USAGE,
        ["unknown option '--mu-scal'; did you mean '--mu-scale'", "--seed"],
    ),
    "unknown option with =": (
        ["run", "eight_schools", "--tau_scal=3"],
        USAGE,
        ["unknown option '--tau_scal'; did you mean '--tau-scale'"],
    ),
    "list with an argument": (["list", "x"], USAGE, ["takes no argument, got 'x'"]),
    "report of nothing": (["report"], USAGE, ["takes one run folder, got 0 arguments"]),
    "NaN option": (
        ["run", "eight_schools", "--tau-scale", "nan"],
        BAD_INPUT,
        ["`--tau-scale` must be a finite number above 0, got nan."],
    ),
    "no evaluations": (
        ["run", "eight_schools", "--max-evals", "0"],
        BAD_INPUT,
        ["`--max-evals` must be at least 1, got 0."],
    ),
    "no such device": (
        ["run", "eight_schools", "--device", "meta"],
        BAD_INPUT,
        ["`--device meta` cannot be used here: "],
    ),
    "no such kind of device": (
        ["run", "eight_schools", "--device", "gpu"],
        BAD_INPUT,
        ["`--device gpu` cannot be used here: "],
    ),
    "unwritable folder": (
        ["run", "eight_schools", "--out", "file/below"],
        BAD_INPUT,
        ["output folder file/below cannot be written to: "],
    ),
    "no run folder": (["report", "."], BAD_INPUT, [". is not a run folder: it has no config"]),
}


@pytest.mark.parametrize(("args", "code", "pieces"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(args, code, pieces, tmp_path, monkeypatch, capsys):
    """Refused before any work: a message on stderr, the exit code, nothing on stdout, no file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment.Experiment, "run", lambda *_, **__: pytest.fail("it ran"))
    (tmp_path / "file").touch()
    assert main(args) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("probcalc: ")
    assert "Traceback" not in err
    for piece in pieces:
        assert piece in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "args",
    [["--seed", "x"], ["--dtype", "float16"], ["--seed"], ["--reference", "guess"]],
)
def test_values_that_cannot_be_read_are_usage(args, capsys):
    """The parser names the option."""
    with pytest.raises(SystemExit) as stop:
        main(["run", "eight_schools", *args])
    assert stop.value.code == USAGE
    assert args[0] in capsys.readouterr().err


def test_a_missing_extra_is_bad_input(monkeypatch, capsys):
    for loaded in [m for m in sys.modules if m.partition(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "probcalc._experiments.breast_cancer", raising=False)
    assert main(["run", "breast_cancer"]) == BAD_INPUT
    assert "pip install 'probcalc[data]'" in capsys.readouterr().err


def test_interrupted(monkeypatch, tmp_path, capsys):
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment.Experiment, "run", stopped)
    assert main(["run", "eight_schools", "--out", str(tmp_path / "x")]) == INTERRUPTED
    assert capsys.readouterr().err == "probcalc: interrupted\n"
    assert not (tmp_path / "x").exists()


def test_a_mistake_in_the_library_is_not_hidden(monkeypatch, tmp_path):
    """Only bad input is a message; everything else keeps its traceback."""
    monkeypatch.setattr(experiment.Experiment, "run", lambda *_, **__: 1 + "x")
    with pytest.raises(TypeError):
        main(["run", "eight_schools", "--out", str(tmp_path / "x")])


def test_list_and_version(capsys):
    assert main(["list"]) == GOOD
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0]: line.split(maxsplit=1)[1] for line in lines} == experiment.claims()
    assert main(["--version"]) == GOOD
    assert capsys.readouterr().out.startswith("probcalc 0.")
    for args in (["--help"], ["run", "--help"]):
        assert main(args) == GOOD
        assert "usage: probcalc list" in capsys.readouterr().out


def test_help_of_an_experiment_names_its_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "eight_schools", "--help"])
    assert stop.value.code == GOOD
    out = capsys.readouterr().out
    for option in ("--mu-scale", "--tau-scale", "--seed", "--device", "--dtype", "--out"):
        assert option in out


def test_a_run_leaves_what_is_promised(finished: Path):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "config.toml",
        "result.json",
        "posterior.safetensors",
        "forest.svg",
        "joint.svg",
        "weights.svg",
        "hero.png",
        "report.html",
    }
    options = tomllib.loads((finished / "config.toml").read_text(encoding="utf-8"))
    config = experiment.load("eight_schools").config_class(**options["config"])
    assert config == experiment.load("eight_schools").config_class()
    assert (options["seed"], options["restarts"], options["max_evals"]) == (7, 2, 4096)


def test_one_seed_one_result(finished: Path, tmp_path):
    """Another seed gives other numbers; the same seed gives the same, to the last digit."""
    again, other = tmp_path / "again", tmp_path / "other"
    main(["run", "eight_schools", "--out", str(again), "--seed", "7", *CHEAP])
    main(["run", "eight_schools", "--out", str(other), "--seed", "8", *CHEAP])
    assert numbers(again) == numbers(finished)
    assert numbers(other)["elbo"] != numbers(finished)["elbo"]


def test_report_rebuilds_the_page_and_the_figures(finished: Path, capsys):
    for name in ("report.html", "forest.svg", "hero.png"):
        (finished / name).unlink()
    assert main(["report", str(finished)]) == GOOD
    assert capsys.readouterr().out.strip() == str(finished / "report.html")
    assert (finished / "report.html").stat().st_size > 100_000
    assert (finished / "hero.png").is_file()


def test_a_finished_folder_is_not_overwritten(finished: Path, capsys):
    before = (finished / "result.json").read_bytes()
    assert main(["run", "eight_schools", "--out", str(finished)]) == BAD_INPUT
    assert "is not empty; give another with `--out`" in capsys.readouterr().err
    assert (finished / "result.json").read_bytes() == before


def test_a_flagged_posterior_is_code_three(tmp_path, capsys):
    args = ["run", "eight_schools_centered", "--out", str(tmp_path / "x")]
    code = main(args)
    out, err = capsys.readouterr()
    ok = numbers(tmp_path / "x")["ok"]
    agrees = numbers(tmp_path / "x")["reference"]["ok"]
    assert code == (GOOD if ok and agrees else FLAGGED)
    assert ("UNRELIABLE" in out) is not ok
    assert err == ""


def test_an_answer_that_disagrees_with_its_reference_is_code_three(tmp_path, monkeypatch, capsys):
    """However good it looks to itself."""
    original = experiment.Experiment.reference

    def shifted(self: experiment.Experiment, config: object) -> object:
        reference = original(self, config)
        row = reference.rows["mu"]
        return experiment.Reference("", {"mu": row._replace(mean=row.mean + row.std)})

    monkeypatch.setattr(experiment.Experiment, "reference", shifted)
    args = ["run", "eight_schools", "--out", str(tmp_path / "x"), *CHEAP]
    assert main(args) == FLAGGED
    assert "OFF" in capsys.readouterr().out


def test_other_options_have_no_reference(tmp_path, capsys):
    args = ["run", "eight_schools", "--mu-scale", "6", "--out", str(tmp_path / "x"), *CHEAP]
    assert main(args) in (GOOD, FLAGGED)
    assert "no reference: the options are not those" in capsys.readouterr().out
    assert numbers(tmp_path / "x")["reference"] is None


def test_a_reference_can_be_made(tmp_path, monkeypatch, capsys):
    """`--reference nuts` prints the block for the experiment's file, and keeps it."""
    made = experiment.load("eight_schools").module.REFERENCE
    monkeypatch.setattr(cli, "long_run", lambda *_, **__: made)
    args = ["run", "eight_schools", "--reference", "nuts", "--out", str(tmp_path / "x"), *CHEAP]
    assert main(args) == GOOD
    block = (tmp_path / "x" / "reference.txt").read_text(encoding="utf-8")
    assert block.startswith("REFERENCE = Reference(")
    assert block in capsys.readouterr().out


def piped(args: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", "from probcalc.cli import main; main()"]
    return subprocess.run(
        [*command, *args],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=120,
    )


def test_a_pipe_gets_no_bar_and_the_default_folder(tmp_path):
    run = piped(["run", "eight_schools", *CHEAP], tmp_path)
    assert run.stderr == ""
    assert "\r" not in run.stdout
    assert "verdict " in run.stdout
    assert "report        runs/eight_schools-1/report.html" in run.stdout
    assert (tmp_path / "runs" / "eight_schools-1" / "report.html").is_file()


class Terminal(io.StringIO):
    """What a program sees of a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch, tmp_path):
    """Stages and counts are drawn on stderr."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    main(["run", "eight_schools", "--out", str(tmp_path / "x"), *CHEAP])
    assert "\r" in sys.stderr.getvalue()
    assert " evaluations" in sys.stderr.getvalue()
