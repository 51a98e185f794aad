"""`vlaunch doctor`: is everything here that a run needs, and where does every setting come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from launcher import options
from launcher.output import emit, say, table

if TYPE_CHECKING:
    from launcher.doctor import Check, SettingRow
    from launcher.values import Infra


@options.verb(
    "doctor",
    examples=(
        "vlaunch doctor                         # this machine, the default store, the settings",
        "vlaunch doctor --infra aws --infra gcp --install-plugin",
        "vlaunch doctor --store /mnt/shared/vlaunch --json | jq .problems",
    ),
    lenient=True,
)
@options.store
@options.infra
@options.option(
    "--install-plugin",
    is_flag=True,
    show_default=False,
    help="Give SkyPilot's server on this machine the recovery that leaves a region, in ~/.sky/plugins.yaml.",
)
@click.pass_context
def command(ctx: click.Context, store: str, infra: tuple[Infra, ...], install_plugin: bool) -> None:
    """Check this machine, the store, the clouds of --infra and the settings; say how to repair what is wrong.

    Writes a small probe into the store and deletes it. Exit code 3 if something required is missing.
    """
    from dataclasses import asdict

    from launcher import doctor

    if install_plugin:
        from launcher.spot import plugin

        new = plugin.install_plugin()
        say(f"{plugin.plugins_file()} {'now names' if new else 'named'} {plugin.PLUGIN}")
    checks = [
        *doctor.machine(store),
        *doctor.packages(infra),
        *doctor.store(store),
        *doctor.clouds(infra),
    ]
    rows, wrong = doctor.setting_rows(ctx)
    problems = [check for check in [*checks, *wrong] if check.problem]
    ready = not any(problem.required for problem in problems)
    data = {
        "ready": ready,
        "problems": [{"what": p.problem, "fix": p.fix, "required": p.required} for p in problems],
        "checks": [asdict(check) for check in checks],
        "settings": [asdict(row) for row in rows],
    }
    emit(ctx, data, lambda: _text(checks, rows, problems))
    if not ready:
        ctx.exit(3)


def _text(checks: list[Check], rows: list[SettingRow], problems: list[Check]) -> str:
    lines: list[str] = []
    for section in dict.fromkeys(check.section for check in checks):
        lines.append(f"{section}:")
        lines += [f"  {c.name:<16} {c.value}" for c in checks if c.section == section]
    everywhere = max((row.verbs for row in rows), key=len)  # --json and its like
    shown = ["all" if row.verbs == everywhere else ", ".join(row.verbs) for row in rows]
    cells = [(row.setting, row.value, row.source, verbs) for row, verbs in zip(rows, shown, strict=True)]
    lines += ["", table(["SETTING", "VALUE", "SOURCE", "VERBS"], cells)]
    if not problems:
        lines.append("Nothing is missing.")
    for problem in problems:
        lines.append(f"{'Problem' if problem.required else 'Note'}: {problem.problem}")
        lines.append(f"  Fix: {problem.fix}")
    return "\n".join(lines)
