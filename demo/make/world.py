"""The toy world: its words, its scenes, and what a scene says about a statement.

A scene has values for some facets (activity, place, clothes, ...) and leaves others open. The values of a facet form
a small tree: classes ("indoors") with leaves ("in the kitchen"). One rule, `judge`, compares the value in the premise
with the value in the statement. So the label depends on nothing but the words.
"""

import random

ENTAILMENT, NEUTRAL, CONTRADICTION = 0, 1, 2

# {class: (its premise phrases, its statement phrases, {leaf: (premise phrases, statement phrases)})}
# A class without premise phrases is in a premise only with a leaf. One without statement phrases is in no statement.
ACTIVITIES = {
    "cook": (
        ["preparing food", "cooking"],
        ["preparing food", "cooking", "making a meal"],
        {
            "bread": (["slicing bread"], ["cutting bread", "slicing bread"]),
            "carrots": (["chopping carrots"], ["cutting carrots", "chopping carrots"]),
            "soup": (["stirring a pot of soup"], ["making soup"]),
            "cake": (["baking a chocolate cake"], ["making a cake", "baking a cake"]),
        },
    ),
    "eat": (
        ["eating", "having a meal"],
        ["eating", "having a meal"],
        {
            "sandwich": (["eating a cheese sandwich"], ["eating a sandwich"]),
            "noodles": (["finishing a bowl of noodles"], ["eating noodles"]),
            "pizza": (["biting into a slice of pizza"], ["eating pizza"]),
        },
    ),
    "music": (
        ["playing an instrument", "making music"],
        ["making music", "playing an instrument"],
        {
            "violin": (["playing the violin"], ["playing the violin", "playing the fiddle"]),
            "guitar": (["playing the guitar"], ["playing the guitar"]),
            "piano": (["practising the piano"], ["playing the piano"]),
            "drums": (["beating the drums"], ["playing the drums"]),
        },
    ),
    "clean": (
        ["cleaning up", "doing housework"],
        ["cleaning", "doing housework"],
        {
            "floor": (["sweeping the floor", "mopping the floor"], ["cleaning the floor"]),
            "dishes": (["washing the dishes", "scrubbing the plates"], ["cleaning the dishes"]),
            "table": (["wiping the table"], ["cleaning the table"]),
        },
    ),
    "read": (
        ["reading"],
        ["reading", "looking at a text"],
        {
            "newspaper": (["reading a newspaper"], ["reading the news"]),
            "novel": (["reading a long novel"], ["reading a book"]),
            "letter": (["reading a letter"], ["reading a letter", "reading some mail"]),
        },
    ),
    "sport": (
        ["doing sport", "exercising"],
        ["doing sport", "exercising", "being active"],
        {
            "football": (["kicking a football", "playing football"], ["playing football", "playing soccer"]),
            "tennis": (["playing tennis"], ["playing tennis"]),
            "basketball": (["shooting a basketball"], ["playing basketball"]),
            "running": (["jogging", "running"], ["running"]),
        },
    ),
    "sleep": (
        [],
        ["asleep", "sleeping", "getting some rest"],
        {"sleep": (["sleeping", "taking a nap", "dozing", "sleeping deeply"], [])},
    ),
    "garden": (
        ["working on the plants", "gardening"],
        ["gardening", "taking care of plants"],
        {
            "watering": (["watering the roses"], ["giving water to flowers"]),
            "planting": (["planting tulips"], ["planting flowers"]),
            "raking": (["raking dry leaves"], ["collecting leaves"]),
        },
    ),
    "repair": (
        ["repairing something", "fixing something"],
        ["repairing something", "fixing something"],
        {
            "bicycle": (["repairing a bicycle"], ["fixing a bike"]),
            "engine": (["repairing an engine"], ["fixing an engine", "fixing a motor"]),
            "clock": (["repairing a clock"], ["fixing a clock"]),
            "radio": (["mending an old radio"], ["fixing a radio"]),
        },
    ),
    "talk": (
        ["talking"],
        ["talking", "speaking"],
        {
            "phone": (["talking on the phone"], ["making a call"]),
            "speech": (["giving a speech"], ["speaking in public"]),
        },
    ),
}

