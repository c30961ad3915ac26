"""A tour of the playground: one worker that shows, word by word, everything a handler can do.

pip install 'dooers-workers-server[cli]'
dooers run examples.tour:worker         (then open http://127.0.0.1:8000 and say "help")
"""

import asyncio
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from typing import Any

from dooers import (
    Identity,
    SettingsField,
    SettingsFieldGroup,
    SettingsFieldType,
    SettingsSchema,
    SettingsSelectOption,
    WorkerAnalytics,
    WorkerConfig,
    WorkerEvent,
    WorkerIncoming,
    WorkerSend,
    WorkerServer,
    WorkerSettings,
)

HELP = """Say one of these:

| say | and see |
|---|---|
| `markdown` | an answer with headings, lists, a table and code, as it is written |
| `tools` | a tool that is called, and what it gives back |
| `image` | a picture |
| `document` | a file to download |
| `slow` | an answer that takes a minute; **stop** it |
| `long` | an answer of many paragraphs |
| `fail` | what people see when a handler raises |
| `settings` | the settings as the handler sees them; change one and say it again |
| `me` | who you are; change it under *Identity* |
"""

MARKDOWN = """# A heading

Some *emphasis*, some **strength**, some `code`, and [a link](https://example.com).

## What makes a good answer

1. It comes while you watch.
2. It can be stopped:
   - what was written is kept,
   - and the run says that it was canceled.
3. It is stored once.

> A quotation, of nobody in particular.

| turn | began | took |
|---|---:|---:|
| first | 09:12 | 1.4 s |
| second | 09:13 | 0.8 s |

```python
@worker.handler
async def agent(incoming, send):
    yield send.run_start()
    yield send.text(f"You said {incoming.message!r}")
    yield send.run_end()
```

---

That was all of it.
"""

Kind = SettingsFieldType

# In the classic style, which has every kind of field there is. A class is shorter: docs/decorator-api.md, "Settings".
SETTINGS = SettingsSchema(
    [
        SettingsField(
            "greeting",
            Kind.TEXT,
            "Greeting",
            required=True,
            value="Hello",
            max_length=40,
            help="How every help text begins.",
        ),
        SettingsField(
            "tone",
            Kind.SELECT,
            "Tone",
            value="plain",
            options=[SettingsSelectOption("plain", "Plain"), SettingsSelectOption("loud", "Loud")],
            help="A loud worker shouts its answers.",
        ),
        SettingsField("signed", Kind.CHECKBOX, "Sign answers", value=False),
        SettingsFieldGroup(
            "pace",
            "Pace",
            [
                SettingsField(
                    "pause",
                    Kind.NUMBER,
                    "Milliseconds between words",
                    value=40,
                    min=0,
                    max=1000,
                    step=10,
                    integer=True,
                ),
                SettingsField("warmth", Kind.NUMBER, "Warmth", value=0.7, min=0, max=2, step=0.1),
            ],
            collapsible="open",
        ),
        SettingsFieldGroup(
            "about",
            "About this worker",
            [
                SettingsField("contact", Kind.EMAIL, "Contact", placeholder="somebody@example.com"),
                SettingsField("since", Kind.DATE, "In service since", value="2024-05-01"),
                SettingsField("instructions", Kind.TEXTAREA, "Instructions", rows=4, placeholder="Be kind."),
                SettingsField("api_key", Kind.PASSWORD, "API key", help="Kept to itself: nobody gets it back."),
                SettingsField("version", Kind.TEXT, "Version", value="1.0", readonly=True),
            ],
            collapsible="closed",
        ),
    ]
)

worker = WorkerServer(
    WorkerConfig(database_type="sqlite", database_name="tour.db", assistant_name="Guide", settings_schema=SETTINGS)
)


