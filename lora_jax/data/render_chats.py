"""Renders conversations with a chat template: the program of a process of its own, see `chat_templates`.

A template comes with a model from outside and is Jinja, which transformers runs in a sandbox. The sandbox
keeps it from files and from Python, but not from loops and texts without end; those end with this process.
Lines of JSON in (the template first, then jobs), lines of JSON out. It imports nothing of lora_jax.
"""

import contextlib
import json
import sys
from typing import Any

MEMORY = 2**32  # bytes of address space
MOST = 2**28  # characters of the answer to a line
# Llama's templates write the day into the text, unless they are given one: a run is the same on every day.
DAY = "26 Jul 2024"


def main() -> None:
    """Answers every line with {"texts": [...]} or {"error": ..., "number": of the conversation}."""
    from transformers.utils.chat_template_utils import render_jinja_template

    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no limits
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    first = json.loads(sys.stdin.readline())

    def render(messages: list[dict[str, str]], prompt: bool) -> str:
        rendered = render_jinja_template(
            conversations=[messages], chat_template=first["template"], add_generation_prompt=prompt,
            date_string=DAY, **first["tokens"],
        )  # fmt: skip
        text: str = rendered[0][0]
        return text

    for line in sys.stdin:
        texts: list[str] = []
        answer: dict[str, Any] = {"texts": texts}
        size = 0
        try:
            for messages, prompt in json.loads(line):
                text = render(messages, prompt)
                size += len(text)
                if size > MOST:
                    raise MemoryError
                texts.append(text)
        except MemoryError:
            answer = {"error": "it needs too much memory", "number": len(texts)}
        except Exception as error:  # whatever the template raises
            said = f"{type(error).__name__}: {error}"[:300]
            answer = {"error": said, "number": len(texts)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
