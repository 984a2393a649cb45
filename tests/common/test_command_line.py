"""A paper of ten lines, run in every way a user might, rightly and wrongly."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import papers
from common import command_line, ledger, records, runner

FILES = {
    "__init__.py": '"""A toy."""\n',
    "config.py": """
        from dataclasses import dataclass
        from common.config import option

        @dataclass(frozen=True)
        class Config:
            seed: int = option(0, "seeds every generator")
            steps: int = option(5, "steps taken", unit="steps")
            pause: float = option(0.0, "rest after a step", unit="s")
            fault: bool = option(False, "switches the mechanism off")
            result: float = option(1.0, "what is found")

            def __post_init__(self):
                if self.steps < 0:
                    raise ValueError(f"steps is {self.steps}, wanted 0 or more")

        PRESETS = {"smoke": Config(), "laptop": Config(steps=10), "paper": Config(steps=1000)}
    """,
    "reproduce.py": """
        import sys, time
        import numpy as np
        from common.command_line import main

        def measure(config, run):
            saved = run.checkpoint("walk")
            state = saved.load()
            first, total = (int(state[0]["at"]) + 1, float(state[0]["total"])) if state else (0, 0.0)
            print("begins at", first, flush=True)
            for i in run.track(range(first, config.steps), "walking"):
                total += np.sin(i)
                saved.save({"at": np.array(i), "total": np.array(total)})
                time.sleep(config.pause)
            with run.timing():
                time.sleep(0.05)
            values = {"walk": -5.0 if config.fault else config.result, "speed": 3.0, "count": 7}
            run.keep("total", total)
            return {name: value for name, value in values.items() if run.wants(name)}

        if __name__ == "__main__":
            raise SystemExit(main("toy"))
    """,
    "expected.yaml": """
        {title: A toy, authors: Nobody, year: 2024, venue: nowhere, track: "1", summary: a toy, bibtex: "@misc{toy}", claims: [
        {id: walk, says: one, figure: 1.0, unit: m, source: paper, where: Table 1, evidence: measured, agrees: "± 1 %",
         direction: "> 0.5", control: {fault: true}, how: walked},
        {id: speed, says: fast, figure: 3, unit: x, source: abstract, where: abstract, evidence: measured, agrees: ">= 2",
         timing: true, no_control: a toy, how: timed},
        {id: count, says: seven, figure: 7, unit: things, source: paper, where: Table 2, evidence: counted, agrees: equal, how: counted}]}
    """,
    "README.md": "# Toy\n\n<!-- results: written by --record -->\n<!-- /results -->\n",
}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy's room in a checkout of its own."""
    room = tmp_path / "papers" / "toy"
    room.mkdir(parents=True)
    for name, text in FILES.items():
        (room / name).write_text(textwrap.dedent(text))
    for module in (runner, ledger, records):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(papers, "__path__", [*papers.__path__, str(tmp_path / "papers")])
    monkeypatch.setenv("REPRODUCTION_OUTPUTS", str(tmp_path / "outputs"))
    yield room
    for name in [each for each in sys.modules if each.startswith("papers.toy")]:
        del sys.modules[name]


def _run(*words):
    return command_line.main("toy", list(words))


def test_a_run_and_its_results(toy, tmp_path, capsys):
    assert _run("preset=smoke") == 0
    shown = capsys.readouterr().out
    assert "walk" in shown and "agrees at reduced scale" in shown
    results = json.loads((tmp_path / "outputs/toy/smoke/results.json").read_text())
    assert results["claims"]["walk"] == 1.0 and results["verdicts"]["count"] == "agrees"
    assert results["machine"]["cores"] and results["versions"]["torch"] and results["seconds"] >= 0
    assert not (tmp_path / "outputs/toy/smoke/checkpoints").exists()


def test_an_override_writes_beside(toy, tmp_path):
    assert _run("preset=smoke", "steps=7") == 0
    assert [path.name for path in sorted((tmp_path / "outputs/toy").iterdir())] == ["smoke,steps=7"]


