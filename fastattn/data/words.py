"""The words that are always in the demo's data file, by theme; the rest of the file is the model's most frequent words.

Some themes are also topics: `fastattn demo` measures how near a word is to the average of their words.
"""

_TEXT = """
fruit:        apple apples fruit fruits banana lemon orange grape grapes cherry peach berry berries pear
              plum mango strawberry
technology:   phone phones computer computers laptop software internet digital electronic device devices
              screen keyboard mobile app apps network website online technology robot
animals:      animal animals dog dogs cat cats horse horses cow pig sheep rabbit mouse mice bird birds
              fish lion bear wolf fox bat snake
nature:       nature tree trees river forest mountain lake sea flower flowers grass wood leaf leaves
              garden field branch rock hill beach
money:        money cash credit loan bank banks pay paid dollars price cost financial tax rich market
              buy sell
food:         food pie bread cake cheese soup rice egg eggs meat chicken chocolate sugar salt salad
              butter sandwich pizza breakfast lunch dinner meal kitchen cook juice milk tea coffee wine
              beer water
colours:      red green blue yellow black white brown pink purple grey gold silver
weather:      sun moon rain snow wind storm sky cloud clouds hot cold warm cool spring summer autumn
              winter
music:        music song songs guitar piano singer band dance sing sang drums
people:       man woman men women child children boy girl baby friend friends mother father brother
              sister son daughter teacher doctor king queen farmer student people
places:       house home room door window street road city town village school office shop store farm
              hospital church park station table chair bed box basket
do:           love loves loved like likes liked hate want wants wanted need eat eats ate eating drink
              drinks drank fall falls fell go goes went come came see saw look looked make makes made
              give gave take took bring brought buy bought sell sold use used work works worked play
              plays played read write wrote run ran walk walked sit sat stand stood sleep slept think
              thought know knew say said tell told ask asked find found lost grow grows grew cut broke
              open opened close call called click moved put keep kept hold held learn learned chased
              caught threw drive drove fly flies swim jump wear wore pick picked climbed
things:       dress shirt hat shoes coat hair hand hands head eyes face heart car cars bus train ship plane
              bike boat book books paper letter picture ball knife pen glass cup plate bag key watch camera
              radio television movie story game games job idea word words name life world war
be:           am is are was were be been being have has had do does did will would can could should must
              may might
small:        i you he she it we they me him her us them my your his its our their this that these those
              a an the and or but not no yes if of in on at to from with by for under over up down out
              off into near about after before between through very too so as than then there here now
              when where who what why how all some any many much more most one two three four five ten
              every each other
kinds:        good bad new old big small little large long short fast slow happy sad beautiful sweet
              fresh ripe rotten delicious young tall heavy light dark easy hard soft expensive cheap
              broken smart clever favorite best better great nice
time:         day night morning evening today tomorrow yesterday week year time always never often again
marks:        . , ! ? ' - : ; s t don didn doesn isn wasn m re ve ll
"""


def _themes() -> dict[str, list[str]]:
    themes: dict[str, list[str]] = {}
    for line in _TEXT.strip().splitlines():
        if not line.startswith(" "):
            theme, _, line = line.partition(": ")
            themes[theme] = []
        themes[theme] += line.split()
    return themes


THEMES = _themes()