PLACES = {
    "indoors": (
        ["indoors"],
        ["indoors", "inside", "inside a building"],
        {
            "kitchen": (["in the kitchen"], ["in a kitchen"]),
            "library": (["in the library"], ["in a library"]),
            "school": (["in a classroom"], ["at school"]),
            "hospital": (["in a hospital room"], ["in a hospital"]),
            "office": (["in the office"], ["in an office"]),
            "home": (["in the living room", "in the bedroom"], ["at home"]),
        },
    ),
    "outdoors": (
        ["outdoors"],
        ["outdoors", "outside", "in the open air"],
        {
            "park": (["in the park"], ["in a park"]),
            "beach": (["on the beach", "on the seashore"], ["by the sea", "on the beach"]),
            "forest": (["in the forest", "in the woods"], ["among trees"]),
            "street": (["on a busy street", "on the sidewalk"], ["on a street"]),
            "mountain": (["on top of a mountain"], ["on a mountain"]),
            "river": (["beside the river"], ["near a river"]),
        },
    ),
}

OBJECTS = {
    "bird": (["a bird"], ["a bird"], ["sparrow", "robin", "pigeon", "duck"]),
    "dog": (["a dog"], ["a dog"], ["poodle", "spaniel", "terrier"]),
    "fish": (["a fish"], ["a fish"], ["trout", "salmon", "herring"]),
    "insect": (["an insect"], ["an insect"], ["bee", "butterfly"]),
    "fruit": (["a piece of fruit"], ["a piece of fruit", "some fruit"], ["apple", "banana", "peach"]),
    "tool": (["a tool"], ["a tool"], ["hammer", "saw", "drill"]),
    "vehicle": (["a vehicle"], ["a vehicle"], ["car", "truck", "bus"]),
    "toy": (["a toy"], ["a toy"], ["doll", "teddy", "kite"]),
}
ANIMALS = ("bird", "dog", "fish", "insect")
# {verb in a premise: verbs in statements}
ANIMAL_VERBS = {
    "feeding": ["feeding", "giving food to"],
    "watching": ["watching", "looking at"],
    "photographing": ["photographing", "taking a picture of"],
    "drawing": ["drawing", "making a sketch of"],
}
THING_VERBS = {
    "buying": ["buying", "purchasing"],
    "selling": ["selling"],
    "photographing": ["photographing", "taking a picture of"],
    "drawing": ["drawing", "making a sketch of"],
}

JOBS = {
    "medicine": ([], ["working in medicine"], {"nurse": "nurse", "doctor": "doctor"}),
    "kitchen": ([], ["working with food"], {"chef": "chef", "baker": "baker"}),
    "law": ([], ["working for the law"], {"judge": "judge", "lawyer": "lawyer"}),
    "land": ([], ["working on the land"], {"farmer": "farmer", "shepherd": "shepherd"}),
    "stage": ([], ["working on the stage"], {"actor": "actor", "dancer": "dancer"}),
}

COMPANY = {
    "company": (
        ["with another person", "with somebody"],
        ["with somebody", "in company"],
        {
            "family": (
                [
                    f"with {{his}} {who}"
                    for who in ("sister", "brother", "mother", "father", "uncle", "aunt", "grandmother")
                ],
                ["with a relative", "with a member of the family"],
            ),
            "strangers": (
                ["with a stranger", "with an unknown visitor"],
                ["with a stranger", "with an unknown person"],
            ),
        },
    ),
    "alone": ([], [], {"alone": (["alone", "by {him}self"], ["alone", "on {his} own", "without company"])}),
}

