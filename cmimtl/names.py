"""What can be chosen by name, in one place: data sets, splits, fusions, studies, …

A command has to know the names before it imports what is behind them, so this module imports
nothing heavy, and says of each name where it is.
"""

from __future__ import annotations

from importlib import import_module

# Data set -> its reader, called as reader(root, split, report=..., **options).
DATASETS = {
    "phantom": "cmimtl.data.phantom:read_phantom",
    "slake": "cmimtl.data.slake:read_slake",
    "vqa-rad": "cmimtl.data.vqa_rad:read_vqa_rad",
    "ovqa": "cmimtl.data.ovqa:read_ovqa",
}

SPLITS = ("train", "validation", "test")
# Splits of one data set alone. Those of the phantom set ask for descriptions: of combinations that
# training has too, and of others.
MORE_SPLITS = {"phantom": ("descriptions", "compositional")}

# Fusion -> what builds it from a CMIMTLConfig, a module that is called as
# fusion(visual, text, visual_lengths, text_lengths) -> visual, text.
FUSIONS = {
    "cross-mamba": "cmimtl.modelling.fusion:cross_mamba",
    "cross-mamba-gated": "cmimtl.modelling.fusion:gated_cross_mamba",
    "transformer": "cmimtl.modelling.fusion:co_attention",
    # Controls, each without one thing that Cross-Mamba has.
    "scan-concatenated": "cmimtl.experiments.fusions:scan_concatenated",
    "scan-of-products": "cmimtl.experiments.fusions:scan_of_products",
    "scan-of-sums": "cmimtl.experiments.fusions:scan_of_sums",
    "attention-interleaved": "cmimtl.experiments.fusions:attention_interleaved",
    "attention-concatenated": "cmimtl.experiments.fusions:attention_concatenated",
    "none": "cmimtl.experiments.fusions:none",
}

# Study -> its declaration.
STUDIES = {
    "ffae": "cmimtl.experiments.ffae:STUDY",
    "fusion": "cmimtl.experiments.fusion:STUDY",
    "weights": "cmimtl.experiments.weights:STUDY",
    "reliance": "cmimtl.experiments.reliance:STUDY",
    "drift": "cmimtl.experiments.drift:STUDY",
    "tiny": "cmimtl.experiments.tiny:STUDY",
    "long": "cmimtl.experiments.long:STUDY",
}

# Conditions under which a model can be asked, of `cmimtl.evaluation.probes`: other pictures, other
# words, and artefacts in three strengths.
ARTEFACTS = ("blur", "noise", "low-dose", "motion", "streaks", "crop")
STRENGTHS = (1, 2, 3)
PROBES = (
    "blank",
    "shuffled",
    "in-haste",
    "at-length",
    *(f"{kind}-{strength}" for kind in ARTEFACTS for strength in STRENGTHS),
)

# Which answers the decoder learns to write: each question's own, or that to another question of the
# same type, which is a control.
DECODER_ANSWERS = ("own", "shuffled")


def splits_of(dataset: str) -> tuple[str, ...]:
    """Every split of a data set."""
    return (*SPLITS, *MORE_SPLITS.get(dataset, ()))


def load(place: str):
    """What "module:name" stands for."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
