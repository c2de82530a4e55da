"""The own protocol: tasks, jobs, progress, results, cancelling, waiting."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from omnialpha.cli import options as cli_options
from omnialpha.io.stack_reading import read_stack
from omnialpha.run_options import RunOptions, cutout_options, options_of, run_options
from omnialpha.tasks import MAPS, TASKS, Role
from served import SIZE, Serve, StubEngine, disk, opened, png, until

PICTURE = ("composite", ("secret-name.png", png(), "image/png"))


def files_of(task: str) -> list[tuple[str, Any]]:
    """Pictures for every role of a task."""
    return [(str(role), ("x.png", disk() if role in MAPS else png(), "image/png")) for role in TASKS[task].inputs]


def fields_of(task: str) -> dict[str, Any]:
    return {"steps": 2} | ({"prompt": "a red mug"} if TASKS[task].text else {})


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    rows = [block.split("\n") for block in text.strip().split("\n\n") if not block.startswith(":")]
    return [(row[0].removeprefix("event: "), json.loads(row[1].removeprefix("data: "))) for row in rows]


# ---- tasks and options ---------------------------------------------------------------------------------------------


def test_the_table_of_tasks(serve: Serve) -> None:
    rows = {row["name"]: row for row in serve().get("/v1/tasks").json()["tasks"]}
    assert list(rows) == list(TASKS)
    for name, row in rows.items():
        assert [one["role"] for one in row["inputs"]] == list(TASKS[name].inputs)
        assert set(row["options"]) == set(options_of(TASKS[name]))
    assert rows["background_to_foreground"]["options"]["layers"]["type"] == "int"


def test_options_of_a_request_are_those_of_the_command_line() -> None:
    names = [row.name for row in run_options().values()]
    assert set(names) < set(cli_options.COMMON)
    parameters = {p.name: p for p in cli_options._option_parameters(names)}
    for row in run_options().values():
        option = parameters[row.name].annotation.__metadata__[0]
        assert parameters[row.name].default == row.default and option.help == row.help
        assert RunOptions().__getattribute__(row.name) == getattr(cli_options.Options(), row.name) == row.default


def test_options_of_a_cut_out_are_those_of_the_command_line() -> None:
    import dataclasses

    from omnialpha.cutout_options import Cutout

    parameters = {field.name: cli_options._cutout_parameter(field) for field in dataclasses.fields(Cutout)}
    assert list(parameters) == list(cutout_options()) == list(cli_options.CUTOUT)
    for row in cutout_options().values():
        option = parameters[row.name].annotation.__metadata__[0]
        assert parameters[row.name].default == row.default and option.help == row.help
    for name, task in TASKS.items():
        assert (task.category == "matting") == (cutout_options().keys() <= options_of(task).keys()), name


def test_a_cut_out_is_finished_as_asked(serve: Serve) -> None:
    client = serve(max_megapixels=0.01)

    def ask(**data: Any) -> Any:
        return client.post("/v1/tasks/matting_auto", files=[PICTURE], data=data, headers={"Prefer": "wait=20"})

    cropped = ask(crop="2", background="red", seed=40)
    height = SIZE[0] - SIZE[0] // 4
    assert (cropped.headers["x-width"], cropped.headers["x-height"]) == (str(SIZE[1] + 4), str(height + 4))
    made = opened(cropped.content)
    assert made.size == (SIZE[1] + 4, height + 4) and made.getpixel((0, 0)) == (255, 0, 0, 255)
    assert json.loads(made.text["omnialpha"])["crop"] == "2"
    soft = opened(ask(feather=3, choke=1.5).content).getchannel("A")
    assert len(soft.getcolors()) > 2
    assert opened(ask(decontaminate="false").content).getpixel((0, SIZE[0] - 1))[:3] == (200, 120, 40)
    for data, status, words in (
        ({"background": __file__}, 400, "is no colour"),
        ({"background": "reddish"}, 400, "is no colour"),
        ({"crop": "1000%"}, 413, "use a smaller one"),
        ({"crop": "wide"}, 400, "is no margin"),
        ({"choke": "101"}, 400, "use -100 to 100"),
        ({"feather": "nan"}, 400, "out of range"),
        ({"shadow": "maybe"}, 400, "use drop or keep"),
        ({"chocke": "1"}, 400, "did you mean 'choke'"),
    ):
        refused = ask(**data)
        assert refused.status_code == status and words in refused.json()["error"]["message"], refused.text
    rest = client.post("/v1/tasks/removal_auto", files=[PICTURE], data={"choke": 1})
    assert rest.status_code == 400 and "no option 'choke'" in rest.text


@pytest.mark.parametrize("name", TASKS)
def test_a_task_takes_the_options_that_the_command_line_does_not_refuse(name: str) -> None:
    from omnialpha.errors import InputError

    task, values = TASKS[name], {"seed": 1, "steps": 2, "guidance": 2.0, "size": "32x24", "frame": 0, "raw": True}
    values["refine"] = "off"
    assert set(values) == set(run_options())
    for option, value in values.items():
        try:
            cli_options.Options(**{option: value}).check(task)
            taken = True
        except InputError:
            taken = False
        assert taken == (option in options_of(task)), option
    checks = {"prompt": lambda: task.clean("a mug"), "layers": lambda: task.target_roles(3)}
    for option, check in checks.items():
        try:
            check()
            taken = True
        except InputError:
            taken = False
        assert taken == (option in options_of(task)), option


@pytest.mark.parametrize("name", TASKS)
def test_every_task(name: str, serve: Serve) -> None:
    client = serve()
    answer = client.post(
        f"/v1/tasks/{name}", files=files_of(name) or None, data=fields_of(name), headers={"Prefer": "wait=20"}
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["preference-applied"] == "wait=20"
    several = len(TASKS[name].targets) > 1
    assert answer.headers["content-type"] == ("application/zip" if several else "image/png")
    if not several:
        assert opened(answer.content).mode == "RGBA"
        settings = json.loads(opened(answer.content).text["omnialpha"])
        assert settings["task"] == name and settings["steps"] == 2


def test_words_of_a_model_that_does_not_read_are_refused(serve: Serve, engine: StubEngine) -> None:
    engine.card = replace(engine.card, reads=False)
    name = "matting_text"
    answer = serve().post(f"/v1/tasks/{name}", files=files_of(name), data=fields_of(name))
    assert answer.status_code == 400 and "cannot tell subjects apart by words" in answer.json()["error"]["message"]


# ---- the life of a job ---------------------------------------------------------------------------------------------


def test_a_job_from_queue_to_result(serve: Serve, engine: StubEngine, tmp_path: Path) -> None:
    client = serve()
    engine.gate.clear()
    first = client.post("/v1/tasks/decompose_auto", files=[PICTURE], data={"steps": 3, "layers": 3, "seed": 7})
    assert first.status_code == 202 and first.headers["location"] == first.json()["links"]["self"]
    second = client.post("/v1/tasks/matting_auto", files=[PICTURE]).json()
    until(lambda: client.get(first.headers["location"]).json()["state"] == "running")
    waiting = client.get(second["links"]["self"]).json()
    assert (waiting["state"], waiting["position"], waiting["error"]) == ("queued", 0, None)
    early = client.get(second["links"]["result"])
    assert early.status_code == 409 and early.json()["error"]["code"] == "conflict"
    engine.gate.set()
    text = client.get(first.json()["links"]["events"]).text
    done = until(lambda: (j := client.get(first.headers["location"]).json())["state"] == "done" and j)
    assert done["layers"] == ["background", "foreground-1", "foreground-2"]
    assert done["progress"] == {"step": 3, "total": 3}
    assert events_of(text)[-1][0] == "done" and events_of(text)[-1][1]["progress"]["step"] == 3

    links = done["links"]
    archive = zipfile.ZipFile(io.BytesIO(client.get(links["result"]).content))
    index = json.loads(archive.read("layers.json"))
    assert [row["name"] for row in index["layers"]] == done["layers"] and index["settings"]["seed"] == 7
    assert {"layers.json", *(row["file"] for row in index["layers"])} == set(archive.namelist())
    one = client.get(links["result"], params={"layer": "foreground-2"})
    assert one.content == client.get(links["result"], params={"layer": "2", "format": "png"}).content
    assert opened(one.content).size == SIZE[::-1] and one.headers["x-width"] == str(SIZE[1])
    for form in ("psd", "ora", "exr", "tif"):
        file = tmp_path / f"x.{form}"
        file.write_bytes(client.get(links["result"], params={"format": form}).content)
        assert [layer.name for layer in read_stack(file)] == done["layers"]
    for query, status, words in (
        ({"format": "psd", "layer": "0"}, 400, "leave layer=0 out"),
        ({"format": "png"}, 400, "format=zip"),
        ({"format": "gif"}, 400, "use png, zip"),
        ({"layer": "9"}, 404, "use 0 to 2"),
        ({"fromat": "png"}, 400, "did you mean 'format'"),
        ({"format": "zip", "layer": "0"}, 400, "leave layer=0 out"),
    ):
        refused = client.get(links["result"], params=query)
        assert refused.status_code == status and words in refused.json()["error"]["message"]

    assert client.delete(links["self"]).status_code == 204
    assert client.get(links["self"]).status_code == 404


def test_events_tell_every_state(serve: Serve, engine: StubEngine) -> None:
    client = serve()
    engine.gate.clear()
    client.post("/v1/tasks/matting_auto", files=[PICTURE])
    job = client.post("/v1/tasks/matting_auto", files=[PICTURE], data={"steps": 4}).json()
    import threading

    threading.Timer(0.3, engine.gate.set).start()
    rows = events_of(client.get(job["links"]["events"]).text)
    names = [name for name, _ in rows]
    assert names[0] == "queued" and names[-1] == "done" and set(names[1:-1]) <= {"queued", "step"}
    engine.error = ValueError("secret prompt")
    job = client.post("/v1/tasks/matting_auto", files=[PICTURE]).json()
    last = events_of(client.get(job["links"]["events"]).text)[-1]
    assert last[0] == "failed" and last[1]["error"]["code"] == "fault" and "secret" not in last[1]["error"]["message"]


def test_cancelling(serve: Serve, engine: StubEngine) -> None:
    client = serve()
    engine.gate.clear()
    running = client.post("/v1/tasks/removal_auto", files=[PICTURE], data={"steps": 50}).json()["links"]["self"]
    waiting = client.post("/v1/tasks/removal_auto", files=[PICTURE]).json()["links"]["self"]
    until(lambda: client.get(running).json()["state"] == "running")
    assert client.delete(waiting).status_code == 204 and client.get(waiting).status_code == 404
    assert client.delete(running).status_code == 204
    server = client.app.state.server  # type: ignore[attr-defined]
    until(lambda: not server.queue.running)  # the gate is still closed: it ended between steps
    assert engine.seen == [["removal_auto"]]
    assert client.delete(running).status_code == 404


def test_wait(serve: Serve, engine: StubEngine) -> None:
    client = serve(max_wait=0.2)
    engine.gate.clear()
    answer = client.post("/v1/tasks/matting_auto", files=[PICTURE], headers={"Prefer": "respond-async, wait=100"})
    assert answer.status_code == 202 and answer.json()["state"] in ("queued", "running")
    engine.gate.set()
    assert client.post("/v1/tasks/matting_auto", files=[PICTURE], headers={"Prefer": "wait=x"}).status_code == 400


def test_a_failure_while_waiting_is_its_answer(serve: Serve, engine: StubEngine) -> None:
    from torch import OutOfMemoryError

    from omnialpha.errors import InputError

    client = serve()
    for error, status, words in (
        (InputError("no."), 400, "no."),
        (MemoryError(), 413, "stub has too little memory for matting_auto: make the picture smaller."),
        (OutOfMemoryError(), 413, "too little memory"),
    ):
        engine.error = error
        answer = client.post("/v1/tasks/matting_auto", files=[PICTURE], headers={"Prefer": "wait=9"})
        assert answer.status_code == status and words in answer.json()["error"]["message"]
    engine.error = None
    assert client.post("/v1/tasks/matting_auto", files=[PICTURE], headers={"Prefer": "wait=9"}).status_code == 200


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "files", "data", "words"),
    [
        ("matting_aut", [PICTURE], {}, "did you mean 'matting_auto'"),
        ("matting_auto", [PICTURE], {"stepz": 3}, "no option 'stepz': did you mean 'steps'"),
        ("matting_auto", [PICTURE], {"prompt": "a mug"}, "no option 'prompt'"),
        ("matting_auto", [PICTURE], {"size": "9x9"}, "no option 'size'"),
        ("matting_auto", [PICTURE], {"layers": 2}, "no option 'layers'"),
        ("matting_auto", [PICTURE], {"steps": "many"}, "steps='many' is not a whole number"),
        ("matting_auto", [PICTURE], {"steps": "0"}, "use 1 to 1000"),
        ("matting_auto", [PICTURE], {"guidance": "nan"}, "out of range"),
        ("matting_auto", [PICTURE], {"seed": "-1"}, "out of range"),
        ("matting_auto", [PICTURE], {"raw": "perhaps"}, "neither true nor false"),
        ("matting_auto", [PICTURE], {"frame": "3"}, "no frame 3"),
        ("matting_auto", [], {}, "needs a composite"),
        ("matting_auto", [], {"composite": "text"}, "send it as a file"),
        ("matting_auto", [PICTURE, ("steps", ("a", b"3"))], {}, "send it as a text"),
        ("matting_auto", [PICTURE, PICTURE], {}, "2 pictures as composite"),
        ("matting_auto", [("composite", ("a.png", b"not a picture"))], {}, "not a picture in a known format"),
        ("matting_auto", [("composite", ("a.png", png()[:-30]))], {}, "the composite is damaged or cut off"),
        ("matting_auto", [("composite", ("a.png", b""))], {}, "the composite is empty"),
        ("matting_alpha", [PICTURE, ("alpha", ("a.png", png((9, 9))))], {}, "make them the same size"),
        ("matting_alpha", [PICTURE, ("alpha", ("a.png", png(mode="L", colour=0)))], {}, "is empty"),
        ("text_to_image", [], {"prompt": "a", "size": "axb"}, "is not a size"),
        ("text_to_image", [], {"prompt": "a", "frame": "0"}, "no option 'frame'"),
        ("text_to_image", [], {}, "needs a text"),
        ("decompose_auto", [PICTURE], {"layers": 99}, "use 2 to 8"),
    ],
)
def test_what_is_refused(path: str, files: Any, data: Any, words: str, serve: Serve) -> None:
    answer = serve().post(f"/v1/tasks/{path}", files=files or None, data=data)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text


def test_text_twice_and_options_in_the_query(serve: Serve) -> None:
    client = serve()
    assert "twice" in client.post("/v1/tasks/text_to_image", data={"prompt": ["a", "b"]}).text
    assert "query holds 'steps'" in client.post("/v1/tasks/matting_auto?steps=3", files=[PICTURE]).text
    nowhere = client.get("/v1/nothing")
    assert nowhere.status_code == 404 and nowhere.json()["error"]["code"] == "not_found"
    assert client.put("/v1/tasks/matting_auto").status_code == 405


def test_several_pictures_of_a_role(serve: Serve) -> None:
    files = [("foreground", ("x.png", png())), ("foreground", ("y.png", png()))]
    answer = serve().post(
        "/v1/tasks/foreground_to_full",
        files=files,
        data={"prompt": "a beach", "steps": 1},
        headers={"Prefer": "wait=9"},
    )
    assert answer.status_code == 200, answer.text


def test_a_task_that_the_model_cannot_do(serve: Serve, engine: StubEngine) -> None:
    import dataclasses

    engine.card = dataclasses.replace(engine.card, tasks=["matting_auto"])
    client = serve()
    assert "cannot do removal_auto" in client.post("/v1/tasks/removal_auto", files=[PICTURE]).text
    able = [row["name"] for row in client.get("/v1/tasks").json()["tasks"] if row["available"]]
    assert able == client.get("/v1/models").json()["data"][0]["tasks"] == ["matting_auto"]


def test_metadata_and_depth_of_the_picture_are_kept(serve: Serve) -> None:
    buffer = io.BytesIO()
    opened(png()).save(buffer, "PNG", dpi=(300, 300))
    answer = serve().post(
        "/v1/tasks/matting_auto", files=[("composite", ("x", buffer.getvalue()))], headers={"Prefer": "wait=9"}
    )
    assert round(opened(answer.content).info["dpi"][0]) == 300


def test_roles_are_all_known() -> None:
    assert set(Role) >= {role for row in TASKS.values() for role in row.inputs}