POSTURES = {
    "sit": (["sitting on a bench", "sitting on a stool"], ["sitting", "seated"]),
    "stand": (["standing next to a wall", "standing by a lamp"], ["standing", "on {his} feet"]),
    "lie": (["lying on a blanket", "lying on a mat"], ["lying down", "stretched out"]),
}
AGES = {
    "old": (["old", "elderly", "white-haired"], ["old", "elderly", "advanced in years"]),
    "young": (["young", "youthful"], ["young", "not yet old"]),
}
MOODS = {
    "happy": (["happy", "smiling", "laughing", "cheerful"], ["happy", "in a good mood", "cheerful"]),
    "sad": (["sad", "crying", "weeping"], ["sad", "unhappy", "in tears"]),
    "angry": (["angry", "furious"], ["angry", "in a rage"]),
    "tired": (["tired", "exhausted", "sleepy"], ["tired", "low on energy"]),
}
TIMES = {
    "morning": (["in the morning", "at sunrise"], ["morning", "early in the day"]),
    "noon": (["at noon", "in the middle of the day"], ["noon", "midday"]),
    "evening": (["in the evening", "at sunset"], ["evening", "late in the day"]),
    "night": (["at night", "at midnight"], ["night", "deep in the night"]),
}
WEATHER = {
    "rain": (["in the rain", "on a rainy day"], ["raining", "rainy"]),
    "sun": (["in the sunshine", "on a sunny day"], ["sunny", "bright and sunny"]),
    "snow": (["in the snow", "on a snowy day"], ["snowing", "snowy"]),
    "fog": (["in the fog", "on a misty day"], ["foggy", "misty"]),
}
NUMBERS = {
    "two": (["two", "a pair of"], ["two"]),
    "three": (["three", "a trio of"], ["three"]),
    "four": (["four"], ["four"]),
    "five": (["five"], ["five"]),
    "six": (["six", "half a dozen"], ["six"]),
}
SOME = ["some", "several", "a group of", "many"]

GARMENTS = ["coat", "hat", "shirt", "scarf"]
COLOURS = ["red", "blue", "green", "yellow", "black", "white"]
LOOKS = ["tall", "short", "slim", "bearded", "barefoot"]
VAGUE_ACTIONS = ["spending some time", "busy", "passing the time", "waiting", "hanging around"]

# {singular: (plural, (subject, object and possessive pronouns), hypernym, hypernym's plural)}
HE, SHE, THEY = ("he", "him", "his"), ("she", "her", "her"), ("they", "them", "their")
PEOPLE = {
    "man": ("men", HE, "person", "people"),
    "woman": ("women", SHE, "person", "people"),
    "boy": ("boys", HE, "child", "children"),
    "girl": ("girls", SHE, "child", "children"),
    "gentleman": ("gentlemen", HE, "man", "men"),
    "lady": ("ladies", SHE, "woman", "women"),
}
ADULTS = ("man", "woman", "gentleman", "lady")
QUIET = ("eat", "music", "read", "talk")  # these go with any posture
ANYWHERE = ("eat", "music", "read", "sport", "sleep", "talk")  # these happen both indoors and outdoors
OUTDOORS_ONLY = ("garden",)
INDOORS_ONLY = ("cook", "clean")


def _flat(table):
    """The tree of a facet without classes: each value is a class with one leaf of the same name."""
    return {key: ([], [], {key: phrases}) for key, phrases in table.items()}


def article(noun_phrase: str) -> str:
    """`a` or `an` before a phrase, by its first letter (the world has no 'hour' and no 'uniform')."""
    return ("an " if noun_phrase[0] in "aeiou" else "a ") + noun_phrase


TREES = {
    "activity": ACTIVITIES,
    "place": PLACES,
    "object": {
        kind: (premise_phrases, statement_phrases, {leaf: ([article(leaf)], [article(leaf)]) for leaf in leaves})
        for kind, (premise_phrases, statement_phrases, leaves) in OBJECTS.items()
    },
    "job": {
        kind: (premise_phrases, statement_phrases, {leaf: ([leaf], [article(leaf)]) for leaf in leaves})
        for kind, (premise_phrases, statement_phrases, leaves) in JOBS.items()
    },
    "company": COMPANY,
    "posture": _flat(POSTURES),
    "age": _flat(AGES),
    "mood": _flat(MOODS),
    "time": _flat(TIMES),
    "weather": _flat(WEATHER),
    "number": _flat(NUMBERS),
    "clothes": _flat(
        {colour: ([article(f"{colour} {g}") for g in GARMENTS], [colour, f"{colour} clothes"]) for colour in COLOURS}
    ),
}
# Facets are drawn from this list: those with more words are in it several times.
FACETS = ["activity"] * 3 + ["place", "object", "clothes"] * 2
FACETS += ["company", "job", "posture", "age", "mood", "time", "weather", "number"]


def values(facet: str, side: int) -> list[tuple[str, str | None]]:
    """All values (class, leaf) of a facet that have a phrase on a side: 0 is the premise, 1 the statement."""
    pairs: list[tuple[str, str | None]] = []
    for kind, (premise_phrases, statement_phrases, leaves) in TREES[facet].items():
        if (premise_phrases, statement_phrases)[side]:
            pairs.append((kind, None))
        pairs += [(kind, leaf) for leaf, phrases in leaves.items() if phrases[side]]
    return pairs


