"""Converse's ``toolConfig`` as a toolbox. Pure."""

from __future__ import annotations

import re

from diptych.errors import InvalidRequest
from diptych.gateway.bedrock.constraints import violated
from diptych.gateway.bedrock.shapes import ToolConfig, ToolEntry
from diptych.gateway.tools import Tool, Toolbox

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def toolbox_of(config: ToolConfig | None) -> Toolbox:
    """The tools and the choice. Raises InvalidRequest, in Bedrock's words."""
    if config is None:
        return Toolbox()
    if not config.tools:
        raise violated("[]", "toolConfig.tools", "Member must have length greater than or equal to 1")
    found = (_tool(entry, index) for index, entry in enumerate(config.tools))
    tools = tuple(tool for tool in found if tool is not None)
    names = [tool.name for tool in tools]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InvalidRequest(f"The toolConfig has several tools of the name {min(twice)}. Give each its own name.")
    choice = config.tool_choice
    if choice is None:
        return Toolbox(tools)
    if [choice.auto, choice.any, choice.tool].count(None) != 2:
        raise InvalidRequest("The toolConfig.toolChoice must set exactly one of auto, any and tool.")
    if choice.auto is not None:
        return Toolbox(tools)
    if choice.tool is None:
        return Toolbox(tools, "any")
    if choice.tool.name not in names:
        raise InvalidRequest(
            f"The tool {choice.tool.name} in toolConfig.toolChoice is not among toolConfig.tools. Name one that is."
        )
    return Toolbox(tools, "any", choice.tool.name)


def _tool(entry: ToolEntry, index: int) -> Tool | None:
    path = f"toolConfig.tools.{index + 1}.member"
    if entry.system_tool is not None:
        raise InvalidRequest(f"This model doesn't support the system tool {entry.system_tool.name}. Remove it.")
    if entry.tool_spec is None:
        if entry.cache_point is None:
            raise InvalidRequest(f"The Tool object at {path} is empty. Set toolSpec and try again.")
        return None
    spec = entry.tool_spec
    if not _NAME.fullmatch(spec.name):
        constraint = "Member must satisfy regular expression pattern: [a-zA-Z0-9_-]+"
        raise violated(spec.name, f"{path}.toolSpec.name", constraint)
    return Tool(spec.name, spec.description, spec.input_schema.json)