@worker.handler
async def guide(
    incoming: WorkerIncoming,
    send: WorkerSend,
    settings: WorkerSettings,
    analytics: WorkerAnalytics,
    identity: Identity,
) -> AsyncIterator[WorkerEvent]:
    yield send.run_start()
    said = incoming.message.strip()
    word = said.lower()
    values = await settings.get_all()
    await analytics.track("tour.said", {"word": word if word in STOPS else "help"})

    def written(text: str) -> WorkerEvent:
        text = text.upper() if values["tone"] == "loud" else text
        return send.stream(slowly(f"{text}\n\n*the guide*" if values["signed"] else text, values["pause"] / 1000))

    if word == "settings":
        yield written("\n".join(f"- **{name}**: `{value!r}`" for name, value in values.items()))
    elif word == "me":
        yield written(f"You are **{identity.user_id}** of {identity.organization_id}, in {identity.workspace_id}.")
    elif word in STOPS:
        async for event in STOPS[word](send, written):
            yield event
    else:
        yield written(f"{values['greeting']}! {HELP}")
    if incoming.context.thread_title is None:
        yield send.update_thread(title=said[:60] or "A tour")
    yield send.run_end()


async def slowly(text: str, pause: float) -> AsyncIterator[str]:
    """Stands where a model would be."""
    for piece in text.split(" "):
        yield f"{piece} "
        await asyncio.sleep(pause)


# ---------------------------------------------------------------- the stops of the tour

Written = Callable[[str], WorkerEvent]


async def markdown(send: WorkerSend, written: Written) -> AsyncIterator[WorkerEvent]:
    yield written(MARKDOWN)


async def tools(send: WorkerSend, written: Written) -> AsyncIterator[WorkerEvent]:
    asked: dict[str, Any] = {"city": "Lisbon", "days": 2}
    yield send.tool_call("get_weather", asked, display_name="Look at the weather", id="weather-1")
    await asyncio.sleep(0.5)
    found = {"days": [{"day": "today", "sky": "clear", "high": 27}, {"day": "tomorrow", "sky": "clouds", "high": 22}]}
    yield send.tool_result("get_weather", found, display_name="Look at the weather", id="weather-1")
    # One that is done before anybody need hear of it is one event.
    yield send.tool_transaction("remember", {"place": "Lisbon"}, {"ok": True}, display_name="Remember the place")
    yield written("Tomorrow it will be cloudy in Lisbon, 22 degrees.")


async def image(send: WorkerSend, written: Written) -> AsyncIterator[WorkerEvent]:
    yield send.image(picture(), mime_type="image/png", alt="Colours that flow from blue to orange")
    yield written("A picture, made just now.")


async def document(send: WorkerSend, written: Written) -> AsyncIterator[WorkerEvent]:
    table = "day,high\ntoday,27\ntomorrow,22\n"
    yield send.document(data_url("text/csv", table.encode()), "weather.csv", "text/csv")
    yield written("A file, if you would like to keep it.")


async def slow(send: WorkerSend, written: Written) -> AsyncIterator[WorkerEvent]:
    async def counting() -> AsyncIterator[str]:
        for second in range(1, 61):
            yield f"{second} … "
            await asyncio.sleep(1)

    yield send.stream(counting())


async def long(send: WorkerSend, written: Written) -> AsyncIterator[WorkerEvent]:
    yield written("\n\n".join(f"**{number}.** {'All good things take time. ' * 12}" for number in range(1, 41)))


async def fail(send: WorkerSend, written: Written) -> AsyncIterator[WorkerEvent]:
    yield send.text("This is going well so far.")
    raise RuntimeError("the tour has hit a wall: people see a number, the log has this under the number")


STOPS: dict[str, Callable[[WorkerSend, Written], AsyncIterator[WorkerEvent]]] = {
    "markdown": markdown,
    "tools": tools,
    "image": image,
    "document": document,
    "slow": slow,
    "long": long,
    "fail": fail,
}


def data_url(kind: str, body: bytes) -> str:
    return f"data:{kind};base64,{b64encode(body).decode()}"


def picture(width: int = 320, height: int = 180) -> str:
    """A PNG, as small as they come: rows of colours, packed."""
    rows = (
        b"\0"
        + bytes(v for x in range(width) for v in (240 * x // width, 90 + 90 * y // height, 220 - 200 * x // width))
        for y in range(height)
    )
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    body = (len(d).to_bytes(4, "big") + n + d + zlib.crc32(n + d).to_bytes(4, "big") for n, d in chunks)
    return data_url("image/png", b"\x89PNG\r\n\x1a\n" + b"".join(body))