PREMISE_VALUES = {facet: values(facet, 0) for facet in TREES}
STATEMENT_VALUES = {facet: values(facet, 1) for facet in TREES}


def phrase(rng: random.Random, facet: str, value: tuple, side: int) -> str:
    """A random phrase for a value."""
    kind, leaf = value
    node = TREES[facet][kind]
    return rng.choice(node[side] if leaf is None else node[2][leaf][side])


def judge(facet: str, premise_value: tuple | None, statement_value: tuple) -> int:
    """The label of a statement about a facet. The premise has a value for this facet, or None."""
    if premise_value is None:
        return NEUTRAL
    if premise_value[0] != statement_value[0]:
        return CONTRADICTION
    if statement_value[1] is None or statement_value[1] == premise_value[1]:
        return ENTAILMENT
    return NEUTRAL if premise_value[1] is None else CONTRADICTION


def flip(label: int) -> int:
    """The label of the negated statement."""
    return {ENTAILMENT: CONTRADICTION, CONTRADICTION: ENTAILMENT, NEUTRAL: NEUTRAL}[label]


def random_scene(rng: random.Random, facet: str, value: tuple | None, animal: bool | None, clutter: float) -> dict:
    """A random scene with `value` for one facet, and random values or none for the others.

    Args:
        animal: whether the object, if there is one, must be an animal. None: both are allowed.
        clutter: scales how often other facets have values.
    """

    def maybe(name: str, chance: float):
        return rng.choice(PREMISE_VALUES[name]) if chance == 1 or rng.random() < chance * clutter else None

    scene = dict.fromkeys(TREES)
    scene["plural"] = facet == "number" or (facet in ("activity", "place", "object", "weather") and rng.random() < 0.2)
    scene["noun"] = rng.choice(list(PEOPLE))
    scene["number"] = maybe("number", 0.6) if scene["plural"] else None
    if not scene["plural"]:
        scene["job"] = maybe("job", 0.15)
        scene["company"] = maybe("company", 0.2)
        scene["clothes"] = maybe("clothes", 0.25)
    if rng.random() < 0.4 * clutter:
        adjective = rng.choice(["age", "mood"])
        scene[adjective] = maybe(adjective, 1)
    scene["look"] = rng.choice(LOOKS) if rng.random() < 0.2 * clutter else None
    scene["place"] = maybe("place", 0.55)
    when = rng.choice(["time", "weather"])
    if rng.random() < 0.4 * clutter:
        scene[when] = maybe(when, 1)

    # The action is an activity, something with an object, a posture, or vague.
    action = "activity" if rng.random() < 0.6 else rng.choice(["object", "posture", "vague"])
    if facet in ("object", "posture"):
        action = facet if value or facet == "object" else rng.choice(["activity", "vague"])
    if facet == "activity":
        action = "activity" if value else "vague"
    scene["action"] = action
    if action in ("activity", "object", "posture"):
        scene[action] = maybe(action, 1)
    if action == "activity" and scene["activity"][0] in QUIET and (facet == "posture" or rng.random() < 0.1):
        scene["posture"] = maybe("posture", 0.5)
    scene[facet] = value
    scene["garment"] = rng.choice(GARMENTS) if not scene["clothes"] and rng.random() < 0.2 else None
    if facet == "posture" and value and rng.random() < 0.5:
        scene["action"] = "activity"
        scene["activity"] = rng.choice([v for v in PREMISE_VALUES["activity"] if v[0] in QUIET])
    if scene["action"] == "object":
        if scene["object"]:
            animal = scene["object"][0] in ANIMALS
        scene["animal"] = rng.random() < 0.5 if animal is None else animal
        scene["verb"] = rng.choice(list(ANIMAL_VERBS if scene["animal"] else THING_VERBS))
    return scene


