"""`vlaunch chat`: talk to a model in the terminal."""

from __future__ import annotations

from typing import Any

from launcher import options
from launcher.services.client_options import client_options


@options.verb(
    "chat",
    examples=("vlaunch chat                                  # with the newest service here",
              "vlaunch chat --url https://api.example/v1 --model big --system 'Be brief.'"),
)  # fmt: skip
@client_options
def command(**given: Any) -> None:
    """A conversation, answers as they come. /help lists the words that begin with a slash; Ctrl-C stops an answer.

    Lines are edited and remembered as in a shell. Input that is no terminal is read line by line.
    """
    import sys

    from launcher.output import say
    from launcher.services.client import open_api, sampling
    from serving.chat import Chat, Talk, pick_model

    api = open_api(given)
    talk = Talk(pick_model(api, given["model"]), given["system"])
    say(f"{talk.model}; /help, /exit")

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    if sys.stdin.isatty():
        _remember_lines()
        Chat(api, talk, input, write, **sampling(given)).run()
    else:
        lines = iter(sys.stdin)

        def read(prompt: str) -> str:
            line = next(lines, None)
            if line is None:
                raise EOFError
            return str(line).rstrip("\n")

        Chat(api, talk, read, write, **sampling(given)).run()


def _remember_lines() -> None:
    """Editing and history of input(), from one chat to the next, where Python has readline."""
    import atexit

    from launcher.settings import state_dir

    try:
        import readline
    except ImportError:
        return
    file = state_dir() / "chat-history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        readline.read_history_file(file)
    except OSError:
        return
    readline.set_history_length(1000)
    atexit.register(readline.write_history_file, file)
