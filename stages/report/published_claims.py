"""The published report's claims about NLI, with verdict and evidence in words."""

from typing import NamedTuple

from stages.analysis.intervals import Share
from stages.analysis.nli import Claims, GapClaim, UnawareClaim, Verdict
from stages.report.formatting import gap_with_interval, percent, share_with_interval


class ClaimText(NamedTuple):
    claim: str
    verdict: Verdict
    evidence: str


def describe_claims(claims: Claims) -> list[ClaimText]:
    answers, unaware, fixes = claims.base_answers_one_class, claims.base_is_unaware, claims.tuning_fixes_most
    neutral, premise = claims.neutral_is_hardest, claims.premise_is_read
    texts = (
        (
            answers,
            "The base model with an untrained head answers almost one class",
            answers
            and f"{share_with_interval(answers.share)} of its answers are {answers.answer}. "
            f"Almost one class means {answers.bar:.0%} or more.",
        ),
        (
            unaware,
            "The base model is unaware of the relation between the sentences",
            unaware and _describe_unaware(unaware),
        ),
        (
            fixes,
            "Tuning fixes most of the mistakes of the base with an untrained head",
            fixes and f"Tuning corrects {share_with_interval(fixes.share)} of its errors.",
        ),
        (
            neutral,
            "Neutral is the hardest class",
            _compare(
                neutral,
                "The tuned model misclassifies {} neutral rows and {} "
                + f"{neutral.rival} rows, the worst other class",
                "These rows do not include both neutral and another class.",
            ),
        ),
        (
            claims.high_overlap_pulls_to_entailment,
            "High word overlap pulls towards entailment",
            _compare(
                claims.high_overlap_pulls_to_entailment,
                "Of the rows that are not entailment, the tuned model predicts entailment for {} with the highest "
                "overlap and for {} others",
            ),
        ),
        (
            claims.low_overlap_fails,
            "Low word overlap fails more often",
            _compare(
                claims.low_overlap_fails,
                "The tuned model misclassifies {} rows with the lowest overlap and {} others",
            ),
        ),
        (
            premise,
            "The tuned model beats a classifier that reads only the hypothesis",
            premise
            and f"A classifier that reads only the hypothesis has an accuracy of "
            f"{percent(premise.hypothesis_accuracy)}, the tuned model of {percent(premise.model_accuracy)}. Where "
            f"exactly one of them is right, it is the tuned model in {share_with_interval(premise.share)}.",
        ),
    )
    return [ClaimText(title, claim.verdict, evidence) for claim, title, evidence in texts if claim and evidence]


def _describe_unaware(claim: UnawareClaim) -> str:
    zero_shot = "" if claim.zero_shot_accuracy is None else f" Zero-shot reaches {percent(claim.zero_shot_accuracy)}."
    return (
        f"A linear probe on the frozen base has an accuracy of {percent(claim.model_accuracy)}, a classifier that "
        f"reads only the hypothesis of {percent(claim.hypothesis_accuracy)}. Where exactly one of them is right, it is "
        f"the second one in {share_with_interval(claim.share)}.{zero_shot}"
    )


def _compare(
    claim: GapClaim, sentence: str, unknown: str = "Too few different overlaps in these rows to compare."
) -> str:
    if not (claim.inside.rows and claim.outside.rows):
        return unknown
    shares = sentence.format(_share(claim.inside), _share(claim.outside))
    return f"{shares}: {gap_with_interval(claim.gap, claim.interval)}."


def _share(share: Share) -> str:
    return f"{percent(share.value)} of {share.rows:,}"