def consistent(scene: dict) -> bool:
    """Whether the scene is plausible."""
    doing = scene["activity"][0] if scene["activity"] else None
    where = scene["place"][0] if scene["place"] else None
    if (doing in OUTDOORS_ONLY and where == "indoors") or (doing in INDOORS_ONLY and where == "outdoors"):
        return False
    if doing == "cook" and where and scene["place"][1] not in (None, "kitchen", "home", "school"):
        return False
    if doing == "sleep" and (scene["mood"] or scene["posture"]):
        return False
    if doing == "sport" and where == "indoors" and scene["place"][1] not in (None, "school"):
        return False
    if scene["weather"] and where == "indoors":
        return False
    if scene.get("animal") and where == "indoors" and scene["place"][1] not in (None, "home"):
        return False
    if scene["posture"] and where:
        return False
    if scene["time"] and scene["weather"]:
        return False
    if sum(bool(scene[name]) for name in ("age", "mood", "look")) > 1:
        return False
    if scene["look"] == "bearded" and (scene["job"] or scene["noun"] not in ("man", "gentleman")):
        return False
    if scene["age"] and scene["noun"] not in ADULTS:
        return False
    return not (scene["job"] and (scene["noun"] not in ADULTS or scene["plural"]))


def askable(scene: dict, facet: str) -> bool:
    """Whether `judge` agrees with a reader: no words of other facets tell anything about this facet."""
    doing = scene["activity"][0] if scene["activity"] else None
    if facet == "number":
        return scene["plural"]
    if scene["plural"] and facet not in ("activity", "place", "object", "weather"):
        return False
    if facet == "activity":
        return scene["action"] in ("activity", "vague") and not scene["posture"]
    if facet == "object":
        return scene["action"] == "object"
    if facet == "posture":
        return bool(scene["posture"]) or doing in QUIET or scene["action"] == "vague"
    if facet in ("age", "job"):
        return scene["noun"] in ADULTS
    if facet == "mood":
        return doing != "sleep"
    return _open(scene, facet)


def _open(scene: dict, facet: str) -> bool:
    """Whether place, time or weather is in the scene, or nothing else in it hints at it."""
    doing = scene["activity"][0] if scene["activity"] else None
    if facet == "place":
        return bool(scene["place"]) or (
            not scene["weather"] and not scene["posture"] and (not doing or doing in ANYWHERE)
        )
    if facet in ("time", "weather"):
        other = "weather" if facet == "time" else "time"
        return not scene[other] and not (facet == "weather" and scene["place"] and scene["place"][0] == "indoors")
    return True


def scene_for(
    rng: random.Random, facet: str, value: tuple | None, animal: bool | None = None, clutter: float = 1.0
) -> tuple[dict, str]:
    """A scene with `value` for a facet, and its description of 6 to 16 words.

    Args:
        clutter: scales how often other facets have values. Below 1, a description of 3 words is long enough.
    """
    while True:
        scene = random_scene(rng, facet, value, animal, clutter)
        if consistent(scene) and askable(scene, facet):
            text = describe(rng, scene)
            if (6 if clutter == 1 else 3) <= len(text.split()) <= 16:
                return scene, text


def _pronouns(scene: dict, text: str) -> str:
    """Replace {his} and {him} by the pronouns of the scene's subject."""
    _, objective, possessive = THEY if scene["plural"] else PEOPLE[scene["noun"]][1]
    return text.replace("{his}", possessive).replace("{him}", objective)


def describe(rng: random.Random, scene: dict) -> str:
    """The premise: a sentence that describes the scene."""
    plural, _, _, _ = PEOPLE[scene["noun"]]
    words = [scene["look"]] if scene["look"] else []
    words += [phrase(rng, name, scene[name], 0) for name in ("age", "mood") if scene[name]]
    if scene["plural"]:
        count = phrase(rng, "number", scene["number"], 0) if scene["number"] else rng.choice(SOME)
        subject = " ".join([count, *words, plural])
    else:
        subject = article(" ".join([*words, scene["job"][1] if scene["job"] else scene["noun"]]))
    if scene["garment"]:
        subject += " in " + article(scene["garment"])
    if scene["clothes"]:
        subject += rng.choice([" in ", " wearing "]) + phrase(rng, "clothes", scene["clothes"], 0)
    if scene["action"] == "object":
        thing = "an animal" if scene["animal"] and rng.random() < 0.5 else "something"
        doing = scene["verb"] + " " + (phrase(rng, "object", scene["object"], 0) if scene["object"] else thing)
    elif scene["action"] == "vague":
        doing = rng.choice(VAGUE_ACTIONS)
    else:
        doing = phrase(rng, scene["action"], scene[scene["action"]], 0)
        if scene["action"] == "activity" and scene["posture"]:
            doing += " while " + phrase(rng, "posture", scene["posture"], 0)
    parts = [doing] + [phrase(rng, name, scene[name], 0) for name in ("place", "company") if scene[name]]
    when = [phrase(rng, name, scene[name], 0) for name in ("time", "weather") if scene[name]]
    opening = rng.random()
    be = "are" if scene["plural"] else "is"
    if when and opening < 0.3:
        text = f"{when[0]}, {subject} {be} {' '.join(parts)}"
    elif opening > 0.9:
        text = f"there {be} {subject} {' '.join(parts + when)}"
    else:
        text = f"{subject} {be} {' '.join(parts + when)}"
    text = _pronouns(scene, text)
    return text[0].upper() + text[1:] + "."


