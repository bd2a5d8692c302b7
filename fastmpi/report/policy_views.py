"""Policies as they are, with each node's or rule's accuracy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fastmpi.data.scenes import Attributes
from fastmpi.evaluation.metrics import Item
from fastmpi.policies.clevr_tree import ClevrTree, Leaf, Node
from fastmpi.policies.clevr_world import world_of
from fastmpi.policies.policy import Policy, PolicySet
from fastmpi.report.content import Policies, PolicyText, TreeNode, TreePanel
from fastmpi.report.pictures import picture
from fastmpi.report.rules import rule_tables
from fastmpi.report.runs import Evaluation

MOST_NODES = 4000  # of all drawn trees together: some 3 MB
LONGEST_TEXT = 20_000  # characters of a policy's text
Marks = dict[str, list[bool]]  # id of a leaf -> whether the answers that belong there were right


def policy_part(evaluations: Sequence[Evaluation], subject: Evaluation) -> Policies | None:
    """All policies of the runs; None where no run names a file of them that is still there."""
    files = {e.label: e.file("policies") for e in evaluations}
    sets = {path: PolicySet.from_jsonl(path) for path in dict.fromkeys(files.values()) if path}
    if not sets:
        return None
    texts = [policy_text(name, policy) for name, policy in _named(sets)]
    tables = [
        table
        for path, policies in sets.items()
        for table in rule_tables(policies, [e for e in evaluations if files[e.label] == path])
    ]
    panels, notes = _panels(evaluations, subject, {e: sets[p] for e, p in files.items() if p})
    chosen = next((i for i, panel in enumerate(panels) if panel.run == subject.label), 0)
    return Policies(panels, tables, texts, notes, chosen)


def policy_text(name: str, policy: Policy) -> PolicyText:
    """The messages as text and pictures in turn."""
    parts: list[str | bytes] = []
    images = iter(policy.images)
    for message in policy.messages:
        content = message["content"]
        if isinstance(content, str):
            parts.append(content)
            continue
        for part in content:
            parts.append(part["text"] if part["type"] == "text" else _picture(next(images)))
    return PolicyText(name, _cut(parts))


def tree_nodes(
    tree: ClevrTree, attributes: Attributes, marks: Mapping[str, Sequence[bool]]
) -> TreeNode:
    """The tree for drawing; `marks` are those of its leaves. Outcomes that no scene with these
    attributes reaches are marked as such."""
    reachable = {leaf.id for leaf in tree.reachable(attributes)}
    return _tree_node(tree.root, reachable, marks)


def _named(sets: Mapping[Path, PolicySet]) -> Iterable[tuple[str, Policy]]:
    """Every policy once; files that are copies of one another count once."""
    seen: dict[tuple[str, str], Policy] = {}
    for policies in sets.values():
        for name, policy in policies.items():
            seen.setdefault((name, policy.text), policy)
    return [(name, policy) for (name, _), policy in seen.items()]


def _panels(
    evaluations: Sequence[Evaluation], subject: Evaluation, policies: Mapping[str, PolicySet]
) -> tuple[list[TreePanel], list[str]]:
    """One panel for each run, the subject's at any rate, until there are too many nodes."""
    drawn: dict[str, TreePanel] = {}
    left_out, nodes = [], 0
    for e in [subject, *(e for e in evaluations if e is not subject)]:
        if e.label not in policies or not e.items("task"):
            continue
        trees = _trees(policies[e.label], _marks_of(e.items("task")))
        nodes += sum(_count(tree) for _, tree in trees)
        if drawn and nodes > MOST_NODES:
            left_out.append(e.label)
        elif trees:
            drawn[e.label] = TreePanel(e.label, trees)
    panels = [drawn[e.label] for e in evaluations if e.label in drawn]
    notes = [f"Not drawn, for the size of the page: {', '.join(left_out)}."] if left_out else []
    return panels, notes


def _marks_of(items: Sequence[Item]) -> dict[str, Marks]:
    """policy_id -> marks of its leaves."""
    marks: dict[str, Marks] = defaultdict(lambda: defaultdict(list))
    for item in items:
        if item.get("leaf") is not None:
            marks[str(item["policy_id"])][str(item["leaf"])].append(item["correct"])
    return marks


def _trees(policies: PolicySet, marks: Mapping[str, Marks]) -> list[tuple[str, TreeNode]]:
    trees = []
    for name, policy in policies.items():
        if "tree" not in policy.metadata:
            continue
        tree = ClevrTree.from_json(policy.metadata["tree"])
        world = world_of(tree, policy.metadata.get("style", "full"))
        trees.append((name, tree_nodes(tree, world.attributes, marks.get(name, {}))))
    return trees


def _tree_node(
    item: Node | Leaf, reachable: set[str], marks: Mapping[str, Sequence[bool]]
) -> TreeNode:
    if isinstance(item, Leaf):
        right = marks.get(item.id, ())
        share = sum(right) / len(right) if right else None
        return TreeNode(item.case, "", None, None, item.id in reachable, share, len(right))
    yes, no = (_tree_node(child, reachable, marks) for child in (item.if_true, item.if_false))
    n = yes.n + no.n
    share = sum((child.share or 0) * child.n for child in (yes, no)) / n if n else None
    return TreeNode(f"{item.value}?", item.id, yes, no, yes.reachable or no.reachable, share, n)


def _count(node: TreeNode) -> int:
    return 1 + sum(_count(child) for child in (node.yes, node.no) if child is not None)


def _picture(source: object) -> str | bytes:
    found = picture(source, 96)
    return "[a picture that is not there]" if found is None else found


def _cut(parts: Sequence[str | bytes]) -> list[str | bytes]:
    kept: list[str | bytes] = []
    room = LONGEST_TEXT
    for part in parts:
        if isinstance(part, str) and len(part) > room:
            return [*kept, part[:room], f"\n[cut: {len(part) - room} more characters]"]
        kept.append(part)
        room -= len(part) if isinstance(part, str) else 0
    return kept
