"""`vlaunch completion SHELL`: the script that makes a shell complete verbs, options and values."""

from __future__ import annotations

import click

from launcher import options

INSTALL = """\
To install it:
  bash   echo 'eval "$(vlaunch completion bash)"' >> ~/.bashrc
  zsh    echo 'eval "$(vlaunch completion zsh)"' >> ~/.zshrc
  fish   vlaunch completion fish > ~/.config/fish/completions/vlaunch.fish"""


@options.verb(
    "completion",
    examples=(
        """eval "$(vlaunch completion bash)"                                       # this shell""",
        "vlaunch completion fish > ~/.config/fish/completions/vlaunch.fish      # every fish",
    ),
    epilog="\b\n" + INSTALL,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    from launcher.cli import COMPLETE_VARIABLE, root
    from launcher.output import emit

    made = get_completion_class(shell)
    assert made is not None  # the Choice above has click's own three
    script = made(root, {}, "vlaunch", COMPLETE_VARIABLE).source()
    emit(ctx, {"shell": shell, "script": script}, script)
