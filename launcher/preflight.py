"""Everything that would keep a run from starting, found before any money is spent and told all at once.

Pure but for what is handed in: the store and the cloud are asked by functions that know them, each of which returns
problems too, so that a test hands in its own and one missing thing hides no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from launcher.errors import NotReady, Problem, VlaunchError
from launcher.planning.objections import launch_problems
from launcher.planning.plan import Plan, TrainRequest

# Asked of a store's URI: reachable, writable, and conditional writes honoured.
StoreCheck = Callable[[str], Sequence[Problem]]
# Asked of the clouds of a request: enabled, credentials, quota, plugin.
CloudCheck = Callable[[Sequence[str]], Sequence[Problem]]


def preflight(
    request: TrainRequest,
    plan: Plan,
    files: Sequence[Path],
    check_store: StoreCheck | None = None,
    check_clouds: CloudCheck | None = None,
) -> list[Problem]:
    """All problems, in the order in which they are best mended.

    Args:
        files: the corpus, held-out files included.
        check_store: None leaves the store to the first write.
        check_clouds: None where the run stays on this machine.
    """
    found = [*_missing_files(files), *_weights(request), *plan.problems, *launch_problems(request)]
    if check_store is not None and not launch_problems(request):
        found += _asked(lambda: check_store(request.store), "the store")
    clouds = sorted({infra.cloud for infra in request.infra} - {"local"})
    if clouds:
        found += _missing_extra()
    if clouds and check_clouds is not None:
        found += _asked(lambda: check_clouds(clouds), "the clouds")
    return list(dict.fromkeys(found))


def refuse(problems: Sequence[Problem]) -> None:
    """Raises NotReady that tells all of them, if there are any."""
    if not problems:
        return
    if len(problems) == 1:
        raise NotReady(problems[0].what, hint=problems[0].fix)
    told = "".join(f"\n  {number}. {problem.what}" for number, problem in enumerate(problems, 1))
    fixes = "".join(f"\n  {number}. {problem.fix}" for number, problem in enumerate(problems, 1))
    raise NotReady(
        f"{len(problems)} things are missing before this run can start:{told}", hint=fixes.lstrip()
    )


def _missing_files(files: Sequence[Path]) -> list[Problem]:
    return [
        Problem(f"there is no file {path}", "look for it with `ls`, or name another with --data")
        for path in files
        if not path.is_file()
    ]


def _weights(request: TrainRequest) -> list[Problem]:
    """A base named by a path has to be a whole model; a Hugging Face id is fetched by the machine."""
    base = request.config.model.base
    if base is None or not (base.startswith((".", "/", "~")) or Path(base).exists()):
        return []
    folder = Path(base).expanduser()
    if not folder.is_dir():
        return [Problem(f"there is no folder {base}", "--model takes a folder or a Hugging Face id")]
    missing = [what for what in ("config.json", "*.safetensors") if not any(folder.glob(what))]
    fix = "vlaunch takes a model in Hugging Face's layout with safetensors weights"
    return [Problem(f"{base} has no {' and no '.join(missing)}", fix)] if missing else []


def _missing_extra() -> list[Problem]:
    if find_spec("sky") is not None:
        return []
    return [Problem("clouds need SkyPilot, which is not installed", "pip install 'vlaunch[sky]'")]


def _asked(question: Callable[[], Sequence[Problem]], what: str) -> list[Problem]:
    """A question that fails is a problem as well, and the others are still asked."""
    try:
        return list(question())
    except VlaunchError as error:
        return [Problem(error.message, error.hint or f"look at {what}")]
