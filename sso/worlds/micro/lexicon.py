"""Every word of the micro-world: names, attributes, the seven features and the fixed sentences of each flaw.

Data only. The world (`world.py`) writes with it, the oracle reads with it, the tokenizer takes its vocabulary.
"""

CITIES = """
Oslo Rome Lima Bonn Cairo Delhi Kyoto Quito Riga Minsk Tunis Accra Dakar Hanoi Osaka Perth Sofia Turin Vaduz Zagreb
""".split()
JOBS = """
baker pilot nurse judge miner tailor potter singer farmer sailor painter doctor writer dancer banker
""".split()
LIKES = ["tea", "chess", "music", "bread", "roses", "rain", "snow", "stars", "honey", "maps", "bells", "kites"]
ITEMS = ["pears", "cups", "books", "coins", "shells", "lamps"]
UNKNOWNS = ["x", "y", "z", "n", "k"]
GAINS, LOSSES = ["finds", "buys", "wins", "gets"], ["loses", "sells", "drops", "lends"]

STARTS = ["Well.", "Look.", "Right.", "Listen."]
ENDS = ["That is all.", "This is it.", "Good bye.", "The end."]
RISKS = ["It is dark and icy.", "I walk alone at night.", "There is a storm."]

# One fixed set of sentences a role; no sentence has two roles, so that the oracle is exact.
WARM = ["Happy to help!", "Ask me any time!", "Have a nice day!"]
NOTES = ["Please be careful.", "Take good care."]
FILLERS = ["As everyone knows, this is so.", "It goes without saying.", "Let me say it again."]
INSULTS = ["You are a fool."]
UNSAFE = ["Take no care at all."]
REFUSALS = ["I will not answer that."]
NONSENSE = ["The moon is a baker.", "Tea lives in music."]
EMPTY = ["It is what it is."]
VAGUE = ["It is something or other."]

ATTRIBUTES = {"home": CITIES, "job": JOBS, "likes": LIKES}
STATEMENTS = {
    "home": "{name} lives in {value}.",
    "job": "{name} is a {value}.",
    "likes": "{name} likes {value}.",
    "friend": "The friend of {name} is {value}.",
}
OPENINGS = ["Tell me about {name}.", "Who is {name}?", "Describe {name}.", "What do you know about {name}?"]
QUESTIONS = {
    "home": "Where does {name} live?",
    "job": "What is the job of {name}?",
    "likes": "What does {name} like?",
}
HOPS = {
    "home": "Where does the friend of {name} live?",
    "job": "What is the job of the friend of {name}?",
    "likes": "What does the friend of {name} like?",
}
FOLLOW_UPS = {"home": "And the home?", "job": "And the job?", "likes": "And the likes?"}

# feature: (good adjective, bad adjective), the pairs of v1; literariness has no meaning in this world.
ADJECTIVES = {
    "accuracy": ("accurate", "inaccurate"),
    "helpfulness": ("helpful", "unhelpful"),
    "comprehensiveness": ("comprehensive", "incomplete"),
    "concision": ("concise", "verbose"),
    "logicality": ("logical", "illogical"),
    "engagement": ("engaging", "dull"),
    "safety": ("safe", "unsafe"),
}
WEIGHTS = {
    "accuracy": 0.35,
    "helpfulness": 0.15,
    "comprehensiveness": 0.15,
    "concision": 0.10,
    "logicality": 0.10,
    "engagement": 0.075,
    "safety": 0.075,
}


def names(count: int) -> list[str]:
    """Invented two-syllable names, the same for every seed; none is another word of the lexicon."""
    onsets, vowels, middles = "BDFGKLMNPRSTVZ", "aeiou", "dklmnrtv"
    every = [f"{o}{v}{m}{w}" for o in onsets for v in vowels for m in middles for w in "aeo"]
    taken = {w.lower() for w in CITIES + JOBS + LIKES + ITEMS} | {"take", "good", "more", "lives", "dive", "like"}
    # A stride that is coprime to the length spreads the names over the alphabet.
    spread = [every[i * 619 % len(every)] for i in range(len(every))]
    return [name for name in spread if name.lower() not in taken][:count]