def state(rng: random.Random, scene: dict, facet: str, value: tuple, negated: bool) -> str:
    """The hypothesis: a statement that a facet of the scene has this value, or has not."""
    words = _pronouns(scene, phrase(rng, facet, value, 1))
    no = "not " if negated else ""
    plural, _, hypernym, hypernyms = PEOPLE[scene["noun"]]
    if facet in ("time", "weather"):
        return f"It is {no}{words}."
    if facet == "number":
        kind = rng.choice([plural, hypernyms])
        return rng.choice([f"The number of {kind} is {no}{words}.", f"There are {no}{words} {kind}."])
    if scene["plural"]:
        subject, be = rng.choice([f"The {plural}", f"The {hypernyms}"]), "are"
    elif facet == "job":  # the job's name would reveal the label
        subject, be = "The person", "is"
    elif scene["job"]:
        subject, be = rng.choice([f"The {scene['job'][1]}", "A person", "Someone"]), "is"
    else:
        subject, be = (
            rng.choice([f"The {scene['noun']}", f"A {scene['noun']}", f"A {hypernym}", "Someone"]),
            "is",
        )
    if negated:
        subject = subject.replace("A ", "The ").replace("Someone", "The person")
    if facet == "object":
        verbs = ANIMAL_VERBS if scene["animal"] else THING_VERBS
        words = f"{rng.choice(verbs[scene['verb']])} {words}"
    if facet == "clothes":
        words = f"wearing {words}"
    return f"{subject} {be} {no}{words}."


def pair(rng: random.Random, label: int) -> tuple[str, str]:
    """A premise and a hypothesis with this label.

    The statement is drawn before the scene, without regard to the label. So each statement is equally likely
    with each label, and the hypothesis does not reveal the label.
    """
    facet = rng.choice(FACETS)
    statement_value = rng.choice(STATEMENT_VALUES[facet])
    negated = rng.random() < 0.2
    candidates = fitting(PREMISE_VALUES[facet], facet, statement_value, flip(label) if negated else label)
    animal = facet == "object" and statement_value[0] in ANIMALS
    scene, premise = scene_for(rng, facet, rng.choice(candidates), animal)
    return premise, state(rng, scene, facet, statement_value, negated)


def fitting(candidates: list, facet: str, statement_value: tuple, label: int) -> list:
    """The premise values, or None, for which a statement with `statement_value` has this label."""
    return [
        value
        for value in [*candidates, None]
        if judge(facet, value, statement_value) == label and same_realm(facet, value, statement_value)
    ]


def same_realm(facet: str, one: tuple | None, other: tuple) -> bool:
    """Whether both objects are animals, or both are things: nobody feeds a hammer."""
    return facet != "object" or one is None or (one[0] in ANIMALS) == (other[0] in ANIMALS)


def remark(rng: random.Random, scene: dict, facet: str, negate: float = 0.2) -> tuple[str, int] | None:
    """A statement about a facet of a scene, and its label; None if no statement fits."""
    negated = rng.random() < negate
    decided = scene[facet] and rng.random() < 0.7  # "Maybe" is easy to learn, so it is rarer if the scene has a value
    label = rng.choice([ENTAILMENT, CONTRADICTION] if decided else [ENTAILMENT, NEUTRAL, CONTRADICTION])
    if not askable(scene, facet):
        return None
    unnegated = flip(label) if negated else label
    realm = scene["object"] or (("bird" if scene.get("animal") else "tool"), None)
    candidates = [
        value
        for value in STATEMENT_VALUES[facet]
        if judge(facet, scene[facet], value) == unnegated and same_realm(facet, realm, value)
    ]
    return (state(rng, scene, facet, rng.choice(candidates), negated), label) if candidates else None
