"""The configuration file of Ray Serve LLM (Ray 2.60), which spreads engines and their replicas over a cluster.

Its keys: https://docs.ray.io/en/latest/serve/production-guide/config.html and `ray.serve.llm.LLMConfig`. Ray Serve
routes by the name of the model, and balances its replicas. Knows YAML; starts nothing.
"""

import os
from collections.abc import Sequence
from typing import Any

import yaml

from serve import vllm_arguments, vllm_settings
from serve.deployments import engines
from serve.deployments.engines import Settings
from serve.endpoint import offer
from serve.endpoint.offer import Offer

APPLICATION = "hubplugin"
BUILDER = "ray.serve.llm:build_openai_app"


def config(offers: Sequence[Offer], device: str, settings: Settings) -> str:
    """The file, with the commands that read it in its first lines."""
    content = {
        "proxy_location": "EveryNode",
        "http_options": {"host": settings.host, "port": settings.port},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": BUILDER,
                "args": arguments(offers, device, settings),
            }
        ],
    }
    head = (
        "# on a node of the cluster: serve deploy serve.yaml, then serve status\n"
        "# every node needs this environment, and the folders of the models under these paths\n"
    )
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=2**31)


def arguments(offers: Sequence[Offer], device: str, settings: Settings) -> dict[str, Any]:
    """What BUILDER is called with: an LLMConfig per model, its engine as the endpoint's own would be."""
    for one in offers:
        engines.refuse_lines(one)
    configs = [vllm_settings.read_config(one.folder) for one in offers]
    words = [
        [*vllm_settings.arguments(device, known, one.max_model_len, one.words), *one.words]
        for one, known in zip(offers, configs, strict=True)
    ]
    given = vllm_arguments.keywords(words)
    models = [_model(one, keywords, device, settings) for one, keywords in zip(offers, given, strict=True)]
    return {"llm_configs": models, "ingress_deployment_config": {"ray_actor_options": {"num_cpus": 0}}}


def _model(one: Offer, keywords: dict[str, Any], device: str, settings: Settings) -> dict[str, Any]:
    deployment: dict[str, Any] = {"num_replicas": settings.replicas, "graceful_shutdown_timeout_s": settings.drain}
    model: dict[str, Any] = {
        "model_loading_config": {"model_id": one.name, "model_source": str(one.folder.resolve())},
        "engine_kwargs": keywords,
        "deployment_config": deployment,
        "runtime_env": {"env_vars": engines.environment(device)},
    }
    if device == "cuda":  # a GPU for every worker of an engine is what Ray Serve asks for by itself
        return model
    # vLLM binds its threads to the cores of a machine, so that engines beside each other would share them
    cpus = settings.cpus or os.cpu_count() or 1
    deployment["ray_actor_options"] = {
        "num_cpus": 0,
        "memory": offer.memory_needed(one, device) + offer.FORK_SERVER_BYTES,
    }
    # Ray gives an actor that asks for no CPU one thread
    model["runtime_env"]["env_vars"].setdefault("OMP_NUM_THREADS", str(cpus))
    return model | {"accelerator_config": {"kind": "cpu"}, "placement_group_config": {"bundles": [{"CPU": cpus}]}}