def test_sweep(toy, tmp_path):
    assert _run("-m", "preset=smoke", "steps=3,4") == 0
    assert {path.name for path in (tmp_path / "outputs/toy").iterdir()} == {"smoke,steps=3", "smoke,steps=4"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["preset=huge"], "there is no preset 'huge'; there are smoke, laptop, paper"),
        (["stepz=3"], "there is no option 'stepz'; did you mean steps?"),
        (["steps=abc"], "'abc'"),
        (["steps=-1"], "steps is -1, wanted 0 or more"),
        (["steps"], "write option=value"),
        (["+steps=1"], "'+steps=1' is not understood"),
        (["~steps"], "'~steps' is not understood"),
        (["--bogus"], "'--bogus' is not understood"),
        (["--record", "preset=smoke", "steps=3"], "--record takes a preset as it is"),
    ],
)
def test_usage_error_is_one_sentence_and_leaves_nothing(toy, tmp_path, capsys, words, says):
    assert _run(*words) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and "Traceback" not in error
    assert not (tmp_path / "outputs").exists()


def test_help(toy, capsys):
    assert _run("--help") == 0
    shown = capsys.readouterr().out
    assert "steps taken [steps] (int) = 5 | 10 | 1000" in shown and "--record" in shown


def test_claim_without_a_value_and_value_without_a_claim(toy, capsys):
    book = (toy / "expected.yaml").read_text()
    (toy / "expected.yaml").write_text(book.replace("id: count", "id: weight"))
    assert _run("preset=smoke") == 2
    assert "claim 'weight', which measure() in reproduce.py does not produce" in capsys.readouterr().err
    (toy / "expected.yaml").write_text(book[: book.index("{id: count")].rstrip().rstrip(",") + "]}\n")
    assert _run("preset=smoke") == 2
    assert "'count', which is no claim" in capsys.readouterr().err
    (toy / "expected.yaml").write_text(book.replace("says: fast", "sayz: fast"))
    assert _run("preset=smoke") == 2
    assert "claims.speed.sayz: unknown field" in capsys.readouterr().err


