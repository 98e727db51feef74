// What the AI SDK does is the same over every provider.
import { generateText, jsonSchema, streamText, tool as define } from "ai";
import { carryOut } from "./order.mjs";

export const withModel = (modelOf) =>
  carryOut((server, { messages, maxTokens, tool }) => {
    const asked = { model: modelOf(server), messages, maxOutputTokens: maxTokens, temperature: 0, maxRetries: 0 };
    const weather = define({ description: tool.description, inputSchema: jsonSchema(tool.schema) });
    return {
      async ask() {
        return (await generateText(asked)).text;
      },
      async stream() {
        const said = [];
        for await (const part of streamText({ ...asked, onError() {} }).fullStream) {
          if (part.type === "error") throw part.error;
          if (part.type === "text-delta") said.push(part.text);
        }
        return said;
      },
      async call() {
        const made = await generateText({ ...asked, tools: { [tool.name]: weather }, toolChoice: "required" });
        return { name: made.toolCalls[0].toolName, input: made.toolCalls[0].input };
      },
    };
  });
