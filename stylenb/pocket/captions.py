"""What a scene shows, counted on its canvas, and the caption that says it."""

from stylenb.pocket.canvas import Canvas
from stylenb.pocket.plan import Dice, Plan

MOST_WORDS = 28
WATER_WORDS = {"lake": "a lake", "sea": "the sea", "river": "a river"}
GROUND_WORDS = {
    "meadow": ["a green meadow", "a green field"],
    "snow": ["a snowy field", "snow"],
    "sand": ["the sand", "a sandy beach"],
    "autumn": ["an autumn field", "an autumn meadow"],
    "wheat": ["a wheat field"],
    "lavender": ["a lavender field"],
}
SUN_WORDS = {"day": " in the sun", "dawn": " under a rising sun", "dusk": " under a setting sun"}
TREE_WORDS = {"green": "broadleaf tree", "autumn": "autumn tree", "blossom": "pink blossom tree"}
TIME_WORDS = {
    "dawn": ["dawn", "early morning"],
    "day": ["day", "daytime"],
    "dusk": ["dusk", "sunset", "evening"],
    "night": ["night", "at night"],
}


def find_facts(canvas: Canvas, plan: Plan, mist: bool) -> dict:
    """What can be seen, from the owner map. Plain values only, ready for JSON."""
    areas: dict[str, list[float]] = {}
    houses, boats = [], {"sailing": [], "rowing": []}
    for (kind, *details), area, share in canvas.visible():
        if kind == "house" and share > 0.6 and area > 90:
            houses.append(details)
        elif kind == "boat" and share > 0.6 and area > 20:
            boats[details[0]].append(details[1])
        elif share > 0.35 and area > 0:
            areas.setdefault(kind, []).append(area)

    def large(kind, least):
        return bool(sum(areas.get(kind, [])) >= least)

    moons = [moon for moon in ("full", "crescent") if large(f"{moon} moon", 25)]
    conifers, broadleaves = (
        int(sum(area > 40 for area in areas.get(kind, []))) for kind in ("conifer", "broadleaf")
    )
    return {
        "time": plan.time,
        "overcast": plan.overcast,
        "sun": large("sun", 45),
        "moon": moons[0] if moons else None,
        "stars": plan.stars,
        "northern_lights": plan.northern_lights,
        "clouds": large("cloud", 150) and not plan.overcast,
        "mist": mist,
        "mountains": large("mountains", 250),
        "snow_caps": large("snowcaps", 60) and large("mountains", 250),
        "hills": large("hills", 250) and not large("mountains", 250),
        "water": plan.layout if plan.layout in WATER_WORDS and large("water", 400) else None,
        "ground": plan.ground if large("ground", 700) else None,
        "path": large("path", 90),
        "lighthouse": large("lighthouse", 150),
        "houses": [colour for colour, _ in houses],
        "lit_windows": any(lit for _, lit in houses),
        "sailing_boats": boats["sailing"],
        "rowing_boats": boats["rowing"],
        "conifers": conifers,
        "broadleaves": broadleaves,
        "forest": large("forest", 200),
        "leaves": plan.leaves if broadleaves else None,
    }


def write_caption(dice: Dice, facts: dict) -> str:
    """Subject, what else there is in any order, and the time of day; no style words."""
    subject, clauses = subject_and_ground(dice, facts)
    if facts["moon"]:
        subject += f" under a {facts['moon']} moon"
    elif facts["sun"] and dice.chance(0.6):
        subject += SUN_WORDS[facts["time"]]
    elif facts["overcast"]:
        day = facts["time"] == "day"
        clauses.append(dice.pick(["overcast sky", "grey sky"]) if day else "overcast sky")
    clauses += boats_in_words(dice, facts)
    if facts["mountains"]:
        snowy = ["snowy mountains", "mountains with snow"]
        clauses.append(dice.pick(snowy) if facts["snow_caps"] else "mountains")
    elif facts["hills"]:
        clauses.append("hills")
    clauses += trees_in_words(facts)
    if facts["path"]:
        clauses.append(dice.pick(["a path", "a winding path"]))
    if facts["lit_windows"]:
        clauses.append(dice.pick(["lit windows", "glowing windows"]))
    for thing in ("clouds", "northern_lights"):
        if facts[thing]:
            clauses.append(thing.replace("_", " "))
    for thing in ("stars", "mist"):
        if facts[thing] and dice.chance(0.7):
            clauses.append(thing)
    clauses = [clauses[i] for i in dice.rng.permutation(len(clauses))]
    when = dice.pick(TIME_WORDS[facts["time"]])
    if facts["overcast"] and when == "sunset":
        when = "evening"
    while len(" ".join([subject, *clauses, when]).split()) > MOST_WORDS:
        clauses.pop()
    return ", ".join([subject, *clauses, when])


def a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def subject_and_ground(dice, facts) -> tuple[str, list[str]]:
    """What the caption is about, and the ground as a clause or none."""
    water, grounds = WATER_WORDS.get(facts["water"]), GROUND_WORDS.get(facts["ground"])
    if facts["ground"] == "sand" and facts["water"] != "sea":
        grounds = ["the sand"]
    if facts["houses"]:
        subject, odds = houses_in_words(dice, facts["houses"]), 0.4
        if water or grounds:
            subject += f" by {water}" if water else f" in {dice.pick(grounds)}"
    elif facts["lighthouse"]:
        subject, odds = f"a lighthouse by {water}" if water else "a lighthouse", 0
    else:
        subject, odds = water or (dice.pick(grounds) if grounds else "a landscape"), 0.6
    if water and grounds and odds and dice.chance(odds):
        return subject, [dice.pick(grounds)]
    return subject, []


def houses_in_words(dice, colours) -> str:
    if len(colours) == 1:
        return f"{a(colours[0])} house"
    if len(colours) == 2 and colours[0] != colours[1] and dice.chance(0.6):
        return f"{a(colours[0])} house and {a(colours[1])} house"
    return f"{'two' if len(colours) == 2 else 'three'} houses"


def boats_in_words(dice, facts) -> list[str]:
    words = []
    for kind in ("sailing", "rowing"):
        colours = facts[f"{kind}_boats"]
        if len(colours) > 1:
            words.append(f"two {kind} boats")
        elif colours and kind == "sailing" and dice.chance(0.5):
            words.append(f"a boat with {colours[0]} sails")
        elif colours:
            words.append(f"a {kind} boat")
    return words


def trees_in_words(facts) -> list[str]:
    words = []
    if facts["conifers"]:
        words.append("conifer trees" if facts["conifers"] > 1 else "a conifer tree")
    elif facts["forest"]:
        words.append("a conifer forest")
    if facts["leaves"]:
        tree = TREE_WORDS[facts["leaves"]]
        words.append(f"{tree}s" if facts["broadleaves"] > 1 else a(tree))
    return words
