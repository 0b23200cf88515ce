"""Every shipped config: its docstring, its headline facts, its source."""

import ast

from hat_docs.markdown import code, mark_code, table
from hatcli.config import SHIPPED, Config, load_config, shipped_configs
from hatcli.events import finish
from hatcli.recipes.models import ModelRow, list_models


def configs_page() -> str:
    """A table of all configs, then each with its facts and its source."""
    rows = {row.name: row for row in finish(list_models())}
    names = sorted(shipped_configs(), key=lambda name: (rows[name].task, name))
    overview = table(
        ["config", "task", "input", "multiply-adds", "parameters"],
        [
            [f"[{code(name)}](#{name})", row.task, _size(row), _macs(row), _params(row)]
            for name, row in ((name, rows[name]) for name in names)
        ],
    )
    return "\n".join([overview, *(_section(load_config(name), rows[name]) for name in names)])


def _section(config: Config, row: ModelRow) -> str:
    path = shipped_configs()[config.name]
    source = path.read_text(encoding="utf-8")
    facts = table(["", ""], [[k, v] for k, v in _facts(config, row).items()])
    return "\n".join(
        [
            f"({config.name})=\n## {config.name}\n",
            f"{mark_code(ast.get_docstring(ast.parse(source)) or '')}\n",
            facts,
            f"`configs/{path.relative_to(SHIPPED)}`:\n\n```python\n{source}```\n",
        ]
    )


def _facts(config: Config, row: ModelRow) -> dict[str, str]:
    train, optim = config["train"], config["optim"]
    facts = {
        "network": f"[{code(row.model)}](parts.md#models-{row.model.replace('_', '-')})",
        "input": _size(row),
        "cost": f"{_macs(row)} multiply-adds, {_params(row)} parameters",
        "training": f"{config['epochs']} epochs in batches of {train['batch_size']}, "
        f"{optim['type']} at a rate of {optim['lr']}, schedule {config['schedule']['type']}",
    }
    if row.published is not None:
        published = row.published
        facts["published by the original"] = (
            f"{published.metric} {published.float32:.2f} in float, {published.int8:.2f} as "
            f"integers ({published.source})"
        )
    if row.measured is not None:
        measured = row.measured
        facts["measured here"] = f"{measured.metric} {measured.value:.2f} on {measured.on}"
    if row.remark is not None:
        facts["remark"] = row.remark
    return facts


def _size(row: ModelRow) -> str:
    return "x".join(map(str, row.shape))


def _macs(row: ModelRow) -> str:
    return f"{row.macs / 1e9:.3f} G"


def _params(row: ModelRow) -> str:
    return f"{row.params / 1e6:.3f} M"
