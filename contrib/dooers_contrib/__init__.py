"""Optional integrations on dooers' public names, an extra for each that needs a library: `jwt` (with its keys in `jwks`), `redis`,
`opentelemetry`; the model vendors `openai`, `anthropic`, `google` (what they share is `answers`);
the agent frameworks `langchain`, `langgraph`, `openai_agents`, `pydantic_ai` (`progress`);
the channels `whatsapp`, `slack`, `telegram` (`channel`, `attachments`);
the doors for other front ends `ag_ui`, `ai_sdk`, `openai_api` (`door`, `telling`; what they share with the channels is `body`);
`jobs` for what a task queue brings.
"""
