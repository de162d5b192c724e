"""The layers of the package: who may import whom, and who may know about torch.ao and about processors."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1] / "qdiff_fx"

# A file or folder imports only from those before it.
LAYERS = (
    "errors",
    "atomic",
    "progress",
    "checkpoint",
    "distributed",
    "quant",
    "config",
    "schedule",
    "ir",
    "signature",
    "capture",
    "kernels",
    "observers",
    "passes",
    "lora",
    "backends",
    "storage",
    "networks",
    "sampling",
    "schedules",
    "calibration",
    "weight_rounding",
    "reconstruction",
    "tuning",
    "evaluation",
    "report",
    "bundled",
    "sources",
    "api",
    "export",
    "workflow",
    "integrations",
    "__init__",
    "cli",
    "__main__",
)
MAY_IMPORT_TORCH_AO = ("backends/torch_ao",)
# torch.ao's own kernels saturate on some processors, which that backend has to say.
MAY_NAME_INSTRUCTION_SETS = ("kernels/", "backends/torch_ao")
INSTRUCTION_SET = re.compile(r"\b(avx\w*|\w*vnni|amx(_\w+)?|sse\d\w*|vpmadd\w+|vpdp\w+|neon)\b", re.IGNORECASE)
# Names of an operator and of a check in torch, which say nothing about how they work.
NAMES_OF_OTHERS = re.compile(r"int_attention_vnni|_is_vnni_supported")

# It executes what it wrote, in names it numbered itself; nothing of a saved graph's text gets there.
WRITES_ITS_OWN_SOURCE = ("backends/native/runtime/program.py",)

FILES = sorted(ROOT.rglob("*.py"))


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def layer_of(module: str) -> str:
    """ "qdiff_fx.passes.framework" -> "passes"; the package itself is "__init__"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Every module an import statement names, also inside functions; submodules by their own names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            base = node.module or ""
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in MODULES else base


def own_imports(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    return {name for name in imported_modules(tree) if name.split(".")[0] == "qdiff_fx"} - {module_of(file)}


def test_every_file_has_a_layer():
    assert {layer_of(module) for module in MODULES} <= set(LAYERS)


def test_imports_point_downwards():
    for module, file in MODULES.items():
        own = layer_of(module)
        allowed = {own, *LAYERS[: LAYERS.index(own)]}
        wrong = sorted(name for name in own_imports(file) if layer_of(name) not in allowed)
        assert not wrong, f"{name_of(file)} is in layer {own!r} and imports {', '.join(wrong)}"


def test_no_import_goes_in_circles():
    """Inside a folder too. A package's `__init__` imports its files; no file imports its own `__init__`."""
    imports = {module: own_imports(file) & set(MODULES) for module, file in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module in done:
            return
        for imported in sorted(imports[module]):
            visit(imported, (*path, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())


def test_only_its_backend_knows_torch_ao():
    for file in FILES:
        tree = ast.parse(file.read_text())
        names = set(imported_modules(tree))
        names |= {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        found = sorted(name for name in names if re.match(r"torch\.(ao|quantization)\b", name))
        assert not found or name_of(file).startswith(MAY_IMPORT_TORCH_AO), f"{name_of(file)} uses {', '.join(found)}"


def test_only_kernels_know_instruction_sets():
    for file in FILES:
        found = INSTRUCTION_SET.findall(NAMES_OF_OTHERS.sub("", file.read_text()))
        assert not found or name_of(file).startswith(MAY_NAME_INSTRUCTION_SETS), f"{name_of(file)} names {found}"


def test_nothing_reads_or_writes_pickle():
    """Neither pickle itself nor what unpickles underneath; safetensors' functions have other names."""
    for file in FILES:
        tree = ast.parse(file.read_text())
        modules = {name.split(".")[0] for name in imported_modules(tree)}
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not modules & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}, name_of(file)
        forbidden = {"torch.load", "torch.save", "torch.jit.load", "eval", "exec"}
        if name_of(file) in WRITES_ITS_OWN_SOURCE:
            forbidden.remove("exec")
        assert not calls & forbidden, name_of(file)
