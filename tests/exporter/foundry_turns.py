"""Run in Foundry Local's environment: a conversation with a folder, offline.

python foundry_turns.py FOLDER WORK QUESTION …
"""

from __future__ import annotations

import json
import sys

import foundry_local_sdk as foundry


def main(folder: str, work: str, *questions: str) -> None:
    foundry.FoundryLocalManager.initialize(
        foundry.Configuration(
            app_name="loaders", app_data_dir=f"{work}/data", model_cache_dir=f"{work}/cache", logs_dir=f"{work}/logs",
            disable_nonessential_telemetry=True,
            # Nobody answers there: what it would fetch is not asked for.
            catalog_urls=[("http://127.0.0.1:9/asset-gallery/v1.0/models", None)],
        )
    )  # fmt: skip
    catalog = foundry.FoundryLocalManager.instance.get_catalog(foundry.CatalogType.LOCAL)
    with foundry.ModelInfoBuilder() as metadata:
        metadata.set_string_property("task", "chat-completion")
        model = catalog.register_model(model_path=folder, model_id="poems-generic-cpu:1", metadata=metadata)
    model.load()
    replies = []
    with foundry.ChatSession(model) as session:
        search = foundry.SearchOptions(temperature=0.0, max_output_tokens=24)
        session.set_options(foundry.RequestOptions(search=search))
        for question in questions:
            with (
                foundry.Request().add_item(foundry.MessageItem.user(question)) as request,
                session.process_request(request) as response,
            ):
                replies += ["".join(part.text for part in item.parts) for item in response]
    model.unload()
    print(json.dumps(replies))


if __name__ == "__main__":
    main(*sys.argv[1:])
