"""`ffae`: does generating answers help classification, or does the decoder just add capacity?

The paper trains a decoder of free-form answers beside the classifier, and says that it helps the
classifier. A decoder also brings parameters and gradients. So one arm has the same decoder and
takes the information out of what it learns: each open question is answered with the answer to
another question of the same type. What the decoder helps beyond that is what its answers teach.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cmimtl.experiments import scores
from cmimtl.experiments.record import comparison_of, in_words
from cmimtl.experiments.study import Arm, Comparison, Study


def _conclude(record: Mapping[str, Any]) -> str:
    helps = comparison_of(record, "decoder", "alone", "overall")
    teaches = comparison_of(record, "decoder", "shuffled", "overall")
    if helps["significant"] and helps["value"] < 0:
        found = "Generating answers harms the classifier"
    elif helps["significant"] and teaches["significant"] and teaches["value"] > 0:
        found = "Generating answers helps the classifier, and by what the answers say"
    elif helps["significant"]:
        found = "The decoder helps the classifier, but it is not shown that its answers do"
    else:
        found = "It is not shown that generating answers helps the classifier"
    return (
        f"{found}: with the decoder {in_words(helps)} against the classifier alone, and"
        f" {in_words(teaches)} against a decoder of shuffled answers."
    )


STUDY = Study(
    name="ffae",
    question="Does generating answers help classification, or does the decoder just add capacity?",
    arms=(
        Arm("decoder", "classifier and decoder"),
        Arm("alone", "classifier alone", {"changes": {"generation_weight": 0.0}}),
        Arm("shuffled", "decoder of shuffled answers", {"decoder_answers": "shuffled"}),
        Arm("generation", "decoder alone", {"changes": {"classification_weight": 0.0}}),
    ),
    measures={
        "overall": scores.OVERALL,
        "open": scores.OPEN_ONES,
        "closed": scores.CLOSED_ONES,
        "generated": scores.WRITTEN,
    },
    summaries={"ece": scores.CALIBRATION},
    comparisons=(
        *(
            Comparison(better, than, measure)
            for better, than in (("decoder", "alone"), ("decoder", "shuffled"))
            for measure in ("overall", "open", "closed")
        ),
        Comparison("shuffled", "alone", "overall"),
        Comparison("decoder", "generation", "generated"),
    ),
    conclude=_conclude,
)
