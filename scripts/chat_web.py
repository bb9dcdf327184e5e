"""Chat in the browser, and serve OpenAI's API.

    python -m scripts.chat_web                                  # then open http://127.0.0.1:8000
    curl http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \\
         -d '{"messages": [{"role": "user", "content": "Who are you?"}]}'
    NANOCHAT_API_KEY=... python -m scripts.chat_web --host=0.0.0.0      # others on the network, with a key

Any client of OpenAI's API works with base_url http://127.0.0.1:8000/v1. `/health`, `/metrics` (Prometheus) and
`/openapi.json` say what their names say. Ctrl-C or SIGTERM: no new requests, those in work are finished (30 seconds at
most), then it ends.
"""

from __future__ import annotations

from nanochat import configurator
from nanochat.serving import Config, serve

if __name__ == "__main__":
    configurator.main(serve, Config)
