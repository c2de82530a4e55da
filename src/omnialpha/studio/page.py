"""The page of the studio: its parts and what they do."""

from __future__ import annotations

import html
import logging
import secrets
import threading
import traceback
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from omnialpha.errors import InputError
from omnialpha.studio.controls import FIRST, Controls, words_of
from omnialpha.studio.drawn import LEVELS, tools_of
from omnialpha.studio.exports import FORMS, export
from omnialpha.studio.runs import RunCancelled, Studio, StudioProgress, StudioRequest, StudioRun
from omnialpha.tasks import MAPS, TASKS, Task

log = logging.getLogger("omnialpha.studio")
SHOWN_RUNS = 60  # of the history
MAX_DICED = 2**31 - 1


def template(name: str) -> str:
    """A file of the package's templates."""
    return (files("omnialpha.templates") / name).read_text(encoding="utf-8")


def url(path: Path) -> str:
    """Where a page gets a file of the studio's folder."""
    return f"gradio_api/file={path}"


def shown_error(error: InputError) -> gr.Error:
    """A mistake of a user as a sentence on the page."""
    sentence = str(error)
    return gr.Error(html.escape(sentence[:1].upper() + sentence[1:]), title="Not yet", print_exception=False)


class StudioPage:
    """The parts of the page. Its methods answer what is done with them."""

    def __init__(self, studio: Studio, about: str) -> None:
        """
        Args:
            studio: What it shows.
            about: The model and where it runs, for the head of the page.
        """
        self.studio = studio
        self._stops: dict[str | None, threading.Event] = {}
        with gr.Blocks(title="OmniAlpha Studio", analytics_enabled=False, fill_width=True) as self.blocks:
            gr.HTML(f"<div id='studio-head'><b>OmniAlpha Studio</b><span>{html.escape(about)}</span></div>")
            with gr.Row(equal_height=False):
                with gr.Column(scale=0, min_width=350):
                    with gr.Column(elem_id="studio-form"):
                        self.controls = Controls.build(studio.card)
                    with gr.Row(elem_id="studio-run-row"):
                        self.dice = gr.Button("New seed", min_width=90, scale=0, elem_id="studio-dice")
                        self.start = gr.Button("Run", variant="primary", elem_id="studio-start")
                        self.stop = gr.Button("Cancel", variant="stop", visible=False, elem_id="studio-stop")
                with gr.Column(scale=1, min_width=480):
                    self.stage = gr.HTML(
                        {"forms": list(FORMS.items())},
                        html_template=template("studio.html"),
                        js_on_load=template("studio.js"),
                        server_functions=[
                            self._served("outline", self._outline),
                            self._served("download", self._download),
                        ],
                        apply_default_css=False,
                        elem_id="studio-stage",
                    )
                    self.history = gr.HTML(
                        [],
                        html_template=template("studio_history.html"),
                        js_on_load=template("studio_history.js"),
                        apply_default_css=False,
                        elem_id="studio-history",
                    )
            self._wire()

    def _wire(self) -> None:
        controls = self.controls
        told: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
        given, all_parts = {*controls.inputs, self.stage}, [*controls.all, self.stage]
        gr.on(
            [part.input for part in (controls.category, *controls.tasks.values())],
            self.pick_task,
            given,
            all_parts,
            **told,
        )
        for file in controls.files.values():
            changed = [file.upload, file.clear, file.delete]  # what comes last is what is shown
            gr.on(changed, self.look, given, self.stage, **told, trigger_mode="always_last")
        ends = [self.stage, self.start, self.stop, self.history]
        self.start.click(self.run, given, ends, **told)
        self.stop.click(self.cancel, **told, queue=False)
        self.dice.click(lambda: secrets.randbelow(MAX_DICED), None, controls.options["seed"], **told)
        self.history.pick(self.pick_run, None, all_parts, **told)
        self.blocks.load(self.opened, None, [*all_parts, self.history], **told)

    # ---- what is asked for -------------------------------------------------------------------------------------

    def request(self, values: Mapping[Any, Any]) -> StudioRequest:
        """What the controls ask for."""
        row, found = self.controls.chosen(values), dict[str, list[str]]()
        for role in row.inputs:
            given = values.get(self.controls.files[role])
            paths = given if isinstance(given, list) else [given] if given else []
            if paths:
                found[str(role)] = [self.studio.pictures.keep(path) for path in paths]
        drawn = (values.get(self.stage) or {}).get("drawn") or []
        return StudioRequest(row.name, found, self.controls.texts(row, values), drawn if row.map else [])

    def scene(self, request: StudioRequest, **more: Any) -> dict[str, Any]:
        """What the stage shows before a run. InputError where a picture cannot be read."""
        row, pictures = TASKS[request.task], self.studio.pictures
        frame = request.texts.get("frame", "")
        shown = [
            pictures.shown(id, int(frame) if frame.isdecimal() and role is row.inputs[0] else None)
            for role in row.inputs
            if role not in MAPS
            for id in request.files.get(role, [])
        ]
        role = row.map
        guide = self.studio.show_map(StudioRequest(row.name, request.files)) if role in request.files else None
        return {
            "before": [url(path) for path, _ in shown],
            "size": list(shown[0][1]) if shown else None,
            "request": {"task": row.name, "files": request.files},
            "guide": url(guide) if guide else None,
            "tools": tools_of(row) if shown else [],
            "levels": LEVELS[role] if role else [],
            "first": f"picture-{row.inputs[0]}" if row.inputs else None,
            "hint": "" if shown else _hint(row),
            "forms": list(FORMS.items()),
            "layers": [],
            "run": None,
            "progress": None,
            "stamp": secrets.token_hex(4),
        } | more

    # ---- what is done ------------------------------------------------------------------------------------------

    def opened(self) -> dict[Any, Any]:
        scene = self.scene(StudioRequest(FIRST.name))
        return {**self.controls.show(FIRST), self.stage: scene, self.history: self._cards()}

    def pick_task(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """Show the controls of a task; pictures and marks that it takes as well are kept."""
        return {**self.controls.show(self.controls.chosen(values)), self.stage: self.look(values)}

    def look(self, values: dict[Any, Any]) -> dict[str, Any]:
        """Show the pictures that were given."""
        try:
            return self.scene(self.request(values))
        except InputError as error:
            raise shown_error(error) from None

    def run(self, values: dict[Any, Any], session: gr.Request) -> Iterator[dict[Any, Any]]:
        """Run, with progress and previews on the stage."""
        stop = self._stops[session.session_hash] = threading.Event()
        idle = {self.start: gr.update(visible=True), self.stop: gr.update(visible=False)}
        scene: dict[str, Any] = values.get(self.stage) or {}
        try:
            request = self.request(values)
            scene = self.scene(request)
            for event in self.studio.run(request, stop):
                if isinstance(event, StudioRun):
                    yield {**idle, self.stage: scene | self._made(event), self.history: self._cards()}
                    return
                scene |= _progress(event)
                busy = {self.start: gr.update(visible=False), self.stop: gr.update(visible=True)}
                yield {**busy, self.stage: scene}
        except RunCancelled:
            yield {**idle, self.stage: scene | {"progress": None, "layers": [], "hint": "Cancelled."}}
        except InputError as error:
            yield {**idle, self.stage: scene | {"progress": None, "layers": []}}
            raise shown_error(error) from None
        except Exception as error:  # noqa: BLE001 - a fault of ours ends this run, not the page, and is logged
            log.error("fault in a run: %s\n%s", error, "".join(traceback.format_tb(error.__traceback__)))
            yield {**idle, self.stage: scene | {"progress": None, "layers": []}}
            raise gr.Error(
                "The run failed by a fault of the studio, which has logged it.", print_exception=False
            ) from None
        finally:
            self._stops.pop(session.session_hash, None)

    def cancel(self, session: gr.Request) -> None:
        """Stop the run of a page, where there is one."""
        if stop := self._stops.get(session.session_hash):
            stop.set()

    def pick_run(self, event: gr.EventData) -> dict[Any, Any]:
        """Bring an earlier run back: task, pictures, options, marks and result."""
        try:
            return self.restore(str(event.run))
        except InputError as error:
            raise shown_error(error) from None

    def restore(self, id: str) -> dict[Any, Any]:
        """The updates that bring a run back."""
        run, controls = self.studio.find(id), self.controls
        row, given = TASKS[run.request.task], run.request.files
        paths = {role: [str(self.studio.pictures.path(one)) for one in given.get(role, [])] for role in row.inputs}
        shown: dict[Any, Any] = {
            controls.files[role]: found if controls.files[role].file_count == "multiple" else found[0]
            for role, found in paths.items()
            if found
        }
        shown |= {controls.files[role]: None for role, found in paths.items() if not found}
        shown |= controls.values(row, run.request.texts)
        scene = self.scene(run.request, load=run.request.drawn)
        return {**controls.show(row, shown), self.stage: scene | self._made(run)}

    # ---- what is shown -----------------------------------------------------------------------------------------

    def _made(self, run: StudioRun) -> dict[str, Any]:
        layers = [{"name": row["name"], "url": url(run.folder / row["file"])} for row in run.rows]
        notes = [f"Seed {run.settings['seed']}", f"{run.seconds:.1f} s", *run.notes]
        return {"layers": layers, "run": run.id, "notes": notes, "progress": None, "hint": ""}

    def _cards(self) -> list[dict[str, str]]:
        """The history, the latest run first."""
        cards = []
        for run in self.studio.history(SHOWN_RUNS):
            used = {name: value for name, value in run.settings.items() if name not in ("instruction", "version")}
            about = "\n".join(f"{name}: {value}" for name, value in used.items())
            name, detail = run.request.task.replace("_", " ").capitalize(), f"seed {used['seed']}, {used['size']}"
            picture = url(run.folder / run.rows[-1]["file"])
            cards.append({"id": run.id, "name": name, "detail": detail, "url": picture, "about": about})
        return cards

    def _outline(self, given: dict[str, Any]) -> dict[str, Any]:
        made = self.studio.show_map(StudioRequest(given["task"], given["files"], {}, given["drawn"]))
        return {"url": url(made) if made else None}

    def _download(self, given: dict[str, Any]) -> dict[str, Any]:
        run, folder = self.studio.find(str(given["run"])), self.studio.folder / "downloads"
        made = export(run, given["panel"], str(given["form"]), self.studio.pictures, folder)
        return {"url": url(made), "name": made.name}

    def _served(self, name: str, answer: Any) -> Any:
        """A function for the stage's script; what a user can mend comes back as a sentence."""

        def function(given: dict[str, Any]) -> dict[str, Any]:
            try:
                made: dict[str, Any] = answer(given)
            except InputError as error:
                return {"error": str(error)}
            return made

        function.__name__ = name
        return function


def _hint(row: Task) -> str:
    if not row.inputs:
        return words_of(row) + ": say what to make, then press Run."
    return f"Drop a picture here: the {row.inputs[0]}."


def _progress(event: StudioProgress) -> dict[str, Any]:
    layers = [{"name": name, "url": url(path)} for name, path in event.layers]
    shown = {"progress": {"words": event.words, "step": event.step, "total": event.total}, "hint": ""}
    return shown | ({"layers": layers} if layers else {})


def launch(page: StudioPage, host: str, port: int | None, inbrowser: bool = False) -> str:
    """Serve a page from a thread of its own, to nobody but those who reach the address. Returns the address."""
    system = ("system-ui", "sans-serif")
    theme = gr.themes.Base(
        primary_hue="emerald", neutral_hue="slate", spacing_size="sm", text_size="sm", font=system,
        font_mono=("ui-monospace", "monospace"),
    )  # fmt: skip
    start = partial(page.blocks.launch, server_name=host, server_port=port, share=False, inbrowser=inbrowser)
    _, address, _ = start(
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        allowed_paths=[str(page.studio.folder.resolve())],
        footer_links=[],
        theme=theme,
        css=template("studio.css"),
    )
    return str(address)
