"""Build the documentation as a site, offline: ``make docs`` writes build/site/ from README, docs/ and the docstrings.

A link that leads nowhere, to a page or to a heading, and a name without an object end it with exit code 1.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PAGES, SOURCES = ROOT / "build" / "pages", ROOT / "build" / "sources"

# What the reference documents: a page for each group, from modules of imago.
REFERENCE = {
    "Start": ["imago"],
    "Images and randomness": ["imago.images", "imago.rng", "imago.distributions", "imago.schedules"],
    "The contract of models": ["imago.models.base", "imago.models.latent", "imago.models.variational",
                               "imago.models.importance", "imago.models.flow", "imago.models.autoregressive",
                               "imago.models.stepwise", "imago.models.denoiser", "imago.models.completing",
                               "imago.models.summed"],
    "Models": ["imago.models.fvbn", "imago.models.made", "imago.models.pixelrnn", "imago.models.pixelcnn",
               "imago.models.gated_pixelcnn", "imago.models.autoencoder", "imago.models.vae", "imago.models.hvae",
               "imago.models.realnvp", "imago.models.glow", "imago.models.maf", "imago.models.gan", "imago.models.rbm",
               "imago.models.ebm", "imago.models.gsn", "imago.models.ncsn",
               "imago.models.diffusion", "imago.models.masked_diffusion",
               "imago.models.flow_matching"],
    "Diffusion": ["imago.diffusion.schedules", "imago.diffusion.predictions", "imago.diffusion.losses",
                  "imago.diffusion.variances", "imago.diffusion.samplers", "imago.diffusion.ode"],
    "Data": ["imago.data.base", "imago.data.module"],
    "Metrics": ["imago.evaluation.frechet", "imago.evaluation.kernel", "imago.evaluation.manifold",
                "imago.evaluation.neighbours", "imago.evaluation.inception_score", "imago.evaluation.likelihood",
                "imago.measures"],
    "Training": ["imago.training.compose", "imago.training.estimate", "imago.training.callbacks.common",
                 "imago.training.callbacks.ema"],
}  # fmt: skip

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`(~?)([\w.]+)`")

GUIDE = [
    {"Imago": "index.md"},
    {
        "Models": [
            "autoregressive.md",
            "vae.md",
            "flows.md",
            "gan.md",
            "energy.md",
            "markov_chains.md",
            "diffusion.md",
            "masked_diffusion.md",
            "flow_matching.md",
        ]
    },
    {
        "Use": [
            "configuration.md",
            "runs.md",
            "devices.md",
            "searches.md",
            "clusters.md",
            "scaling.md",
            "data.md",
            "metrics.md",
            "compress.md",
            "pretrained.md",
            "figures.md",
            "compare.md",
            "extending.md",
            "mistakes.md",
        ]
    },
    {"Results": ["board.md", "claims-mnist.md", "claims-digits.md", "speedrun.md", "benchmarks.md"]},
    {"Inside": ["architecture.md", "reliability.md", "security.md", "contributing.md", "changes.md"]},
]


def main() -> None:
    """Collect the pages, then let mkdocs build them."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("board"))
    for source, page in {
        "README.md": "index.md",
        "CHANGELOG.md": "changes.md",
        "CONTRIBUTING.md": "contributing.md",
        "benchmarks/README.md": "benchmarks.md",
    }.items():
        (PAGES / page).write_text(ROOT.joinpath(source).read_text(encoding="utf-8"), encoding="utf-8")
    for page in PAGES.glob("*.md"):
        page.write_text(relinked(page.read_text(encoding="utf-8")), encoding="utf-8")
    shutil.rmtree(SOURCES, ignore_errors=True)
    shutil.copytree(ROOT / "src" / "imago", SOURCES / "imago", ignore=shutil.ignore_patterns("__pycache__"))
    for source in SOURCES.rglob("*.py"):
        source.write_text(ROLE.sub(in_markdown, source.read_text(encoding="utf-8")), encoding="utf-8")
    reference = []
    for title, modules in REFERENCE.items():
        page = f"reference/{title.lower().replace(' ', '-')}.md"
        (PAGES / page).parent.mkdir(exist_ok=True)
        (PAGES / page).write_text(f"# {title}\n\n" + "".join(entry(module) for module in modules), encoding="utf-8")
        reference.append({title: page})
    settings = {
        "site_name": "Imago",
        "site_url": "",
        "docs_dir": str(PAGES),
        "site_dir": str(ROOT / "build" / "site"),
        "use_directory_urls": False,  # pages open from the disk too
        "theme": {"name": "material", "font": False, "features": ["navigation.indexes", "navigation.top"]},
        "markdown_extensions": ["admonition", "attr_list", "tables", "pymdownx.highlight", "pymdownx.superfences",
                                {"toc": {"permalink": True}}],
        "validation": {"omitted_files": "ignore", "absolute_links": "warn", "unrecognized_links": "warn",
                       "anchors": "warn"},
        "plugins": ["search", {"mkdocstrings": {"handlers": {"python": {
            "paths": [str(SOURCES)],
            "options": {"show_root_heading": True, "show_source": False, "members_order": "source",
                        "docstring_style": "google", "inherited_members": False, "show_if_no_docstring": False,
                        "merge_init_into_class": True, "show_signature_annotations": True,
                        "separate_signature": True, "heading_level": 2},
        }}}}],
        "nav": [*GUIDE, {"Reference": reference}],
    }  # fmt: skip
    config = ROOT / "build" / "mkdocs.yml"
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    told = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    built = subprocess.run(command, env=told, stderr=subprocess.PIPE, text=True, check=False)
    wrong = [line for line in built.stderr.splitlines() if not line.startswith("INFO")]
    if built.returncode:
        sys.exit("\n".join([*wrong, "The site was not built: mend the links and names above."]))
    print(ROOT / "build" / "site" / "index.html")


