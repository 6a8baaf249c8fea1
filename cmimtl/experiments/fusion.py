"""`fusion`: what makes Cross-Mamba fuse well, Mamba or the interleaving?

Cross-Mamba differs from a Transformer encoder in two things: a selective scan mixes the tokens, and
the tokens are products and sums of the two streams. Two by two arms change one of them at a time,
with the same number of parameters; one more gives the interleaved encoder as many multiply-adds
instead (concatenated, the same width does both). The other arms take away or add one thing each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cmimtl.experiments import scores
from cmimtl.experiments.record import comparison_of, in_words
from cmimtl.experiments.study import Arm, Comparison, Study

# Widths of the encoder's feed-forward part, at a d_model of 96. With the first, its layer has as
# many parameters as a Cross-Mamba block; with the second, interleaved, as many multiply-adds for 8
# queries and 12 words. A test counts both.
AS_MANY_PARAMETERS = 158
AS_MANY_OPERATIONS = 261

OURS = "cross-mamba"


def _encoder(tokens: str, width: int = AS_MANY_PARAMETERS) -> dict[str, Any]:
    return {"fusion": f"attention-{tokens}", "changes": {"fusion_feed_forward": width}}


def _conclude(record: Mapping[str, Any]) -> str:
    mamba = comparison_of(record, OURS, "attention-interleaved", "overall")
    interleaving = comparison_of(record, OURS, "scan-concatenated", "overall")
    fusing = comparison_of(record, OURS, "none", "overall")
    helps = [c["significant"] and c["value"] > 0 for c in (mamba, interleaving)]
    found = {
        (True, True): "Both help: the scan and the interleaving",
        (True, False): "The scan helps; it is not shown that the interleaving does",
        (False, True): "The interleaving helps; it is not shown that the scan does",
        (False, False): "It is not shown that the scan helps, nor that the interleaving does",
    }[helps[0], helps[1]]
    return (
        f"{found}: Cross-Mamba's classifier is right {in_words(mamba)} more often than with"
        f" attention in place of the scan, {in_words(interleaving)} more than with the streams one"
        f" after the other in place of interleaved, and {in_words(fusing)} more than without any"
        " fusion."
    )


STUDY = Study(
    name="fusion",
    question="What makes Cross-Mamba fuse well: Mamba, or the interleaving of products and sums?",
    arms=(
        Arm(OURS, "scan, interleaved (Cross-Mamba)"),
        Arm("scan-concatenated", "scan, concatenated", {"fusion": "scan-concatenated"}),
        Arm("attention-interleaved", "attention, interleaved", _encoder("interleaved")),
        Arm("attention-concatenated", "attention, concatenated", _encoder("concatenated")),
        Arm(
            "attention-interleaved-cost",
            "attention, interleaved, equal cost",
            _encoder("interleaved", AS_MANY_OPERATIONS),
        ),
        Arm("bidirectional", "Cross-Mamba both ways", {"changes": {"fusion_bidirectional": True}}),
        Arm("gated", "two scans, one gate", {"fusion": "cross-mamba-gated"}),
        Arm("products", "products only", {"fusion": "scan-of-products"}),
        Arm("sums", "sums only", {"fusion": "scan-of-sums"}),
        Arm("co-attention", "co-attention (4.4 times the parameters)", {"fusion": "transformer"}),
        Arm("none", "no fusion", {"fusion": "none"}),
    ),
    measures={
        "overall": scores.OVERALL,
        "open": scores.OPEN_ONES,
        "closed": scores.CLOSED_ONES,
        "generated": scores.WRITTEN,
    },
    comparisons=(
        *(
            Comparison(OURS, than, measure)
            for than in ("scan-concatenated", "attention-interleaved", "attention-concatenated")
            for measure in ("overall", "generated")
        ),
        *(
            Comparison(OURS, than, "overall")
            for than in (
                "attention-interleaved-cost",
                "bidirectional",
                "gated",
                "products",
                "sums",
                "co-attention",
                "none",
            )
        ),
    ),
    conclude=_conclude,
    costs=True,
)
