"""What the gateway says when it is ready: three requests to paste."""

from __future__ import annotations

from diptych.service import ServedModel

_TEXT = """\
Diptych is ready at {url}, serving {names}

boto3
    AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any .venv/bin/python -c '
    import boto3
    client = boto3.client("bedrock-runtime", endpoint_url="{url}", region_name="us-east-1")
    messages = [{{"role": "user", "content": [{{"text": "Why is the sky blue?"}}]}}]
    answer = client.converse(modelId="{model}", messages=messages, inferenceConfig={{"maxTokens": 64}})
    print(answer["output"]["message"]["content"][0]["text"])'

openai
    .venv/bin/python -c '
    import openai
    client = openai.OpenAI(base_url="{url}/v1", api_key="any")
    messages = [{{"role": "user", "content": "Why is the sky blue?"}}]
    for event in client.chat.completions.create(model="{model}", messages=messages, max_tokens=64, stream=True):
        print(event.choices[0].delta.content or "", end="", flush=True)'

curl
    curl -s {url}/v1/chat/completions -H 'content-type: application/json' \\
      -d '{{"model": "{model}", "max_tokens": 64, "messages": [{{"role": "user", "content": "Why is the sky blue?"}}]}}'

What happened to a request: .venv/bin/diptych trace REQUEST_ID   (or `latest`). Ctrl-C stops everything.
"""


def banner(url: str, model: ServedModel) -> str:
    """The text, for the address at which clients reach us."""
    return _TEXT.format(url=url, model=model.id, names=", ".join((model.id, *model.aliases)))
