"""`omnialpha tasks`: the table of tasks as text or JSON."""

from __future__ import annotations

import json
from typing import Any

from omnialpha.cli.options import Options
from omnialpha.tasks import DERIVED, MAX_LAYERS, MEANING, TASKS, Role, Task


def tasks(options: Options) -> None:
    """List the tasks: what each takes and makes."""
    if options.json:
        print(json.dumps({"tasks": [*map(task_row, TASKS.values())], "roles": [*map(role_row, Role)]}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("category", "task", "inputs", "outputs, back to front", "text describes", "makes")
    before = ""
    for task in TASKS.values():
        if before not in ("", task.category):
            table.add_section()
        label, before = "" if before == task.category else task.category, task.category
        roles = _role_list(task, task.inputs), _role_list(task, task.targets)
        table.add_row(label, task.name, *roles, str(task.text or ""), task.summary)
    meanings = Table("role", "is", "derived from")
    for role in Role:
        meanings.add_row(role, MEANING[role], " over ".join(DERIVED.get(role, ())))

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
    console.print(meanings)
    console.print("omnialpha run TASK --ROLE FILE ... [--prompt TEXT] -o OUT", markup=False, highlight=False)


def task_row(task: Task) -> dict[str, Any]:
    """A task in plain types, with the command that runs it."""
    return {
        "name": task.name,
        "category": task.category,
        "inputs": [str(role) for role in task.inputs],
        "outputs": [str(role) for role in task.targets],
        "text": task.text and str(task.text),
        "many": task.many and str(task.many),
        "summary": task.summary,
        "command": " ".join(
            ["omnialpha run", task.name, *(f"--{role} FILE" for role in task.inputs)]
            + ["--prompt TEXT"] * (task.text is not None)
            + ["-o FOLDER" if len(task.targets) > 1 else "-o FILE"]
        ),
    }


def role_row(role: Role) -> dict[str, Any]:
    return {"name": str(role), "meaning": MEANING[role], "derived_from": [str(r) for r in DERIVED.get(role, ())]}


def _role_list(task: Task, roles: tuple[Role, ...]) -> str:
    """`background + foreground (1 to 7)`; the count where the role may repeat, all together at most MAX_LAYERS."""
    several = f" (1 to {MAX_LAYERS - len(roles) + 1})"
    return " + ".join(f"{role}{several if role is task.many else ''}" for role in roles)
