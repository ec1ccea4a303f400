"""Markdown tables of the race, from what ``race.py`` wrote; numbers only, no JAX."""

import json
import math
import re
import statistics

OURS = "reconstruct"
UNTUNED = "reconstruct, no ridge"
ALONE = "reconstruct, downstream 0"  # where only a layer's own error counts
OBS, UNDAMPED = "layerobs", "layerobs, not damped"
ASIDE = (UNTUNED, ALONE, UNDAMPED)  # in tables of their own
RECOVERED = "recovered"  # what Reconstruct left, after 1000 steps without labels
DUEL = "both in turn"  # SparseGPT and Reconstruct, for their time
LABELS = {
    "random": "random",
    "magnitude": "magnitude",
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
    "obd": "OBD",
    OBS: "LayerOBS",
    UNDAMPED: "LayerOBS, not damped",
    OURS: "Reconstruct",
    ALONE: "Reconstruct, `downstream=0`",
    UNTUNED: "Reconstruct, ridge not tuned",
}
ORDER = list(LABELS)
TARGETS = {f"{share} %": share / 100 for share in (50, 70, 80, 90, 95, 97, 98)}
TARGETS |= {"2:4": (2, 4), "4:8": (4, 8)}
TIMED = "90 %"
SPARSE, DENSE = ("90 %", "95 %", "97 %", "98 %"), ("50 %", "2:4")
CAPPED = ("80 %", *SPARSE)  # the last layer of a network has 70 % there, too

# Held-out errors of the official codes on LeNet's layers, default settings, measured
# with the same rows by PyTorch 2.13: mazumder-lab/ALPS 8af9e6b, fmfi-compbio/
# admm-pruning 8039208, IST-DASLab/sparsegpt 147d215, locuslab/wanda 8e8fc87,
# IST-DASLab/OBC 9b7979b (damped: rel_damp 0.01)
CODES = ["magnitude", "Wanda", "SparseGPT", "Boza-ADMM", "ALPS", "OBC", "OBC, damped"]
PUBLISHED = {
    ("Dense_0", "50 %"): [0.1642, 0.0323, 0.0339, 0.0181, 0.0158, 0.0444, 0.0174],
    ("Dense_0", "90 %"): [0.7007, 0.4350, 0.2983, 0.1599, 0.1303, 0.2578, 0.1245],
    ("Dense_0", "95 %"): [0.8357, 0.6136, 0.4553, 0.2492, 0.2096, 0.3571, 0.2003],
    ("Dense_0", "2:4"): [0.2522, 0.2417, 0.0806, 0.1725, 0.0560, 0.1139, 0.0554],
    ("Dense_1", "50 %"): [0.1635, 0.1260, 0.0500, 0.0400, 0.0322, 0.0300, 0.0300],
    ("Dense_1", "90 %"): [0.7249, 0.5903, 0.3441, 0.1643, 0.1430, 0.1415, 0.1403],
    ("Dense_1", "95 %"): [0.8332, 0.7360, 0.5312, 0.2348, 0.2116, 0.2084, 0.2069],
    ("Dense_1", "2:4"): [0.2530, 0.1919, 0.0698, 0.0559, 0.0466, 0.0474, 0.0472],
}
# the network's accuracy by the same codes, each layer on its own
PUBLISHED_ACCURACY = {
    "50 %": [97.78, 97.80, 98.22, 98.29, 98.28, 98.21, 98.26],
    "70 %": [94.18, 94.85, 97.81, 98.02, 98.10, 98.14, 98.14],
    "90 %": [73.72, 72.86, 93.66, 97.14, 97.69, 97.06, 97.66],
    "95 %": [51.24, 45.86, 70.17, 95.39, 96.13, 94.38, 96.50],
    "2:4": [95.93, 97.08, 97.97, 98.22, 98.18, 97.82, 98.18],
}


def tables(data):
    """All tables by name, as Markdown."""
    out = {"machine": _machine(data), "summary": _summary(data)}
    for name, case in data["cases"].items():
        if case["measure"]:
            out[f"score {name}"] = _scores(case)
            out[f"errors {name}"] = _errors(case)
    out["recovered"] = _recovered(data)
    out["official"] = _official(data)
    out["official accuracy"] = _official_accuracy(data)
    out["layers"] = _layers(data)
    out["alone"] = _alone(data)
    out["random"] = _random(data)
    out["overfitting"] = _overfitting(data)
    out["time"] = _time(data)
    out["memory"] = _memory(data)
    out["duel"] = _duel(data)
    out["rows"] = _rows(data)
    out["losses"] = _losses(data)
    return {name: text for name, text in out.items() if text}


