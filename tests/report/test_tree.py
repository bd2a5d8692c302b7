"""Trees as drawings."""

from __future__ import annotations

from fastmpi.report.content import TreeNode
from fastmpi.report.tree import describe, tree_diagram


def tree() -> TreeNode:
    right = TreeNode("small?", "1.2", TreeNode("Case 1"), TreeNode("Case 8", reachable=False))
    left = TreeNode("cube?", "1.1", TreeNode("Case 3", share=0.75, n=4), TreeNode("Case 5"))
    return TreeNode("red?", "1", left, right)


def test_tree_draws_every_node_and_branch():
    drawing = tree_diagram(tree(), "kavo")
    assert drawing.count("<rect") == 7 and drawing.count("<path") == 6
    assert drawing.count('class="box outcome unreachable"') == 1
    assert describe(tree()) == (
        "red? (yes: cube? (yes: Case 3, 75 % of 4, no: Case 5), no: small? (yes: Case 1, "
        "no: Case 8))"
    )


def test_share_is_a_number_and_a_colour():
    drawing = tree_diagram(tree(), "kavo")
    assert drawing.count('class="node s6"') == 1 and drawing.count('class="node"') == 6
    assert ">75 %<" in drawing and "> of 4<" in drawing