def entry(module: str) -> str:
    """The page's part of a module; of the package itself what ``imago.__all__`` names."""
    if module != "imago":
        return f"::: {module}\n\n"
    tree = ast.parse((ROOT / "src" / "imago" / "__init__.py").read_text(encoding="utf-8"))
    exported = next(ast.literal_eval(node.value) for node in tree.body if _is_assignment(node, "EXPORTS"))
    return "".join(f"::: {place}.{name}\n\n" for name, place in exported.items() if not name[0].isupper())


def _is_assignment(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name


def in_markdown(role: re.Match[str]) -> str:
    """A reference of a docstring: a link where the reference documents its object, else its name."""
    short, name = role[1] == "~", role[2]
    shown = name.rpartition(".")[2] if short else name
    modules = [module for group in REFERENCE.values() for module in group[group == ["imago"] :]]
    documented = any(name == module or name.startswith(f"{module}.") for module in modules)
    return f"[`{shown}`][{name}]" if documented else f"`{shown}`"


def relinked(text: str) -> str:
    """Links between files of the repository, as links between pages of the site; what is no page is named only."""
    text = re.sub(r"\]\((?:\.\./)?docs/", "](", text)
    text = re.sub(r"\]\((?:\.\./)?README\.md(#[^)]*)?\)", r"](index.md\1)", text)
    text = re.sub(r"\]\((?:\.\./)?CHANGELOG\.md\)", "](changes.md)", text)
    text = re.sub(r"\]\((?:\.\./)?CONTRIBUTING\.md\)", "](contributing.md)", text)
    text = re.sub(r"\]\((?:\.\./)?benchmarks/README\.md\)", "](benchmarks.md)", text)
    return re.sub(
        r"\[([^\]]+)\]\((?:\.\./tests/[^)]*|board/[^)]*|examples/[^)]*|notebooks/[^)]*|CITATION\.cff|LICENSE)\)",
        r"\1",
        text,
    )


if __name__ == "__main__":
    main()
