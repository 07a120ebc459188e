"""What whole models lose by being quantised."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from benchmarks.models import results
from benchmarks.models.cases import INTEGERS, NEAREST, Case
from benchmarks.models.effort import LLAMAS, SMOLLM2, hours
from benchmarks.models.results import Found
from benchmarks.models.targets import TARGETS, is_for, met
from benchmarks.models.texts import SOURCES
from benchmarks.tables import files, markdown
from codegemm.formats.codebook_config import CodebookConfig
from codegemm.formats.format import parse
from codegemm.reporting import counted

FOLDER, PICTURE, LM_EVAL = "models", "models.png", "lm-eval.json"
KINDS = SUMS, OTHERS, ROUNDED = "sums of codebooks", "others' codes", "integers"
NOTHING = "No whole model was measured.\n"


def tables() -> str:
    """Ratios of perplexity and the targets; how far predictions are from the dense model's; and a picture."""
    found = results.read(files.RESULTS / FOLDER)
    if not found:
        return NOTHING
    picture = f"![KL by bits, a panel a text](../benchmarks/results/{PICTURE})\n"
    return f"\n{_where(found)}:\n\n" + "\n".join((ratios(found), reached(found), distances(found), picture))


def _where(found: list[Found]) -> str:
    """Where, by which version, and on how much of each text."""
    texts = "; ".join(
        f"{name}, {numbers['predictions']:,} predictions, dense perplexity {numbers['base_perplexity']:.2f}"
        for name, numbers in found[0].texts.items()
    )
    devices = " and ".join(dict.fromkeys(each.device for each in found))
    versions = " and ".join(dict.fromkeys(f"codegemm {each.version}" for each in found))
    return f"{devices}, {versions}, {counted(len(found[0].texts), 'text')} ({texts})"


def ratios(found: list[Found]) -> str:
    """Of perplexities to the dense model's, with half of what their intervals span; in which texts targets are met."""
    names = results.text_names(found)
    lines = [["weights", "way", "bits", *(f"x {name}" for name in names), "within"]]
    for each in found:
        cells = [_spread(each.texts[name], "ratio", 2) for name in names]
        lines.append([each.case.config, each.case.way, f"{each.bits:.2f}", *cells, _within(each)])
    return markdown.table(lines, "---")


def _within(found: Found) -> str:
    """The texts whose targets are met, of those that have one; nothing where there is none for so many bits."""
    verdicts = met(found.bits, found.of("ratio"))
    reached = [text for text, is_met in verdicts.items() if is_met]
    if verdicts and len(reached) in (0, len(verdicts)):
        return "all" if reached else "none"
    return ", ".join(reached)


def reached(found: list[Found]) -> str:
    """The best codebooks of at most so many bits, by each target and text."""
    lines = [["bits, at most", "text", "x, at most", "best", "weights", "way", ""]]
    for target in TARGETS:
        those = [each for each in found if each.case.way not in INTEGERS and is_for(target, each.bits)]
        for text, most in target.ratios.items():
            head = [f"{target.bits:.2f}", text, f"{most:.2f}"]
            if not those:
                lines.append([*head, "", "", "", "not measured"])
                continue
            best = min(those, key=lambda each: each.of("ratio")[text])
            ratio = best.of("ratio")[text]
            verdict = "met" if ratio <= most else "missed"
            lines.append([*head, f"{ratio:.2f}", best.case.config, best.case.way, verdict])
    return markdown.table(lines, "---")


def summary() -> str:
    """For each target's bits the sums of codebooks, QuIP#'s and QTIP's codes and the integers, by the same text, that
    lose least over all texts."""
    found = results.read(files.RESULTS / FOLDER)
    if not found:
        return NOTHING
    names = results.text_names(found)
    lines = [["bits, at most", "weights", "way", "bits", *names]]
    shown = []
    for target in TARGETS:
        fitting = [each for each in found if each.case.way != NEAREST and is_for(target, each.bits)]
        for kind in KINDS:
            those = [each for each in fitting if _kind(each.case) == kind]
            best = min(those, key=lambda each: sum(each.of("ratio").values()), default=None)
            if best is not None and best not in shown:
                shown.append(best)
                cells = [_spread(best.texts[name], "ratio", 2) for name in names]
                lines.append([f"{target.bits:.2f}", best.case.config, best.case.way, f"{best.bits:.2f}", *cells])
    return "\n" + markdown.table(lines, "---")


def _kind(case: Case) -> str:
    if case.way in INTEGERS:
        return ROUNDED
    return SUMS if all(isinstance(parse(config), CodebookConfig) for config in case.asked[0]) else OTHERS


def distances(found: list[Found]) -> str:
    """KL and the share of equal likeliest tokens."""
    names = results.text_names(found)
    heads = [f"KL: {names[0]}", *names[1:], f"top-1 %: {names[0]}", *names[1:]]
    lines = [["weights", "way", "bits", *heads]]
    for each in found:
        far = [f"{each.of('kl')[name]:.3f}" for name in names]
        same = [f"{100 * each.of('top1')[name]:.1f}" for name in names]
        lines.append([each.case.config, each.case.way, f"{each.bits:.2f}", *far, *same])
    return markdown.table(lines, "---")


def lm_eval() -> str:
    """What lm-eval says of some models."""
    if not (files.RESULTS / LM_EVAL).exists():
        return NOTHING
    told = files.read(LM_EVAL)
    lines = [["model", "right", "right, by length"]]
    for row in told["models"]:
        shares = (f"{100 * row[name]:.1f} ±{100 * row[f'{name}_stderr']:.1f} %" for name in ("acc", "acc_norm"))
        lines.append([Path(row["model"]).name, *shares])
    questions = counted(told["models"][0]["questions"], "question")
    return f"\n{told['task']}, {questions}, lm-eval {told['lm_eval']}:\n\n" + markdown.table(lines, "---")


def effort() -> str:
    """Hours of larger models on a core of the processor that codebooks of fewest bits were distilled on, of those that
    had one core to themselves."""
    found = results.read(files.RESULTS / FOLDER)
    done = [each for each in found if each.cores == 1 and "distilling" in each.seconds]
    if not done:
        return NOTHING
    first = done[0]
    tokens = f"{first.tokens['calibrated']:,} tokens read, {first.tokens['distilled']:,} learned from"
    lines = [["model", "weights, 10^9", "matrices", "products", "reading", "learning"]]
    for model in (SMOLLM2, *LLAMAS):
        spent = asdict(hours(model, first.seconds, first.tokens)).values()
        cells = (f"{each:.2f}" if each < 1 else f"{each:.0f}" for each in spent)
        lines.append([model.name, f"{model.weights / 1e9:.2f}", *cells])
    return f"\n{first.case.config}, {tokens}, hours of one core, {first.device}:\n\n" + markdown.table(lines, "---")


def texts() -> str:
    """Which there are, of what, and by which licence."""
    lines = [["text", "source", "package", "licence"]]
    for source in SOURCES:
        package = "" if source.package is None else f"{source.package.name} {source.package.version}"
        lines.append([" and ".join(source.texts), source.title, package, source.licence])
    return "\n" + markdown.table(lines, "---")


def _spread(numbers: dict[str, float], measure: str, digits: int) -> str:
    """A value and half of its interval."""
    value, (low, high) = numbers[measure], numbers[f"{measure}_interval"]
    if value >= 1000:  # no model of a language any more: how far it is off says nothing
        return f"{value:.1e}"
    return f"{value:.{digits}f}" + ("" if low is None else f" ±{(high - low) / 2:.{digits}f}")
