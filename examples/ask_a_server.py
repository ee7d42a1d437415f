"""OpenAI's own client against a server of one's own; needs the extra `serve`, and `pip install openai`.

python examples/ask_a_server.py [MODEL]
"""

from __future__ import annotations

import subprocess
import sys

from openai import OpenAI

SERVE = (sys.executable, "-m", "glm_export.cli", "serve")


def main(model: str = "demo") -> None:
    # Port 0 is any that is free; the server says which.
    with subprocess.Popen([*SERVE, model, "--port", "0"], stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            url = next(word for line in server.stderr if "serving" in line for word in line.split() if "://" in word)
            client = OpenAI(base_url=url, api_key="none")
            name = client.models.list().data[0].id
            answer = client.completions.create(model=name, prompt="春眠不觉晓，处处闻啼鸟。\n", temperature=0)
            print(answer.choices[0].text)
            stream = client.chat.completions.create(
                model=name,
                messages=[{"role": "user", "content": "千山鸟飞绝，万径人踪灭。"}],
                temperature=0,
                stream=True,
            )
            for chunk in stream:
                print(chunk.choices[0].delta.content or "", end="", flush=True)
            print()
        finally:
            server.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])