def test_output_folder_that_cannot_be_written(toy, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REPRODUCTION_OUTPUTS", str(tmp_path / "file"))
    assert _run("preset=smoke") == 2
    assert "cannot write to" in capsys.readouterr().err


def test_record_then_regression(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "revision", lambda: {"commit": "abc", "changed": []})
    monkeypatch.setattr(command_line, "machine_to_itself", _alone)
    monkeypatch.setattr(runner.meter, "BUSY_CORES", 1000)  # the other test workers are at work meanwhile
    assert _run("preset=smoke", "--record", "--controls") == 0
    whole = json.loads((toy / "recorded.json").read_text())
    assert whole["smoke"]["claims"]["walk"] == {"value": 1.0, "verdict": "agrees at reduced scale"}
    assert whole["smoke"]["controls"]["walk"]["verdict"] == "disagrees"
    assert "| **walk** one | measured | 1 m | 1 | agrees at reduced scale |" in (toy / "README.md").read_text()
    assert _run("preset=smoke") == 0
    config = (toy / "config.py").read_text().replace("option(1.0", "option(0.7")
    (toy / "config.py").write_text(config)
    for name in [each for each in sys.modules if each.startswith("papers.toy")]:
        del sys.modules[name]
    capsys.readouterr()
    assert _run("preset=smoke") == 1
    assert "worse than recorded: walk: direction only, recorded as agrees at reduced scale" in capsys.readouterr().err


def test_record_wants_a_clean_tree(toy, monkeypatch, capsys):
    monkeypatch.setattr(runner, "revision", lambda: {"commit": "abc", "changed": ["common/ops.py"]})
    assert _run("preset=smoke", "--record") == 2
    assert "commit common/ops.py first" in capsys.readouterr().err


def test_ledger_is_out_of_reach(toy, monkeypatch, tmp_path):
    """A paper that reads its ledger, by whatever means, cannot be measured."""
    _in_a_checkout(toy, tmp_path, monkeypatch)
    assert runner.run_or_load("toy", "smoke")["claims"]["walk"] == 1.0
    text = (toy / "reproduce.py").read_text()
    cheat = "open(__file__.replace('reproduce.py', 'expected.yaml')).read()"
    (toy / "reproduce.py").write_text(text.replace("saved = run", f"{cheat}\n    saved = run"))
    with pytest.raises(RuntimeError, match="the ledger is closed"):
        runner.run_or_load("toy", "smoke")


def test_killed_run_goes_on_where_it_was(toy, tmp_path, monkeypatch):
    environment = _in_a_checkout(toy, tmp_path, monkeypatch)
    command = [sys.executable, "-m", "papers.toy.reproduce", "preset=smoke", "steps=12", "pause=0.1"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as child:
        folder = tmp_path / "outputs/toy/smoke,pause=0.1,steps=12"
        while not list(folder.glob("checkpoints/*.safetensors")):
            time.sleep(0.02)
        time.sleep(0.3)
        child.send_signal(signal.SIGKILL)
        assert "begins at 0" in child.communicate()[0]
    assert not (folder / "results.json").exists()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "begins at 0" not in done.stdout and "begins at" in done.stdout
    resumed = json.loads((folder / "results.json").read_text())
    whole = subprocess.run([*command[:-1], "pause=0.0"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert whole.returncode == 0
    undisturbed = json.loads((tmp_path / "outputs/toy/smoke,pause=0.0,steps=12/results.json").read_text())
    assert resumed["details"] == undisturbed["details"] and resumed["verdicts"].keys() == undisturbed["verdicts"].keys()


def test_damaged_checkpoint_is_one_sentence(toy, tmp_path, monkeypatch, capsys):
    config = runner.configure("toy", "smoke", {})
    run = runner.prepare("toy", config, tmp_path / "outputs/toy/smoke")
    path = run.checkpoint("walk").path
    path.parent.mkdir()
    path.write_bytes(b"nonsense")
    assert _run("preset=smoke") == 2
    assert "is damaged" in capsys.readouterr().err


def test_two_runs_of_one_folder(toy, tmp_path, monkeypatch):
    environment = _in_a_checkout(toy, tmp_path, monkeypatch)
    command = [sys.executable, "-m", "papers.toy.reproduce", "preset=smoke", "pause=0.2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)
    while not list((tmp_path / "outputs").glob("toy/*/checkpoints/*")):
        time.sleep(0.02)
    second = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert first.wait() == 0 and second.returncode == 0, second.stderr
    assert f"waiting for process {first.pid}" in second.stderr
    assert "machine busy" in second.stdout.replace("\n", " ")


RANKED = """
import torch
from common.command_line import main
from common.distributed import launch

def work(group, result):
    return group.all_reduce(torch.tensor([result])).item() / group.size

def measure(config, run):
    from papers.toy import reproduce

    found = launch(reproduce.work, 2, config.result)
    assert found == [config.result] * 2
    with run.timing():
        pass
    values = {"walk": -5.0 if config.fault else found[0], "speed": 3.0, "count": 7}
    return {name: value for name, value in values.items() if run.wants(name)}

if __name__ == "__main__":
    raise SystemExit(main("toy"))
"""


@pytest.mark.xdist_group("distributed")
@pytest.mark.parametrize("launcher", ["torchrun", "submitit"])
def test_ranks_of_a_launcher_make_one_run(toy, tmp_path, monkeypatch, launcher):
    """Two processes of the same command measure together; the first alone judges, prints and writes."""
    environment = _in_a_checkout(toy, tmp_path, monkeypatch)
    (toy / "reproduce.py").write_text(RANKED)
    if launcher == "torchrun":
        start = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
        words = ["preset=smoke", "--controls"]
        folder = tmp_path / "outputs/toy/smoke"
    else:
        start, folder = [], tmp_path / "outputs/toy/smoke,steps=3"
        words = ["-m", "preset=smoke", "steps=3", "hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"]
    command = [sys.executable, "-m", *start, "papers.toy.reproduce", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    logs = "".join(path.read_text() for path in sorted(tmp_path.glob("outputs/.sweep/**/*.out")))
    assert done.returncode == 0, done.stderr + logs
    assert (done.stdout + logs).count("agrees at reduced scale") == 2  # walk and speed, once each
    assert json.loads((folder / "results.json").read_text())["claims"]["walk"] == 1.0
    assert not list(folder.glob(".rank-*"))
    assert [path.name for path in (tmp_path / "outputs/toy").iterdir()] == [folder.name]


def _in_a_checkout(room: Path, root: Path, monkeypatch) -> dict[str, str]:
    """An environment in which child processes take ``root`` for the checkout."""
    for name in ("common", "kernels"):
        (root / name).symlink_to(runner.__file__.rpartition("/common/")[0] + "/" + name)
    (room.parent / "__init__.py").touch()
    # common.ROOT follows the file of common/__init__.py, so the children import it through the link above.
    start = root / "sitecustomize.py"
    start.write_text(f"import common, pathlib\ncommon.ROOT = pathlib.Path({str(root)!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(root))
    return {**os.environ, "PYTHONPATH": str(root)}


class _alone:
    def __enter__(self):
        return None

    def __exit__(self, *_):
        return False
