"""Exit codes and classes of errors, and every message with its next step, from errors.py and the source."""

from __future__ import annotations

from collections import defaultdict

from markdown import page, table, words
from messages import Message, kinds, messages

from megatron_cpt.errors import EXIT_FINISHED


def exit_code_page() -> str:
    """Return the page of exit codes."""
    rows = [(str(EXIT_FINISHED), "", "Finished.", "`megatron_cpt/errors.py`")]
    for kind in sorted(kinds().values(), key=lambda kind: (kind.exit_code, kind.name != "CptError", kind.module, kind.name)):
        said = kind.means.split("\n\n")[0] or "Anything else that the user can mend; also what the operating system refuses."
        rows.append((str(kind.exit_code), f"`{kind.name}`", words(said), f"`{kind.module}`"))
    rows.append(("130", "", "Interrupted from the keyboard; run again to go on from the last finished stage.", "`megatron_cpt/cli.py`"))
    return page(
        "Exit codes",
        "Scripts and schedulers can rely on these.",
        "A message says what is wrong, where, with which value, by which rule, and what to do next.",
        "",
        *table(("code", "class", "means", "defined in"), rows),
        "What is commonly behind them: [troubleshooting](/troubleshooting.md). All texts: [messages](messages.md).",
    )


def message_page() -> str:
    """Return the page of all messages, by exit code."""
    by_code: dict[str, list[Message]] = defaultdict(list)
    for message in messages():
        by_code[str(kinds()[message.kind].exit_code) if message.kind else ""].append(message)
    lines = ["What a command may print before it ends, as it stands in the source; \u2026 is filled in.", ""]
    for exit_code in sorted(by_code, key=lambda text: int(text or "1000")):
        lines += [f"## Exit code {exit_code}" if exit_code else "## Problems that are listed together", ""]
        if not exit_code:
            lines += [
                "All problems of a configuration or plan are printed at once, and end with 2; those of a benchmark's file with 3.",
                "",
            ]
        head = ("message", "next step", "module") if exit_code else ("problem", "module")
        shown = [(words(message.text), words(message.next_step), f"`{message.module}`") for message in by_code[exit_code]]
        lines += table(head, shown if exit_code else [(text, module) for text, _, module in shown])
    return page("Messages", *lines)
