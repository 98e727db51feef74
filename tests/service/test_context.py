"""How long a prompt may be: what the model reads, or what a decode worker has room for, whichever is less."""

from typing import cast

import pytest

from diptych.config import DecodeSettings, FleetSettings
from diptych.errors import ContextExceeded
from diptych.models.chat import ChatFormat
from diptych.routing.router import Router
from diptych.service import ServedModel, Service
from diptych.types import Request, Sampling


def service(model_context: int, ctx_per_request: int) -> Service:
    model = ServedModel(id="m", aliases=(), context_tokens=model_context, created=0, chat=cast("ChatFormat", None))
    settings = FleetSettings(decode=(DecodeSettings(ctx_per_request=ctx_per_request),))
    return Service(settings, Router("transparent"), (), (model,))


@pytest.mark.parametrize(("model", "slot"), [(128, 2560), (4096, 128)])
async def test_the_smaller_one_decides(model: int, slot: int) -> None:
    asked = Request(id="r", model="m", prompt=tuple(range(128)), sampling=Sampling(max_tokens=1))
    subject = service(model, slot)
    assert subject.context_tokens == 128
    with pytest.raises(ContextExceeded, match="128 tokens"):
        await anext(subject.generate(asked))
