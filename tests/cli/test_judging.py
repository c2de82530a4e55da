"""`omnialpha eval judge | study | study-report` from the command line, on two small runs and a local server."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from chat_server import Chat, Messages, good, pictures, serve, texts
from judged_runs import two
from omnialpha.cli.main import app

Call = Callable[..., Result]
KEY = "sk-a-very-secret-key"
KEYS = ("one", "two", "three")


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a command in a folder with the runs `heron` and `otter`; otter lacks one sample of four."""
    two(tmp_path, [*KEYS, "four"], {"B": ["four"]})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    return lambda *given: CliRunner().invoke(app, ["eval", *map(str, given)], catch_exceptions=False)


def of_quality_alone(messages: Messages) -> str:
    """Takes the same picture in both orders, but what comes first where quality is asked about."""
    shown = pictures(messages)
    first = shown["Result A: full"] < shown["Result B: full"]
    return good("A" if first or "in itself" in texts(messages)[0] else "B", f"my key is {KEY}")


def test_a_judge(call: Call) -> None:
    chat = Chat(of_quality_alone, [(500, KEY.encode(), {})])
    with serve(chat) as url:
        told = ["judge", "heron", "otter", "--url", url, "--model", "some/vlm", "--key-from", "JUDGE_KEY"]
        first = call(*told, "--aspects", "overall,quality", "--timeout", 5)
        assert first.exit_code == 0, first.stderr
        out = Path("runs/judge/heron-otter-some_vlm")
        asked = len(chat.requests)
        assert asked == 13 and f"wrote {out / 'index.html'} in " in first.stdout
        assert "quality: A better 0.0 %, tie 100.0 %, B better 0.0 % (n 3)" in first.stdout
        assert "note: otter lacks 1 of the samples, which are left out" in first.stderr
        again = call(*told, "--aspects", "overall,quality", "--json")
    told_again = json.loads(again.stdout)
    assert again.exit_code == 0 and len(chat.requests) == asked
    overall, quality = told_again["summary"]
    assert overall["consistency"] == 1 and overall["ties"] == 0 and quality["order_bias"] == 0.5
    assert told_again["header"] | {"A": "heron", "B": "otter", "model": "some/vlm"} == told_again["header"]
    written = [path.read_text() for path in out.iterdir()]
    assert len(written) == 6 and KEY not in "".join([*written, first.output, again.output])


def test_a_study(call: Call) -> None:
    made = call("study", "heron", "otter", "-o", "s", "--limit", 2)
    assert made.exit_code == 0, made.stderr
    assert made.stdout == "2 questions about 2 samples: give s/page to the annotators, and keep the rest\n"
    again = json.loads(call("study", "heron", "otter", "-o", "s", "--limit", 2, "--json").stdout)
    assert (again["samples"], again["questions"], again["missing"]) == (2, 2, {"A": [], "B": ["four"]})

    order = {s["id"]: s["order"] for s in json.loads(Path("s/study.json").read_text())["samples"]}
    for name in ("Ann", "Bob"):  # Ann and Bob both take A, wherever it is
        answers = [{"sample": key, "aspect": "overall", "left": 0, "choice": "left" if sides[0] == "A" else "right"}
                   for key, sides in order.items()]  # fmt: skip
        told = {"format": "omnialpha study result", "version": 1, "study": again["study"], "annotator": name}
        Path(f"{name}.json").write_text(json.dumps(told | {"answers": answers}))
    done = call("study-report", "s", "Ann.json", "Bob.json")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("overall: A better 100.0 %, tie 0.0 %, B better 0.0 % (n 2)")
    assert json.loads(Path("s/report/report.json").read_text())["header"]["model"] == "2 people"

    with serve(Chat(lambda messages: good("A"))) as url:
        told_judge = (
            "judge",
            "heron",
            "otter",
            "--url",
            url,
            "--model",
            "vlm",
            "--against",
            "s/report",
            "-o",
            "j",
            "-q",
        )
        judged = call(*told_judge)
    assert (judged.exit_code, judged.output) == (0, "")
    assert "| overall | 2 people | 2 | 0.0 | 0.00 |" in Path("j/report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["judge", "heron", "nowhere", "--url", "http://x/v1", "--model", "m"], "nowhere holds no samples.jsonl"),
        (["judge", "heron", "otter", "--url", "x", "--model", "m"], "'x' is no address of a chat model"),
        (["judge", "heron", "otter", "--url", "http://x/v1"], "Missing option '--model'"),
        (["judge", "heron", "otter", "--url", "http://x/v1", "--model", "m", "--key-from", "NO_SUCH"],
         "the environment variable NO_SUCH is not set"),
        (["judge", "heron", "otter", "--url", "http://x/v1", "--model", "m", "--aspects", "looks"],
         "aspect 'looks' is not known"),
        (["judge", "heron", "otter", "--url", "http://x/v1", "--model", "m", "--timeout", "0"], "timeout=0"),
        (["study", "heron", "otter", "-o", "s", "--ground", "plaid"], "ground 'plaid' is not known"),
        (["study", "heron", "otter", "-o", "s", "--limit", "0"], "limit=0 is out of range"),
        (["study-report", "heron", "x.json"], "heron holds no study.json"),
    ],
)  # fmt: skip
def test_what_is_refused(call: Call, arguments: list[str], words: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2 and words in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 and not Path("runs").exists() and not Path("s").exists()


def test_a_stop_says_what_is_kept(call: Call) -> None:
    def stop(messages: Messages) -> str:
        if len(chat.requests) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
        return good("A")

    with serve(chat := Chat(stop)) as url:
        told = ("judge", "heron", "otter", "--url", url, "--model", "m", "--workers", 1, "--aspects", "overall")
        result = call(*told)
    assert result.exit_code == 130
    assert "stopped, 2 of 6 answers are kept in runs/judge/heron-otter-m: run it again to go on" in result.stderr


def test_its_help_loads_nothing_heavy() -> None:
    code = "import json, sys, omnialpha.cli.judging; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "PIL", "openai"}.isdisjoint(json.loads(run.stdout))
