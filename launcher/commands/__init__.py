"""One thin file per verb: options, one call, print. Each exposes `command`; launcher/cli.py has the table.

Only click, launcher.options and launcher.output may be imported at the top of these files: `VERB --help`
loads the module, and must not pay for pydantic or yaml. Import what does the work inside the function.
"""
