"""``docs/bedrock.md``, written from botocore's service model.

``python -m diptych.gateway.bedrock.document > docs/bedrock.md``
"""

from __future__ import annotations

import sys
from typing import Any

from diptych.gateway.bedrock.support import OPERATIONS, request_members, treatment

_INTRODUCTION = """\
# Bedrock's API, as it is served

Written from botocore's service model by `python -m diptych.gateway.bedrock.document`; a test fails when it is stale.
Both services answer at one address. Operations that are not listed are answered 404. What a client sends is honoured or
refused by Bedrock's own error; where it is accepted without effect, the table says so.

## Clients

```python
import boto3

client = boto3.client("bedrock-runtime", endpoint_url="http://127.0.0.1:8080", region_name="us-east-1")
client.converse(modelId="smollm2-135m", messages=[{"role": "user", "content": [{"text": "Why is the sky blue?"}]}])
```

```sh
# every AWS SDK and the AWS CLI
export AWS_ENDPOINT_URL_BEDROCK_RUNTIME=http://127.0.0.1:8080 AWS_ENDPOINT_URL_BEDROCK=http://127.0.0.1:8080
aws bedrock-runtime converse --model-id smollm2-135m --messages '[{"role":"user","content":[{"text":"Hello"}]}]'
```

```python
import openai

client = openai.OpenAI(base_url="http://127.0.0.1:8080/openai/v1", api_key="any, unless keys are configured")
client.chat.completions.create(model="smollm2-135m", messages=[{"role": "user", "content": "Hello"}])
```

Without `[[gateway.keys]]` every key is accepted and only this machine is served. With them, Signature Version 4 (header
or presigned, services `bedrock` and `bedrock-mantle`), API keys and short-term `bedrock-api-key-` tokens are checked.

## Native bodies of InvokeModel

| ids | schema |
|---|---|
| `amazon.nova*` | Nova's `messages-v1` |
| `meta.llama*` | `prompt`, `max_gen_len` |
| `mistral.mistral-7b*`, `mistral.mixtral*` | `prompt`, `max_tokens`, `outputs` |
| `deepseek.r1*` | `prompt`, `max_tokens`, `choices` of text |
| `anthropic.claude*` | Anthropic's Messages under `anthropic_version` |
| any other | OpenAI's chat completions |

The id that the client names decides, so an alias brings its provider's schema with it. A region's prefix (`us.`,
`global.`) and ARNs of foundation models and inference profiles lead to the same model.
"""


def document() -> str:
    """The whole text."""
    sections = [_INTRODUCTION]
    for service, operations in OPERATIONS.items():
        model = _service_model(service)
        sections += [_section(service, model.operation_model(name)) for name in operations]
    return "\n".join(sections)


def _service_model(service: str) -> Any:
    from botocore.session import Session  # noqa: PLC0415  # a development dependency

    return Session().get_service_model(service)


def _section(service: str, operation: Any) -> str:
    http = operation.http
    lines = [f"## {service}: {operation.name}", "", f"`{http['method']} {http['requestUri']}`", ""]
    if operation.input_shape is not None and operation.input_shape.members:
        lines += ["| member | type | |", "|---|---|---|"]
        for path, shape in request_members(operation.input_shape):
            lines.append(f"| `{path}` | {shape.type_name} | {treatment(operation.name, path)} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(document())
