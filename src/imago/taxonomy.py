"""Where a model stands among the generative models: the leaves of Goodfellow's tree.

A model has an *explicit* density, which it can evaluate (tractable) or only bound or estimate (approximate), or an
*implicit* one, from which it can only draw: directly, or as the state of a Markov chain. After Goodfellow 2016, "NIPS
2016 tutorial: Generative adversarial networks", figure 9, whose leaves are split here where families differ in how.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Leaf:
    """A leaf of the tree.

    Args:
        branches: from the root, what leads to it.
        title: its name.
        formula: what its models are, in a line.
        page: of the documentation.
    """

    branches: tuple[str, ...]
    title: str
    formula: str
    page: str


_EXPLICIT, _IMPLICIT = "Explicit density", "Implicit density"

# By what a model's ``leaf`` says; in the order in which they are drawn.
LEAVES = {
    "chain_rule": Leaf((_EXPLICIT, "Tractable"), "Chain rule", "∏ p(xᵢ | x₁ … xᵢ₋₁)", "autoregressive.md"),
    "change_of_variables": Leaf(
        (_EXPLICIT, "Tractable"), "Change of variables", "log p(f(x)) + log |det f′(x)|", "flows.md"
    ),
    "variational": Leaf((_EXPLICIT, "Approximate"), "Latent variables", "log p ≥ E log p(x|z) − KL", "vae.md"),
    "diffusion": Leaf((_EXPLICIT, "Approximate"), "Chain of noise", "log p ≥ −L_T − Σ L_t − L₀", "diffusion.md"),
    "transport": Leaf((_EXPLICIT, "Approximate"), "Transport", "dx/dt = v(x, t)", "flow_matching.md"),
    "energy": Leaf((_EXPLICIT, "Approximate"), "Energy", "exp(−E(x)) / Z", "energy.md"),
    "markov_chain": Leaf(
        (_IMPLICIT, "Markov chain"), "Steps to samples", "x ← T(x), again and again", "markov_chains.md"
    ),
    "direct": Leaf((_IMPLICIT, "Direct"), "Adversarial", "x = G(z)", "gan.md"),
    "none": Leaf(("No distribution",), "Codes", "x ≈ D(E(x))", "vae.md"),
}