def fill(page, data):
    """A page's text with every table between its marks."""
    made = tables(data)
    mark = r"(<!-- race: ([^>]*) -->\n).*?(<!-- end -->)"

    def put(found):
        table = made.get(found[2])
        return f"{found[1]}\n{table}\n\n{found[3]}" if table else found[1] + found[3]

    return re.sub(mark, put, page, flags=re.DOTALL)


def dumps(value):
    """JSON with one line for each record that holds no others."""
    inner = value.values() if isinstance(value, dict) else ()
    if not any(isinstance(v, dict) for v in inner):
        return json.dumps(value, separators=(",", ":"))
    lines = [f"{json.dumps(k)}: {dumps(v)}" for k, v in value.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def entries(data, mode="parallel", without=ASIDE):
    """Every layer under every target that several methods ran.

    Args:
      data: what was run.
      mode: of the runs.
      without: methods to leave out.

    Yields:
      Case, layer, target, and per method the errors on seen and on held-out rows. What
      the cap of a last layer makes the same is there once.
    """
    for name, case in data["cases"].items():
        if name.startswith("rows"):
            continue
        for i, layer in enumerate(case["layers"]):
            for target in TARGETS:
                if layer == case["last"] and target in CAPPED:
                    continue
                found = {
                    method: (run["calibration"][i], run["held_out"][i])
                    for method, run in _ran(case, mode, target, without).items()
                }
                if found:
                    yield name, layer, target, found


def _ran(case, mode, target, without=ASIDE):
    """The runs of one target, in the methods' order."""
    found = {}
    for method in sorted(case["methods"], key=_place):
        run = case["methods"][method]["runs"].get(f"{mode} {target}")
        if run and method not in without:
            found[method] = run
    return found


def _place(method):
    return ORDER.index(method) if method in ORDER else len(ORDER)


def _names(data_or_case):
    """The methods that ran, in order."""
    cases = data_or_case.get("cases", {"": data_or_case}).values()
    names = {method for case in cases for method in case["methods"]}
    return sorted(names.difference(ASIDE), key=_place)


def _grid(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in lines)


def _bold(values, form, best=min):
    """Cells of numbers, the best one bold; a dash where there is none."""
    there = [v for v in values if v is not None]
    cells = ["-" if v is None else form.format(v) for v in values]
    top = form.format(best(there)) if there else None
    return [f"**{cell}**" if cell == top else cell for cell in cells]


def _labels(names):
    return [LABELS.get(name, name) for name in names]


def _machine(data):
    return "; ".join(str(part) for part in data.get("machine", {}).values())


def _scores(case):
    """Accuracy or loss against the target, both modes."""
    names, rows = _names(case), []
    best, form = (max, "{:.2f}") if case["measure"] == "accuracy" else (min, "{:.3f}")
    for mode in ("parallel", "cascade"):
        for target in TARGETS:
            ran = _ran(case, mode, target)
            if ran:
                values = [ran[m]["score"] if m in ran else None for m in names]
                rows.append([mode, target, *_bold(values, form, best)])
    trained = form.format(case["trained"])
    return _grid(["mode", f"trained: {trained}", *_labels(names)], rows)


def _recovered(data):
    """Scores in cascade mode, after steps without labels, and of the trained one."""
    rows = []
    for name, case in data["cases"].items():
        found = case.get(RECOVERED, {})
        form = "{:.2f}" if case["measure"] == "accuracy" else "{:.3f}"
        for target in (t for t in TARGETS if t in found):
            rows.append([name, target, *map(form.format, found[target])])
    head = ["network", "target", LABELS[OURS], "and `recover`", "trained"]
    return _grid(head, rows) if rows else ""


def _errors(case):
    """Medians over layers of the held-out errors."""
    names, rows = _names(case), []
    for mode in ("parallel", "cascade"):
        for target in TARGETS:
            ran = _ran(case, mode, target)
            if ran:
                values = [
                    statistics.median(ran[m]["held_out"]) if m in ran else None
                    for m in names
                ]
                rows.append([mode, target, *_bold(values, "{:.4f}")])
    return _grid(["mode", "target", *_labels(names)], rows)


def _official(data):
    """LeNet's layers beside the official codes."""
    if "lenet" not in data["cases"]:
        return ""
    names, rows = _names(data["cases"]["lenet"]), []
    for case, layer, target, found in entries(data):
        known = PUBLISHED.get((layer, target))
        if case == "lenet" and known:
            least = min(known)
            who = CODES[known.index(least)]
            values = [found[m][1] if m in found else None for m in names]
            ours = found.get(OURS)
            ratio = f"{ours[1] / least:.3f}" if ours else "-"
            cells = [*_bold(values, "{:.4f}"), f"{known[2]:.4f}"]
            rows.append([f"{layer} {target}", *cells, f"{least:.4f} ({who})", ratio])
    head = ["layer, target", *_labels(names), "SparseGPT, official"]
    return _grid([*head, "lowest official", "Reconstruct over it"], rows)


def _official_accuracy(data):
    """LeNet's accuracy in parallel mode beside the official codes."""
    case = data["cases"].get("lenet")
    rows = []
    for target, known in PUBLISHED_ACCURACY.items():
        run = case and _ran(case, "parallel", target).get(OURS)
        ours = f"{run['score']:.2f}" if run else "-"
        rows.append([target, *(f"{v:.2f}" for v in known), ours])
    return _grid(["target", *CODES, "Reconstruct"], rows) if case else ""


def _layers(data):
    """Every layer's held-out error over SparseGPT's and over the lowest other one."""
    rows: dict = {}
    for case, layer, target, found in entries(data):
        if OURS not in found:
            continue
        ours = found[OURS][1]
        others = {m: e for m, (_, e) in found.items() if m != OURS}
        cell = [_ratio(ours, others.get("sparsegpt"))]
        least = min(others.values(), default=None)
        if least != others.get("sparsegpt"):
            cell.append(f"({_ratio(ours, least)})")
        name = case if case == layer or layer == "kernel" else f"{case} {layer}"
        rows.setdefault(name, {})[target] = " ".join(cell)
    body = [[name, *(row.get(t, "") for t in TARGETS)] for name, row in rows.items()]
    return _grid(["layer", *TARGETS], body) if rows else ""


def _ratio(a, b):
    if b is None:
        return "-"
    return f"{a / b:.2f}" if b > 0 else ("1.00" if a == 0 else "inf")


def _random(data):
    """Held-out errors of the random layers."""
    names, rows = _names(data), []
    for case, _, target, found in entries(data):
        if not data["cases"][case]["measure"]:
            values = [found[m][1] if m in found else None for m in names]
            rows.append([case, target, *_bold(values, "{:.4f}")])
    return _grid(["layer", "target", *_labels(names)], rows) if rows else ""


def _alone(data):
    """Held-out errors where only a layer's own counts, over the lowest of all."""
    gathered: dict = {}
    for case, layer, target, found in entries(data, without=(OURS, UNTUNED)):
        ours = found.pop(ALONE, None)
        if ours and UNDAMPED in found:
            least = min(error for _, error in found.values())
            place = f"{layer} {target}"
            gathered.setdefault(case, []).append((ours[1] / least, place))
    rows = []
    for case, ratios in gathered.items():
        worst, where = max(ratios)
        numbers = [ratio for ratio, _ in ratios]
        cells = f"{statistics.median(numbers):.3f}", f"{worst:.3f} ({where})"
        rows.append([case, len(ratios), *cells, sum(n > 1 for n in numbers)])
    head = ["network", "layers and targets", "median", "worst", "higher in"]
    return _grid(head, rows) if rows else ""


def _overfitting(data):
    """Errors on seen and held-out rows where rows are twice the inputs."""
    rows = []
    for name, case in data["cases"].items():
        if case["measure"] or case["rows"] != 2 * case["shapes"][0][1]:
            continue
        for method in sorted(case["methods"], key=_place):
            run = case["methods"][method]["runs"].get("parallel 50 %")
            if run:
                seen, held = run["calibration"][0], run["held_out"][0]
                label = LABELS.get(method, method)
                cells = [f"{seen:.4f}", f"{held:.4f}", _ratio(held, seen)]
                rows.append([name, label, *cells])
    head = ["layer", "method", "calibration", "held-out", "ratio"]
    return _grid(head, rows) if rows else ""


def _time(data):
    """Seconds of a whole pruning at 90 %."""
    names, rows = _names(data), []
    for name, case in data["cases"].items():
        for mode in ("parallel", "cascade"):
            ran = _ran(case, mode, TIMED)
            if ran:
                cells = [f"{ran[m]['seconds']:.2f}" if m in ran else "-" for m in names]
                both = OURS in ran and "sparsegpt" in ran
                ratio = "-"
                if both:
                    ratio = _ratio(*(ran[m]["seconds"] for m in (OURS, "sparsegpt")))
                rows.append([name, mode, *cells, ratio])
    head = ["case", "mode", *_labels(names), "Reconstruct over SparseGPT"]
    return _grid(head, rows)


def _memory(data):
    """MiB that a pruning takes beyond what the case takes by itself."""
    names, rows = _names(data), []
    for name, case in data["cases"].items():
        for mode in ("parallel", "cascade"):
            ran = _ran(case, mode, TIMED)
            if ran:
                got = [ran[m]["memory"] if m in ran else None for m in names]
                rows.append([name, mode, *("-" if g is None else g for g in got)])
    return _grid(["case", "mode", *_labels(names)], rows)


def _duel(data):
    """Seconds of two methods that took turns, and the median of their ratios."""
    rows = []
    for name, case in data["cases"].items():
        if "duel" in case:
            theirs, ours = case["duel"].values()
            ratio = statistics.median(b / a for a, b in zip(theirs, ours, strict=True))
            both = [f"{statistics.median(got):.2f}" for got in (theirs, ours)]
            rows.append([name, *both, f"{ratio:.1f}"])
    head = ["layer", "SparseGPT", "Reconstruct", "ratio"]
    return _grid(head, rows) if rows else ""


def _rows(data):
    """Seconds by the number of rows."""
    cases = {n: case for n, case in data["cases"].items() if n.startswith("rows")}
    names = sorted(
        {m for case in cases.values() for m in _ran(case, *_ROWS)}, key=_place
    )
    body = []
    for method in names:
        ran = [_ran(case, *_ROWS).get(method) for case in cases.values()]
        cells = [f"{run['seconds']:.2f}" if run else "-" for run in ran]
        body.append([LABELS.get(method, method), *cells])
    return _grid(["seconds", *cases], body) if body else ""


_ROWS = "parallel", TIMED


def _summary(data):
    """Ratios of Reconstruct's held-out error to the others', median and worst."""
    rows = []
    for mode in ("parallel", "cascade"):
        for what, some in (("90 % and above", SPARSE), ("50 % and 2:4", DENSE)):
            rows += _ratios(data, mode, what, some)
        rows += _ratios(data, mode, "all", TARGETS)
    head = ["mode", "targets", "beside", "layers", "median", "worst", "higher in"]
    return _grid(head, rows) if rows else ""


def _ratios(data, mode, what, targets):
    gathered: dict = {}
    for case, layer, target, found in entries(data, mode):
        if target in targets and OURS in found:
            ours = found[OURS][1]
            others = {m: e for m, (_, e) in found.items() if m != OURS}
            if others:
                others["the lowest of them"] = min(others.values())
            for method, error in others.items():
                ratio = ours / error if error else (1.0 if ours == 0 else math.inf)
                place = f"{case} {layer} {target}"
                gathered.setdefault(method, []).append((ratio, place))
    for method in sorted(gathered, key=_place):
        ratios = sorted(gathered[method])
        worst, where = ratios[-1]
        median = statistics.median(r for r, _ in ratios)
        above = sum(r > 1 for r, _ in ratios)
        cells = [f"{median:.3f}", f"{worst:.3f} ({where})", above]
        yield [mode, what, LABELS.get(method, method), len(ratios), *cells]


def _losses(data):
    """Every layer and target at which another method's held-out error is lower."""
    rows = []
    for mode in ("parallel", "cascade"):
        for case, layer, target, found in entries(data, mode):
            if OURS not in found or len(found) == 1:
                continue
            ours = found[OURS][1]
            least, who = min((e, m) for m, (_, e) in found.items() if m != OURS)
            if ours > least:
                cells = [f"{ours:.4f}", f"{least:.4f} ({LABELS.get(who, who)})"]
                rows.append([mode, f"{case} {layer}", target, *cells])
    if any(OURS in case["methods"] for case in data["cases"].values()) and not rows:
        return "None."
    head = ["mode", "layer", "target", "Reconstruct", "lowest"]
    return _grid(head, rows) if rows else ""
