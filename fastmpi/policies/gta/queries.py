"""Requests about pictures with text in them, each with its gold calls and their returns.

Every maker draws its pictures, words the request and writes the calls that answer it in a
plausible order: text is read before it is calculated with, and several pictures are described
first. Shops, places and people are made up, so that nothing here claims a fact.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastmpi.policies.gta import pictures
from fastmpi.policies.gta.draft import Draft, Maker, priced, python_block, signed

GOODS = (
    "Oat bread", "Green tea", "Olives", "Goat cheese", "Apples", "Soap", "Candles", "Honey",
    "Rice", "Batteries", "Notebook", "Postcards", "Plums", "Ginger beer", "Mustard", "Walnuts",
)  # fmt: skip
DISHES = (
    "Espresso", "Lemon cake", "Tomato soup", "Bagel", "Iced tea", "Falafel", "Apple pie",
    "Hot chocolate", "Omelette", "Pea salad", "Pretzel", "Mint water", "Waffle", "Dumplings",
)  # fmt: skip
SHOPS = ("Market", "Stores", "Corner Shop", "Grocery", "Supplies")
CAFES = ("Cafe", "Diner", "Tea House", "Kitchen", "Bakery")
SIGHTS = ("Museum", "Botanical Garden", "Castle", "Observatory", "Theatre", "Lighthouse")
THINGS = ("Bicycles", "Books", "Lamps", "Tickets", "Umbrellas", "Chairs", "Visitors", "Parcels")
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
READ = "The text in the image has to be read first."


def receipt_total(draft: Draft) -> None:
    items = priced(draft, GOODS, draft.between(3, 6))
    name, shop = _receipt(draft, items)
    tip = draft.one((5, 8, 10, 12, 15))
    draft.ask(
        f"This is what I bought at {shop}. How much is it in all, with {tip} % added for delivery?",
        f"What does everything on the receipt from {shop} come to, plus a tip of {tip} %?",
    )
    _read(draft, name)
    total = " + ".join(price for _, price in items)
    value = round(sum(float(price) for _, price in items) * (1 + tip / 100), 2)
    _calculate(draft, f"round(({total}) * {1 + tip / 100}, 2)", value)


def receipt_share(draft: Draft) -> None:
    items = priced(draft, GOODS, draft.between(3, 6))
    name, shop = _receipt(draft, items)
    people = draft.between(2, 6)
    draft.ask(
        f"{people} of us share the bill from {shop} evenly. What does each one pay?",
        f"How much is it for each person if {people} people split the receipt of {shop}?",
    )
    _read(draft, name)
    total = " + ".join(price for _, price in items)
    value = round(sum(float(price) for _, price in items) / people, 2)
    _calculate(draft, f"round(({total}) / {people}, 2)", value)


def menu_order(draft: Draft) -> None:
    items = priced(draft, DISHES, draft.between(4, 6))
    place = f"{draft.name()} {draft.one(CAFES)}"
    image = draft.show(pictures.menu(draft.rng, place, items))
    (first, one), (second, other) = draft.some(items, 2)
    many, few = draft.between(2, 5), draft.between(2, 5)
    draft.ask(
        f"At {place} we order {many} x {first} and {few} x {second}. What do we pay?",
        f"What would {many} times {first} and {few} times {second} cost at {place}?",
    )
    _read(draft, image)
    value = round(many * float(one) + few * float(other), 2)
    _calculate(draft, f"{many} * {one} + {few} * {other}", value)


def menus_compared(draft: Draft) -> None:
    dish, *_ = draft.some(DISHES, 1)
    images, places, prices = [], [], []
    for _ in range(2):
        place = f"{draft.name()} {draft.one(CAFES)}"
        others = [item for item in priced(draft, DISHES, 3) if item[0] != dish]
        ((_, price),) = priced(draft, (dish,), 1)
        images.append(
            draft.show(pictures.menu(draft.rng, place, draft.some([*others, (dish, price)], 4)))
        )
        places.append(place)
        prices.append(price)
    draft.ask(
        f"How much do I save on {dish} if I choose the cheaper of {places[0]} and {places[1]}?",
        f"By how much do the prices of {dish} at {places[0]} and {places[1]} differ?",
    )
    for image, place in zip(images, places, strict=True):
        _describe(draft, image, f"A menu board of {place} with dishes and their prices.")
    for image in images:
        _read(draft, image)
    value = round(abs(float(prices[0]) - float(prices[1])), 2)
    _calculate(draft, f"abs({prices[0]} - {prices[1]})", value)


def sign_fact(draft: Draft) -> None:
    image, place = _sign(draft)
    year, founder = draft.between(1780, 1990), draft.name(2)
    asked, answer = draft.one(
        (
            ("When was {} opened?", f"{place} was opened in {year} by {founder}."),
            ("Who designed {}?", f"{place} was designed by {founder} in {year}."),
            ("How many people visit {} in a year?", f"{place} counted {year}00 visitors."),
        )
    )
    draft.ask(asked.format("the place on this sign"), asked.format("what this sign points to"))
    _read(draft, image)
    draft.call(
        "GoogleSearch",
        "The name is known now, and one fact is asked for, so one result will do.",
        f"1 - {place}: {answer}",
        query=asked.format(place).rstrip("?"),
        k=1,
    )


def sign_advice(draft: Draft) -> None:
    image, place = _sign(draft)
    goal = draft.one(("a day trip with children", "a rainy afternoon", "taking photos", "a picnic"))
    draft.ask(
        f"Please find some recommendations on visiting the place on the sign for {goal}.",
        f"What do people advise about the place that the sign names, for {goal}?",
    )
    _read(draft, image)
    draft.call(
        "GoogleSearch",
        "The question is open-ended, so four results are wanted.",
        "\n".join(f"{i} - {draft.name()} travel notes on {place}" for i in range(1, 5)),
        query=f"{place} {goal} recommendations",
        k=4,
    )


def sign_lettered(draft: Draft) -> None:
    image, place = _sign(draft)
    words = draft.one(("OPEN", "CLOSED", "SOLD OUT", "NEW", "FREE ENTRY"))
    where, position = draft.one(
        (("in the middle at the top", "mt"), ("at the top left", "lt"),
         ("at the bottom right", "rb"), ("in the middle at the bottom", "mb"))
    )  # fmt: skip
    color = draft.one(("red", "blue", "black", "green", "white"))
    draft.ask(
        f"Write {words} in {color} {where} of the picture of {place}.",
        f"Put the word {words} on the picture of {place}, {where}, in {color}.",
    )
    thought = "Words are to be written on the image, and nothing has to be found out first."
    draft.make("AddText", thought, image=image, text=words, position=position, color=color)


def chart_share(draft: Draft) -> None:
    image, title, bars = _chart(draft)
    (first, one), (second, other) = draft.some(bars, 2)
    draft.ask(
        f'In "{title}", how many percent of the value of {second} is that of {first}?',
        f'What percentage of {second} does {first} reach in the chart "{title}"?',
    )
    _read(draft, image)
    _calculate(draft, f"round(100 * {one} / {other}, 1)", round(100 * one / other, 1))


def chart_redrawn(draft: Draft) -> None:
    image, title, bars = _chart(draft)
    kind, code = draft.one((("pie chart", "pie(values, labels=names)"),
                            ("line chart", "plot(names, values)"),
                            ("horizontal bar chart", "barh(names, values)")))  # fmt: skip
    draft.ask(f'Draw the numbers of "{title}" as a {kind}.', f'Make a {kind} of "{title}".')
    _read(draft, image)
    command = python_block(
        "import matplotlib.pyplot as plt",
        "",
        "def solution():",
        f"    names = {[name for name, _ in bars]}",
        f"    values = {[value for _, value in bars]}",
        "    figure, axes = plt.subplots()",
        f"    axes.{code}",
        f"    axes.set_title({title!r})",
        "    return figure",
    )
    draft.make("Plot", "The values are known now and can be drawn.", command=command)


def formula_solved(draft: Draft) -> None:
    roots = sorted(draft.some(range(-9, 10), 2))
    factor, letter = draft.between(1, 4), draft.one("xyz")
    b, c = -factor * sum(roots), factor * roots[0] * roots[1]
    head = f"{factor if factor > 1 else ''}{letter}"
    tail = f"{signed(b, letter)}{signed(c)} = 0"
    exercise = f"Exercise {draft.between(1, 99)} by {draft.name()}"
    pieces = [(head, False), ("2", True), (tail, False)]
    image = draft.show(pictures.formula(draft.rng, exercise, pieces))
    draft.ask(
        f'For which {letter} is the equation of "{exercise}" true?',
        f'Please solve "{exercise}" for {letter}.',
    )
    _read_formula(draft, image, f"{head}^2{tail}")
    command = python_block(
        "from sympy import Eq, solve, symbols",
        "",
        "def solution():",
        f"    {letter} = symbols({letter!r})",
        f"    equation = Eq({factor}*{letter}**2 + ({b})*{letter} + ({c}), 0)",
        f"    return str(solve(equation, {letter}))",
    )
    solved = "The equation is known now and has to be solved."
    draft.call("Solver", solved, str(roots), command=command)


def formula_evaluated(draft: Draft) -> None:
    power, factor, rest = draft.between(2, 4), draft.between(2, 9), draft.between(1, 30)
    letter, value = draft.one("abtuv"), draft.between(2, 12)
    exercise = f"Sheet {draft.between(1, 99)} of {draft.name()}"
    head, tail = f"f({letter}) = {factor}{letter}", f" + {rest}"
    pieces = [(head, False), (str(power), True), (tail, False)]
    image = draft.show(pictures.formula(draft.rng, exercise, pieces))
    draft.ask(
        f'What is f({value}) for the function on "{exercise}"?',
        f'Evaluate the function of "{exercise}" at {letter} = {value}.',
    )
    _read_formula(draft, image, f"{head}^{power}{tail}")
    _calculate(draft, f"{factor} * {value}**{power} + {rest}", factor * value**power + rest)


def tickets_solved(draft: Draft) -> None:
    adult, child = draft.between(7, 30), draft.between(2, 12)
    (a, b), (c, d) = draft.one((((2, 1), (1, 3)), ((2, 3), (1, 1)), ((1, 2), (3, 1))))
    totals = a * adult + b * child, c * adult + d * child
    place = f"{draft.name()} {draft.one(SIGHTS)}"
    lines = [place, *(_tickets(*each) for each in ((a, b, totals[0]), (c, d, totals[1])))]
    image = draft.show(pictures.sign(draft.rng, lines))
    draft.ask(
        f"What do one adult and one child each pay at {place}?",
        f"Work out the single ticket prices of {place}, for adults and for children.",
    )
    _read(draft, image)
    command = python_block(
        "from sympy import Eq, solve, symbols",
        "",
        "def solution():",
        "    a, c = symbols('a c')",
        f"    first = Eq({a}*a + {b}*c, {totals[0]})",
        f"    second = Eq({c}*a + {d}*c, {totals[1]})",
        "    return str(solve([first, second], [a, c]))",
    )
    thought = "Two prices are unknown, and two equations are known now."
    draft.call("Solver", thought, f"{{a: {adult}, c: {child}}}", command=command)


TEXT_MAKERS: Sequence[Maker] = (
    receipt_total, receipt_share, menu_order, menus_compared, sign_fact, sign_advice,
    sign_lettered, chart_share, chart_redrawn, formula_solved, formula_evaluated,
    tickets_solved,
)  # fmt: skip


def _receipt(draft: Draft, items: Sequence[tuple[str, str]]) -> tuple[str, str]:
    shop = f"{draft.name()} {draft.one(SHOPS)}"
    footer = f"You were served by {draft.name(2)}"
    return draft.show(pictures.receipt(draft.rng, shop, items, footer)), shop


def _sign(draft: Draft) -> tuple[str, str]:
    place = f"{draft.name()} {draft.one(SIGHTS)}"
    opens = draft.between(8, 11)
    lines = [place, f"Open daily {opens}:00 to {draft.between(16, 20)}:00"]
    if draft.between(0, 1):
        lines.append(f"{draft.between(2, 90) * 100} m")
    return draft.show(pictures.sign(draft.rng, lines)), place


def _tickets(adults: int, children: int, total: int) -> str:
    grown = f"{adults} adult{'s' if adults > 1 else ''}"
    return f"{grown} + {children} {'children' if children > 1 else 'child'}: {total}"


def _chart(draft: Draft) -> tuple[str, str, list[tuple[str, int]]]:
    title = f"{draft.one(THINGS)} at {draft.name()} in week {draft.between(1, 52)}"
    first, count = draft.between(0, 3), draft.between(3, 5)
    bars = [(day, draft.between(3, 95)) for day in DAYS[first : first + count]]
    return draft.show(pictures.chart(draft.rng, title, bars)), title, bars


def _read(draft: Draft, image: str) -> None:
    draft.call("OCR", READ, draft.ocr(image), image=image)


def _read_formula(draft: Draft, image: str, latex: str) -> None:
    draft.call("MathOCR", "The formula in the image has to be read first.", latex, image=image)


def _describe(draft: Draft, image: str, caption: str) -> None:
    several = "There are several images, so each of them is described first."
    draft.call("ImageDescription", several, caption, image=image)


def _calculate(draft: Draft, expression: str, value: float) -> None:
    known = "The numbers are known now and have to be calculated with."
    draft.call("Calculator", known, str(value), expression=expression)
