"""A blind test set for the scanner of personal identifiers: synthetic clinical texts with the spans planted in them.

Written without sight of the scanner, its tests or its own benchmark, so what it measures was not tuned on it. Every
person, number and address is drawn from a fixed seed; nothing comes from a real record. `planted()` gives texts with
their spans `(kind, start, end)` and, shuffled among them, texts without any (the hard negatives).

What a span covers:
  name          the name alone: no label, title or kinship word ("Mr.", 医师, 其子); a later bare mention counts again,
                and so does a surname alone after an English title ("Mr. Smith")
  id_card       the 18 or 15 characters with the spaces or dashes written among them
  phone         country code, area code, number and extension
  record_number the number of a person's record (住院号, 门诊号, 病案号, 就诊卡号, MRN), not of a specimen or device
  address       from its first part (province, city, street, estate) to the house or room; in English to the postcode;
                a rural one may end at the village, but no place name above a village counts
  email         the address alone
  birth_date    the date of birth to at least the month; dates of visits, operations and reports do not count
Doctors' and relatives' identifiers count like the patient's. Not used, because people would disagree about them: a
Chinese surname alone with a title (王主任), initials, authors in references, years of birth.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable

Span = tuple[str, int, int]
Text = tuple[str, list[Span]]

KINDS = ("name", "id_card", "phone", "record_number", "address", "email", "birth_date")
SEED = 20240611
POSITIVES = 2600
NEGATIVES = 3200
ENGLISH_SHARE = 0.2

# ---------------------------------------------------------------------------------------------------------- names

_SURNAMES = (
    "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘杜戴夏钟汪田任姜范"
    "方石姚谭廖邹熊金陆郝孔白崔康毛邱秦江史顾侯邵孟龙万段雷钱汤尹黎易常武乔贺赖龚文樊兰殷施陶洪翟安颜倪严牛温芦季俞章鲁葛伍韦申"
    "尤毕聂焦向柳邢岳齐梅莫庄辛管祝左涂谷祁时舒耿牟卜路詹关苗凌费纪靳盛童欧甄项曲成游阳裴席卫查屈鲍位覃霍翁隋植甘景薄单包司柏宁柯"
    "阮桂闵解强柴华车冉房边净平和冷沙明计"
)
_COMPOUND = (
    "欧阳",
    "司马",
    "上官",
    "诸葛",
    "司徒",
    "东方",
    "皇甫",
    "尉迟",
    "公孙",
    "慕容",
    "夏侯",
    "令狐",
    "端木",
    "长孙",
)
_GIVEN = (
    "伟芳娜敏静丽强磊军洋勇艳杰娟涛明超秀霞平刚桂英华玉兰建国志文红梅春海燕鹏飞宇浩然子轩梓涵雨欣诗琪佳怡思远嘉豪俊辉晓东小宝金凤淑珍"
    "德才永福长生桃花菊香素云凯旋婷婉琳雪莹倩颖欢乐安康宁泽民学峰立新庆丰光荣瑞祥继红卫援朝跃进改革启航一诺亦凡铭楠曦睿渝川蓉沪京冬秋月"
    "翠萍少华仁义礼智信忠孝良贤昌盛发财有根水生火木林森焱鑫淼垚彦博翰墨蕊薇茜芷若彬斌彪翔晨旭昊天佑"
)
_WORDLIKE = (
    "高原", "白雪", "石磊", "马达", "温泉", "安宁", "时光", "常青", "温馨", "黄河", "江山", "文静", "平安", "高峰",
    "钱进", "白洁", "向阳", "向前", "方正", "金山", "牛犇", "万里", "明月", "和平", "成功", "高兴", "黄连生",
    "白术华", "车晓", "房颖", "安静", "向东", "康复生", "任何", "何时", "于今", "单纯", "曾经", "于洋", "白果",
    "温暖", "杜仲", "常山", "石斛", "江浩", "柏子仁", "高良", "全卫东",
)  # fmt: skip
_MINORITY_GIVEN = (
    "阿依古丽", "买买提", "古丽娜尔", "艾合买提", "阿卜杜拉", "吐尔逊", "帕提古丽", "热依汗古丽", "努尔兰",
    "木合塔尔", "迪丽努尔", "库尔班", "阿米娜", "麦麦提敏", "沙吾提", "哈丽旦", "玛依拉", "阿尔孜古丽", "买合木提",
    "依力哈木", "巴哈尔", "叶尔江",
)  # fmt: skip
_MINORITY_FATHER = (
    "买买提", "艾合买提", "吐尔逊", "阿布力克木", "木沙", "依明", "卡德尔", "玉素甫", "阿布都热合曼", "肉孜",
    "斯拉木", "尼亚孜", "别克", "托合提", "赛买提", "哈力克",
)  # fmt: skip
_MINORITY_WHOLE = (
    "扎西次仁", "次仁卓玛", "巴特尔", "其木格", "格桑梅朵", "吉克阿优", "洛桑丹增", "乌云其其格", "阿苦日呷",
    "的日莫色", "德吉央宗", "尼玛", "苏日娜", "朴永哲", "木呷子哈", "央金", "旦增曲扎", "那仁高娃",
)  # fmt: skip
_TRANSLITERATED = (
    "约翰·史密斯",
    "玛丽亚·加西亚",
    "安娜·彼得罗娃",
    "大卫·威廉姆斯",
    "穆罕默德·阿里汗",
    "让·杜邦",
    "田中惠子",
    "金美淑",
)
_DOTS = ("·", "·", "·", "•", "・", "‧")
_EN_FIRST_M = (
    "John", "James", "Robert", "Michael", "William", "David", "Richard", "Thomas", "Daniel", "Kwame", "Ahmed", "Luis",
    "Raj", "Hiroshi", "Mark", "Grant", "Jean-Luc", "Sean", "Will", "Frank",
)  # fmt: skip
_EN_FIRST_F = (
    "Mary", "Patricia", "Linda", "Elizabeth", "Susan", "Karen", "Mary-Anne", "Fatima", "Priya", "Yuki", "Grace", "Hope",
    "April", "June", "Rose", "Olga", "Siobhan", "Ana", "Chantal", "Faith",
)  # fmt: skip
_EN_LAST = (
    "Smith", "Johnson", "Williams", "Brown", "Jones", "Garcia", "Miller", "Davis", "Lopez", "Wilson", "Anderson",
    "Taylor", "Moore", "Jackson", "White", "Harris", "Young", "King", "Wright", "Hill", "Green", "Baker", "O'Neill",
    "O'Brien", "McDonald", "MacLeod", "Van der Berg", "de la Cruz", "Nguyen", "Patel", "Okafor", "Al-Rashid",
    "Kowalski", "Müller", "Fernández", "Smith-Jones", "Long", "Payne", "Crohn", "Parkinson", "Murphy", "Foley",
    "Graves", "Banks",
)  # fmt: skip
_PINYIN_LAST = ("Zhang", "Wang", "Li", "Chen", "Liu", "Zhao", "Huang", "Zhou", "Wu", "Xu", "Ouyang", "He", "Long", "An")
_PINYIN_GIVEN = ("Wei", "Fang", "Xiaoming", "Jian-Guo", "Yu Ting", "Lihua", "Min", "Zhiqiang", "Mei-ling", "Haoran")

# ---------------------------------------------------------------------------------------------------------- places

_CITIES = (
    ("110101", "", "北京市", "东城区"), ("110105", "", "北京市", "朝阳区"), ("110108", "", "北京市", "海淀区"),
    ("310110", "", "上海市", "杨浦区"), ("310115", "", "上海市", "浦东新区"), ("310104", "", "上海市", "徐汇区"),
    ("510107", "四川省", "成都市", "武侯区"), ("510104", "四川省", "成都市", "锦江区"),
    ("510105", "四川省", "成都市", "青羊区"), ("440106", "广东省", "广州市", "天河区"),
    ("440305", "广东省", "深圳市", "南山区"), ("330106", "浙江省", "杭州市", "西湖区"),
    ("320106", "江苏省", "南京市", "鼓楼区"), ("420106", "湖北省", "武汉市", "武昌区"),
    ("430104", "湖南省", "长沙市", "岳麓区"), ("500103", "", "重庆市", "渝中区"),
    ("610113", "陕西省", "西安市", "雁塔区"), ("210102", "辽宁省", "沈阳市", "和平区"),
    ("370102", "山东省", "济南市", "历下区"), ("410105", "河南省", "郑州市", "金水区"),
    ("350203", "福建省", "厦门市", "思明区"), ("340104", "安徽省", "合肥市", "蜀山区"),
    ("530102", "云南省", "昆明市", "五华区"), ("650102", "新疆维吾尔自治区", "乌鲁木齐市", "天山区"),
    ("150102", "内蒙古自治区", "呼和浩特市", "新城区"), ("230103", "黑龙江省", "哈尔滨市", "南岗区"),
    ("120101", "", "天津市", "和平区"), ("360102", "江西省", "南昌市", "东湖区"),
    ("450103", "广西壮族自治区", "南宁市", "青秀区"), ("640104", "宁夏回族自治区", "银川市", "兴庆区"),
)  # fmt: skip
_COUNTIES = (
    ("511421", "四川省", "眉山市", "仁寿县"), ("513431", "四川省", "凉山彝族自治州", "昭觉县"),
    ("411329", "河南省", "南阳市", "新野县"), ("341122", "安徽省", "滁州市", "来安县"),
    ("522636", "贵州省", "黔东南苗族侗族自治州", "丹寨县"), ("653130", "新疆", "喀什地区", "巴楚县"),
    ("430525", "湖南省", "邵阳市", "洞口县"), ("371327", "山东省", "临沂市", "莒南县"),
    ("532527", "云南省", "红河州", "泸西县"), ("320322", "江苏省", "徐州市", "沛县"),
    ("361125", "江西省", "上饶市", "横峰县"), ("421087", "湖北省", "荆州市", "松滋市"),
    ("500236", "", "重庆市", "奉节县"), ("621121", "甘肃省", "定西市", "通渭县"),
)  # fmt: skip
_ROADS = (
    "人民南路三段", "建设路", "解放大道", "中山北路", "长江东路", "控江路", "天府大道北段", "科华北路", "延安西路",
    "文三路", "珞喻路", "五一大道", "小寨东路", "和平里东街", "学院南路", "国学巷", "棕南正街", "北京西路",
    "青年大街", "经十路", "花园路", "湖滨南路", "石板街", "三圣街", "东风胡同", "西直门外大街", "一环路南四段",
    "创新二路", "沙坪坝正街", "八一路", "十三陵路", "红星巷",
)  # fmt: skip
_ESTATES = (
    "翠湖花园", "阳光新城", "锦绣家园", "丽都小区", "城市花园", "幸福里", "东方红小区", "铁路新村", "教工宿舍",
    "机床厂家属院", "华府天地", "中海国际社区", "金科公园王府", "邮电公寓", "安居苑", "恒大绿洲",
)  # fmt: skip
_TOWNS = (
    "四开乡",
    "龙正镇",
    "上庄乡",
    "半塔镇",
    "兴仁镇",
    "阿瓦提镇",
    "高沙镇",
    "大店镇",
    "白水镇",
    "安国镇",
    "葛源镇",
    "陈店镇",
    "竹园镇",
    "平襄镇",
)
_VILLAGES = (
    "李家村",
    "红旗村",
    "洒瓦洛且村",
    "团结村",
    "王庄村",
    "石桥村",
    "大湾村",
    "马鞍村",
    "新民村",
    "东沟村",
    "杨柳村",
    "高山村",
    "张集村",
)
_HAN = "一二三四五六七八九十"
_EN_STREETS = (
    "Baker Street", "Maple Avenue", "Elm St.", "Oak Ridge Drive", "St. Mary's Road", "Washington Blvd", "Park Lane",
    "N. Main St", "Queen's Crescent", "King William Way", "5th Avenue", "E 42nd St", "Hawthorne Court", "Old Mill Rd.",
)  # fmt: skip
_EN_TOWNS = (
    ("Springfield", "IL", "62704"), ("Boston", "MA", "02115"), ("Rochester", "MN", "55902"), ("Austin", "TX", "78701"),
    ("Portland", "OR", "97205-1123"), ("Brooklyn", "NY", "11215"), ("Madison", "WI", "53703"), ("Salem", "OR", "97301"),
)  # fmt: skip
_UK_TOWNS = (("London", "NW1 6XE"), ("Leeds", "LS2 9JT"), ("Oxford", "OX3 9DU"), ("Bristol", "BS8 1TH"))
_AREA = (
    ("010", 8), ("021", 8), ("022", 8), ("023", 8), ("024", 8), ("025", 8), ("027", 8), ("028", 8), ("020", 8),
    ("029", 8), ("0571", 8), ("0755", 8), ("0371", 8), ("0731", 8), ("0991", 7), ("0771", 7), ("0931", 7), ("0834", 7),
)  # fmt: skip
_MOBILE = (
    "130", "131", "132", "133", "135", "136", "137", "138", "139", "147", "150", "151", "152", "157", "158", "159",
    "166", "173", "176", "177", "178", "180", "182", "183", "185", "186", "187", "188", "189", "191", "198", "199",
)  # fmt: skip
_DOMAINS = (
    "qq.com", "163.com", "126.com", "foxmail.com", "gmail.com", "outlook.com", "sina.cn", "vip.sina.com", "139.com",
    "hotmail.com", "icloud.com", "mail.example.edu.cn", "stu.med.example.edu.cn", "hospital.example.cn",
    "example.org", "mail.clinic.example.co.uk", "nhs.example.net", "aliyun.com", "yeah.net", "cs.uni-example.de",
    "my-clinic.example.com",
)  # fmt: skip
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_FULLWIDTH = str.maketrans("0123456789", "０１２３４５６７８９")
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)

_R = random.Random


def _digits(rng: _R, count: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(count))


def _check_digit(body: str) -> str:
    """The 18th character of a resident identity number (GB 11643)."""
    return "10X98765432"[sum(int(c) * w for c, w in zip(body, _ID_WEIGHTS, strict=True)) % 11]


def _zh_name(rng: _R) -> str:
    roll = rng.random()
    if roll < 0.05:
        return rng.choice(_WORDLIKE)
    if roll < 0.10:
        return rng.choice(_MINORITY_GIVEN) + rng.choice(_DOTS) + rng.choice(_MINORITY_FATHER)
    if roll < 0.13:
        return rng.choice(_MINORITY_WHOLE)
    if roll < 0.14:
        return rng.choice(_TRANSLITERATED)
    if roll < 0.155:
        return _en_name(rng)
    given = "".join(rng.choice(_GIVEN) for _ in range(1 if rng.random() < 0.35 else 2))
    if roll < 0.22:
        return rng.choice(_COMPOUND) + given
    if roll < 0.25:  # both parents' surnames
        return rng.choice(_SURNAMES[:60]) + rng.choice(_SURNAMES[:60]) + given
    # the common surnames weigh more, the rare and word-like ones still come up
    return rng.choice(_SURNAMES[:40] if rng.random() < 0.5 else _SURNAMES) + given


def _en_parts(rng: _R) -> tuple[str, str, str]:
    """Given name, middle initial (or nothing), surname."""
    if rng.random() < 0.18:
        return rng.choice(_PINYIN_GIVEN), "", rng.choice(_PINYIN_LAST)
    middle = rng.choice("ABCDEFGHJKLMPRSTW") + "." if rng.random() < 0.4 else ""
    return rng.choice(_EN_FIRST_M + _EN_FIRST_F), middle, rng.choice(_EN_LAST)


def _en_name(rng: _R) -> str:
    return " ".join(part for part in _en_parts(rng) if part)


def _id_card(rng: _R, born: tuple[int, int, int], male: bool) -> str:
    code = rng.choice(_CITIES + _COUNTIES)[0]
    year, month, day = born
    if year < 1985 and rng.random() < 0.14:
        serial = rng.randrange(1, 499) * 2 + (1 if male else 0)
        return f"{code}{year % 100:02d}{month:02d}{day:02d}{serial:03d}"
    want_x = rng.random() < 0.2
    while True:
        serial = rng.randrange(0, 499) * 2 + (1 if male else 0)
        body = f"{code}{year}{month:02d}{day:02d}{serial:03d}"
        check = _check_digit(body)
        if not want_x or check == "X":
            break
    card = body + check
    if check == "X" and rng.random() < 0.4:
        card = card[:-1] + "x"
    roll = rng.random()
    if roll < 0.12:
        return f"{card[:6]} {card[6:14]} {card[14:]}"
    if roll < 0.16:
        return f"{card[:6]} {card[6:10]} {card[10:14]} {card[14:]}"
    if roll < 0.19:
        return f"{card[:6]}-{card[6:14]}-{card[14:]}"
    if roll < 0.22:
        return f"{card[:3]} {card[3:6]} {card[6:10]} {card[10:14]} {card[14:]}"
    if roll < 0.235:
        return card.translate(_FULLWIDTH)
    return card


def _mobile(rng: _R) -> str:
    a, b, c = rng.choice(_MOBILE), _digits(rng, 4), _digits(rng, 4)
    forms = (
        [f"{a}{b}{c}"] * 9
        + [f"{a} {b} {c}"] * 3
        + [f"{a}-{b}-{c}"] * 3
        + [f"+86 {a}{b}{c}", f"+86{a}{b}{c}", f"+86-{a}-{b}-{c}", f"+86 {a} {b} {c}", f"0086 {a}{b}{c}"]
        + [f"(+86){a}{b}{c}", f"86-{a}{b}{c}", f"{a}{b[0]} {b[1:]} {c}", f"（+86）{a}-{b}-{c}"]
    )
    text = rng.choice(forms)
    return text.translate(_FULLWIDTH) if rng.random() < 0.015 else text


def _landline(rng: _R) -> str:
    area, size = rng.choice(_AREA)
    number = rng.choice("25678") + _digits(rng, size - 1)
    split = f"{number[:-4]} {number[-4:]}"
    forms = [f"{area}-{number}"] * 5 + [
        f"({area}){number}", f"（{area}）{number}", f"{area} {number}", f"{area}{number}", f"{area}-{split}",
        f"+86-{area[1:]}-{number}", f"（{area}） {split}", f"{area}－{number}",
    ]  # fmt: skip
    text = rng.choice(forms)
    if rng.random() < 0.3:
        extension = _digits(rng, rng.choice((2, 3, 4)))
        text += rng.choice(
            (f"转{extension}", f"-{extension}", f" 转 {extension}", f"分机{extension}", f" ext. {extension}")
        )
    return text


def _phone(rng: _R) -> str:
    return _mobile(rng) if rng.random() < 0.72 else _landline(rng)


def _en_phone(rng: _R) -> str:
    roll = rng.random()
    if roll < 0.25:
        return f"+86 {rng.choice(_MOBILE)} {_digits(rng, 4)} {_digits(rng, 4)}"
    if roll < 0.35:
        return rng.choice(("+44 20 7946 0", "020 7946 0")) + _digits(rng, 3)
    area, last = rng.choice(("617", "415", "212", "312", "507", "718")), f"01{_digits(rng, 2)}"
    forms = (
        f"({area}) 555-{last}", f"{area}-555-{last}", f"{area}.555.{last}", f"+1 {area} 555 {last}",
        f"1-{area}-555-{last}", f"+1 ({area}) 555-{last}", f"{area} 555 {last}",
    )  # fmt: skip
    text = rng.choice(forms)
    return text + rng.choice((" ext. ", " x", " ext ")) + _digits(rng, 3) if rng.random() < 0.15 else text


def _record(rng: _R) -> str:
    year = rng.randint(2015, 2024)
    forms: tuple[Callable[[], str], ...] = (
        lambda: _digits(rng, rng.choice((6, 7, 8, 10))),
        lambda: "00" + _digits(rng, rng.choice((5, 6, 8))),
        lambda: "000" + _digits(rng, 7),
        lambda: "ZY" + _digits(rng, 10),
        lambda: "MZ" + str(year) + _digits(rng, 6),
        lambda: f"{rng.choice('ABDHMP')}{_digits(rng, 7)}",
        lambda: f"{rng.choice('BHKM')}-{_digits(rng, 6)}",
        lambda: f"00-{_digits(rng, 2)}-{_digits(rng, 2)}-{_digits(rng, 2)}",
        lambda: f"{year}-{_digits(rng, 6)}",
        lambda: f"{year}{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}{_digits(rng, 3)}",
        lambda: f"{year}{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}-{_digits(rng, 3)}",
        lambda: f"P{year}{_digits(rng, 8)}",
        lambda: f"{rng.choice('ab')}{_digits(rng, 8)}",
        lambda: "1" + rng.choice("3578") + _digits(rng, 9),
        lambda: f"{rng.choice('MC')} {_digits(rng, 7)}",
    )
    text = rng.choice(forms)()
    return text.translate(_FULLWIDTH) if rng.random() < 0.015 else text


def _en_record(rng: _R) -> str:
    forms: tuple[Callable[[], str], ...] = (
        lambda: _digits(rng, rng.choice((6, 7, 8, 9))),
        lambda: "00" + _digits(rng, 6),
        lambda: f"H-{_digits(rng, 6)}",
        lambda: f"{rng.choice('AEK')}{_digits(rng, 7)}",
        lambda: f"{_digits(rng, 2)}-{_digits(rng, 2)}-{_digits(rng, 2)}",
        lambda: f"MR-{rng.randint(2012, 2024)}-{_digits(rng, 5)}",
        lambda: f"{_digits(rng, 3)} {_digits(rng, 3)} {_digits(rng, 4)}",
        lambda: f"{_digits(rng, 3)}-{_digits(rng, 2)}-{_digits(rng, 3)}",
        lambda: f"UH{_digits(rng, 6)}/{rng.randint(10, 24)}",
    )
    return rng.choice(forms)()


def _address(rng: _R) -> str:
    n, b, u = rng.randint(1, 388), rng.randint(1, 32), rng.randint(1, 4)
    room, road, estate = f"{rng.randint(1, 32)}0{rng.randint(1, 8)}", rng.choice(_ROADS), rng.choice(_ESTATES)
    if rng.random() < 0.27:
        _, province, city, county = rng.choice(_COUNTIES)
        village, town = rng.choice(_VILLAGES), rng.choice(_TOWNS)
        group = rng.choice((str(rng.randint(1, 14)), rng.choice(_HAN)))
        head = rng.choice((province + city + county, province + county, city + county, county, ""))
        tail = rng.choice(
            (
                f"{group}组",
                f"{group}组",
                f"{group}组{n}号",
                f"{group}社",
                f"第{rng.choice(_HAN)}村民小组",
                f"{n}号",
                f"{group}队",
            )
            + (("",) if head else ())
        )
        return head + town + village + tail
    _, province, city, district = rng.choice(_CITIES)
    short = city[:-1]
    house = f"{rng.choice(_HAN)}号" if rng.random() < 0.03 else f"{n}号"
    forms = (
        f"{province}{city}{district}{road}{house}{estate}{b}栋{u}单元{room}室",
        f"{province}{city}{district}{road}{n}号",
        f"{city}{district}{road}{n}号{b}栋{u}单元{room}",
        f"{city}{district}{road}{house}",
        f"{district}{road}{n}弄{b}号{room}室",
        f"{city}{road}{n}弄{b}支弄{u}号{room}室",
        f"{district}{road}{n}号院{b}号楼{u}单元{room}",
        f"{short}{district}{estate}{b}-{u}-{room}",
        f"{short}{road}{n}号",
        f"{estate}{b}栋{u}单元{room}",
        f"{road}{n}号{b}幢{room}室",
        f"{province} {city} {district} {road} {n} 号 {b} 栋 {room} 室".strip(),
        f"{district}{road}{n}号附{b}号",
        f"{city}{district}{rng.choice(('桂溪', '石牌', '望京', '大桥'))}街道{estate}{b}号楼{room}室",
        f"{province}{short}{district}{road}{n}-{b}号{u}楼{rng.choice(('A', 'B', '东', '西'))}户",
        f"{district}{rng.choice(('南苑', '桐梓林', '石井'))}社区{road}{n}号",
    )
    return rng.choice(forms)


def _en_address(rng: _R) -> str:
    n, street = rng.randint(2, 4899), rng.choice(_EN_STREETS)
    unit = rng.choice(("", "", f", Apt {rng.randint(1, 20)}{rng.choice('ABC')}", f" #{rng.randint(2, 40)}", ", Unit 4"))
    roll = rng.random()
    if roll < 0.45:
        town, state, zip_code = rng.choice(_EN_TOWNS)
        return f"{n} {street}{unit}, {town}, {state} {zip_code}"
    if roll < 0.6:
        return f"{n} {street}{unit}"
    if roll < 0.8:
        town, code = rng.choice(_UK_TOWNS)
        return f"{n % 200 + 1}{rng.choice(('', '', 'A', 'b'))} {street}, {town} {code}"
    district, city = rng.choice(
        (("Wuhou District", "Chengdu"), ("Yangpu District", "Shanghai"), ("Haidian", "Beijing"))
    )
    road = rng.choice(("Guoxue Alley", "Renmin South Road", "Kongjiang Road", "Xueyuan Rd"))
    return rng.choice(
        (f"No. {n % 400 + 1} {road}, {district}, {city}", f"Room {n % 30 + 1}02, No. {n % 90 + 1}, {road}, {city}")
    )


def _email(rng: _R) -> str:
    last, given = rng.choice(_PINYIN_LAST).lower(), rng.choice(_PINYIN_GIVEN).lower().replace(" ", "")
    domain = rng.choice(_DOMAINS)
    forms = (
        f"{last}{given}{rng.randint(60, 2012)}", f"{given}.{last}", f"{last}_{given}",
        f"{_digits(rng, rng.choice((6, 9, 10)))}",
        f"{given}.{last}+{rng.choice(('hospital', 'clinic', 'med', '2021'))}", f"{last[0]}-{given}",
        f"{last}{rng.randint(1, 99)}", f"{rng.choice(_MOBILE)}{_digits(rng, 8)}", f"dr.{last}{given[0]}",
        f"{rng.choice(_EN_FIRST_F).lower()}.{rng.randint(1, 99)}", f"{given[0]}{last}.md",
        f"{last}{given}_{rng.randint(1960, 2005)}", f"{given}+{last}",
    )  # fmt: skip
    text = f"{rng.choice(forms).replace('--', '-')}@{domain}"
    roll = rng.random()
    if roll < 0.05:
        return text.upper()
    if roll < 0.08:
        return text.title()
    if roll < 0.095:
        return text.replace("@", "＠")
    return text


def _han_number(value: int) -> str:
    if value <= 10:
        return _HAN[value - 1]
    tens, ones = divmod(value, 10)
    return ("" if tens == 1 else _HAN[tens - 1]) + "十" + (_HAN[ones - 1] if ones else "")


def _birth(rng: _R, born: tuple[int, int, int]) -> str:
    y, m, d = born
    forms = [
        f"{y}年{m}月{d}日", f"{y}年{m}月{d}日", f"{y}年{m:02d}月{d:02d}日", f"{y}-{m:02d}-{d:02d}",
        f"{y}-{m:02d}-{d:02d}", f"{y}-{m}-{d}", f"{y}.{m}.{d}", f"{y}.{m:02d}.{d:02d}", f"{y}/{m}/{d}",
        f"{y}/{m:02d}/{d:02d}", f"{y}年{m}月", f"{y}.{m:02d}", f"{y}{m:02d}{d:02d}", f"{y} 年 {m} 月 {d} 日",
        f"{y}年 {m}月{d}日", f"{y}-{m:02d}", f"{y}-{m:02d}-{d:02d} 00:00:00",
    ]  # fmt: skip
    if 1932 <= y < 2000:
        forms += [f"{y % 100}年{m}月", f"{y % 100}年{m}月{d}日", f"{y % 100}.{m}.{d}"]
    if rng.random() < 0.03:
        year = "".join("〇一二三四五六七八九"[int(c)] for c in str(y))
        return f"{year}年{_han_number(m)}月{_han_number(d)}日"
    text = rng.choice(forms)
    return text.translate(_FULLWIDTH) if rng.random() < 0.012 else text


def _birth_full(rng: _R, born: tuple[int, int, int]) -> str:
    """A written-out form, for sentences in which a bare number would not read as a date."""
    y, m, d = born
    return rng.choice((f"{y}年{m}月{d}日", f"{y}-{m:02d}-{d:02d}", f"{y}.{m}.{d}", f"{y}年{m}月", f"{y}/{m}/{d}"))


def _en_birth(rng: _R, born: tuple[int, int, int]) -> str:
    y, m, d = born
    month = _MONTHS[m - 1]
    suffix = "th" if 10 < d < 14 else {1: "st", 2: "nd", 3: "rd"}.get(d % 10, "th")
    forms = (
        f"{month} {d}, {y}", f"{month} {d}{suffix}, {y}", f"{d} {month} {y}", f"{d}{suffix} {month} {y}",
        f"{month[:3]} {d}, {y}", f"{d:02d}-{month[:3]}-{y}", f"{d} {month[:3]} {y}", f"{m:02d}/{d:02d}/{y}",
        f"{m:02d}/{d:02d}/{y}", f"{m}/{d}/{y}", f"{y}-{m:02d}-{d:02d}", f"{d:02d}.{m:02d}.{y}",
        f"{m:02d}/{d:02d}/{y % 100:02d}", f"{month[:3]}. {d}, {y}", f"{month} {y}",
        f"{d:02d} {month[:3].upper()} {y}",
    )  # fmt: skip
    return rng.choice(forms)


# ---------------------------------------------------------------------------------------- what notes are made of
# A template's {word} is a slot (an identifier of this note, the same wherever it comes again), a number ({n:1-9},
# {f:1-9}, {digits:8}) or a line drawn from the pool of that name, which may hold such words itself.

_POOL: dict[str, list[str]] = {
    "cc": [
        "反复咳嗽咳痰", "胸痛", "腹痛", "头晕头痛", "右上腹痛", "发热", "乏力纳差", "腰痛", "血尿", "便血",
        "心悸气促", "双下肢水肿", "口干多饮", "左侧肢体无力", "皮疹", "关节肿痛", "吞咽困难", "声音嘶哑", "黑便",
        "视物模糊", "言语不清",
    ],
    "dur": ["{n:2-9}天", "{n:2-6}月", "{n:2-20}年", "半年", "1+年", "{n:2-12}小时", "2周", "{n:2-9}+天", "半月余"],
    "dx": [
        "社区获得性肺炎", "急性心肌梗死", "2型糖尿病", "高血压病3级（极高危）", "急性胆囊炎", "克罗恩病", "帕金森病",
        "桥本甲状腺炎", "霍奇金淋巴瘤", "慢性肾脏病4期", "脑梗死（左侧基底节区）", "胃窦腺癌", "肝硬化失代偿期",
        "系统性红斑狼疮", "腰椎间盘突出症", "慢阻肺急性加重", "肺部阴影待查", "贝尔面瘫", "川崎病", "白塞病",
    ],
    "dept": [
        "心内科", "神经内科", "呼吸与危重症医学科", "普外科", "骨科", "肿瘤科", "消化内科", "儿科", "妇产科", "ICU",
        "急诊科", "泌尿外科", "中医科",
    ],
    "hosp": [
        "四川大学华西医院", "北京协和医院", "当地县医院", "仁寿县人民医院", "武汉同济医院", "上海瑞金医院",
        "省人民医院", "中山大学附属第一医院", "安徽省立医院", "外院", "新桥医院", "金堂县第一人民医院",
        "社区卫生服务中心",
    ],
    "city": [
        "武汉", "成都市", "北京", "上海市", "广州", "昆明市", "西安", "海南三亚", "云南省", "西藏", "湖北省黄冈市",
        "浙江温州",
    ],
    "date": [
        "2021-{n:1-12}-{n:1-28}", "202{n:0-4}年{n:1-12}月{n:1-28}日", "2020.{n:1-12}.{n:1-28}",
        "2019/{n:1-12}/{n:1-28}", "2022-0{n:1-9}-1{n:0-9}", "2023-1{n:0-2}-0{n:1-9} {n:8-20}:{n:10-59}",
    ],
    "lab": [
        "白细胞 {f:3-19}×10⁹/L，中性粒细胞百分比 {f:50-95}%，血红蛋白 {n:60-165}g/L",
        "WBC {f:3-19}*10^9/L，N {n:50-95}%，CRP {f:1-180}mg/L，PCT {f:0-20}ng/ml",
        "ALT/AST {n:20-300}/{n:20-300}U/L，TBIL {f:5-90}umol/L",
        "血钾 {f:2-6}mmol/L，血钠 {n:125-148}mmol/L，肌酐 {n:50-680}μmol/L（参考值44-133）",
        "空腹血糖 {f:4-18}mmol/L，HbA1c {f:5-12}%",
        "CEA {f:1-90}ng/mL（0-5），CA19-9 {f:2-990}U/mL，AFP {f:1-40}ng/mL",
        "血气分析：pH 7.{n:20-50}，PaO2 {n:45-98}mmHg，PaCO2 {n:28-70}mmHg，BE -{f:1-9}",
        "D-二聚体 {f:0-9}mg/L FEU，PT {f:10-16}s，INR {f:0-3}",
        "尿常规：PRO（{o:+~++~-}），RBC {n:0-300}/μL；大便隐血（{o:+~-}）",
        "BNP {n:50-9000}pg/ml，cTnI {f:0-12}ng/mL，CK-MB {n:5-90}U/L",
    ],
    "vit": [
        "T {f:36-40}℃，P {n:55-130}次/分，R {n:14-30}次/分，BP {n:90-190}/{n:50-110}mmHg",
        "生命体征：体温36.{n:0-9}℃ 脉搏{n:60-110}次/分 血压{n:90-180}/{n:50-105}mmHg SpO2 {n:86-100}%",
        "BP:{n:90-190}/{n:50-110}mmHg，HR {n:50-130}bpm，SpO₂ {n:88-99}%@{n:2-5}L/min",
    ],
    "rx": [
        "阿司匹林肠溶片 100mg qd po", "0.9%氯化钠 {n:100-500}ml + 头孢曲松 2.0g ivgtt qd", "二甲双胍 0.5g tid",
        "胰岛素 {n:4-20}-{n:4-20}-{n:4-20}u 三餐前皮下注射", "阿托伐他汀钙片 20mg qn", "美罗培南1g q8h 静滴",
        "呋塞米20mg iv st", "白芍15g 黄芪30g 王不留行10g，每日1剂，水煎分2次服", "甲泼尼龙40mg bid×{n:3-10}天",
        "利妥昔单抗375mg/m² d1，CHOP方案d2-6，21天为1周期", "云南白药胶囊 0.5g 3次/日",
    ],
    "exam": [
        "双侧巴宾斯基征（-），克尼格征（-），布鲁津斯基征（-）",
        "Murphy征（{o:+~-}），麦氏点压痛（{o:+~-}），移动性浊音阴性", "双肺呼吸音粗，右下肺可闻及湿啰音",
        "神志清楚，查体合作，双侧瞳孔等大等圆，直径约{n:2-4}mm", "心界不大，律齐，各瓣膜区未闻及杂音",
        "GCS评分{n:8-15}分，NIHSS评分{n:0-20}分，Braden评分{n:9-23}分",
        "右膝Lachman试验（+），麦氏征（-），肌力{n:2-5}级",
    ],
    "img": [
        "CT（{date}）示右肺上叶结节，大小约{n:4-30}mm×{n:4-30}mm",
        "彩超：肝右叶斜径{f:10-16}cm，门静脉内径{f:0-2}cm，脾厚{n:28-60}mm", "MRI 3.0T平扫+增强：T7-T8椎体异常信号",
        "心脏彩超：LVEF {n:30-68}%，LA {n:30-52}mm，E/A＜1", "胃镜：胃窦溃疡（A1期），Hp（+），活检4块",
        "冠脉造影：LAD近段狭窄{n:50-99}%",
    ],
    "plan": [
        "予{rx}，密切观察病情变化。", "继续目前治疗，{n:3-7}天后复查。", "完善相关检查，请上级医师查房。",
        "建议{n:1-6}月后门诊复诊，不适随诊。", "限期手术，备血{n:2-8}U。", "告病重，心电监护，吸氧{n:2-5}L/min。",
        "低盐低脂饮食，监测血压、血糖。",
    ],
    "Z": [
        "{lab}。", "{vit}。", "{exam}。", "{img}。", "予{rx}。", "{lab}；{img}。", "{vit}，{exam}。",
        "诊断：{dx}。{plan}", "{date}于{hosp}行检查，{img}。", "既往{dx}病史{dur}，否认肝炎、结核病史。", "{plan}",
    ],
    # labels
    "ln": [
        "姓名", "姓名", "姓名", "姓名", "姓 名", "姓　名", "姓  名", "患者姓名", "病人姓名", "患者", "姓名（Name）",
        "受检者", "病员姓名", "患儿姓名", "Name",
    ],
    "lid": [
        "身份证号", "身份证号", "身份证号码", "身份证", "公民身份号码", "证件号码", "证件号", "身 份 证 号",
        "身份证件号", "身份证/护照号", "ID Card No.",
    ],
    "lph": [
        "电话", "联系电话", "联系电话", "手机", "手机号", "手机号码", "联系方式", "电 话", "Tel", "家属电话",
        "联系人电话", "电话号码", "家庭电话", "☎",
    ],
    "lmrn": [
        "住院号", "住院号", "住院号", "门诊号", "病案号", "病案号", "就诊卡号", "病历号", "登记号", "住 院 号",
        "病人ID", "就诊号", "住院号码", "门诊病历号", "MRN", "患者ID", "住院病案号", "住院No.", "ID号", "病 案 号",
        "住院号/病案号", "诊疗卡号",
    ],
    "lad": [
        "住址", "家庭住址", "家庭住址", "现住址", "地址", "联系地址", "户口地址", "通讯地址", "住 址", "家庭地址",
        "常住地址", "户籍所在地", "现居住地", "居住地",
    ],
    "lem": ["邮箱", "电子邮箱", "E-mail", "Email", "电子邮件", "邮 箱", "联系邮箱", "email", "电邮"],
    "lbd": [
        "出生日期", "出生日期", "出生年月", "生日", "出生", "出生年月日", "出 生 日 期", "出生日期(DOB)", "生于",
        "DOB", "出生时间",
    ],
    "c": ["：", "：", "：", "：", ":", ":", ": ", "： ", " ：", " : ", " ", "", "\t", "  ", "：　"],
    "ec": [": ", ": ", ": ", ":", " : ", "\t", " ", " - ", "=", ":  "],
    "en_ln": ["Name", "Patient", "Patient Name", "Pt Name", "Patient's name", "PATIENT", "Pt", "Full name"],
    "en_lbd": ["DOB", "DOB", "D.O.B.", "Date of Birth", "Birth date", "Birthdate", "Born", "date of birth"],
    "en_lmrn": [
        "MRN", "MRN", "MRN#", "Medical Record Number", "Hospital No.", "Chart #", "Hosp. No.", "Patient ID", "MR#",
        "Medical record no.", "Unit No.",
    ],
    "en_lph": ["Phone", "Tel", "Mobile", "Contact no.", "Cell", "Telephone", "Home phone", "Tel.", "Ph"],
    "en_lad": ["Address", "Home address", "Residence", "Mailing address", "ADDRESS", "Lives at"],
    "en_lem": ["Email", "E-mail", "e-mail", "Email address", "Contact email"],
    "en_lid": ["ID card", "Chinese ID No.", "National ID", "Resident ID card no.", "Identity card number"],
    # English matter
    "E": [
        "WBC {f:3-19} x10^9/L, Hgb {n:7-16} g/dL, Plt {n:90-450}.",
        "BP {n:90-190}/{n:50-110}, HR {n:50-130}, RR {n:12-28}, SpO2 {n:88-99}% on RA.",
        "Murphy's sign negative, McBurney's point non-tender, Babinski downgoing bilaterally.",
        "CT abdomen ({edate}) showed a {n:4-40} x {n:4-40} mm lesion in segment VII.",
        "Started on aspirin 81 mg PO daily and metoprolol 25 mg BID.", "Impression: {edx}. Plan as above.",
        "Patient denies fever, chills or weight loss.", "Creatinine {n:50-300} umol/L (ref 44-133), eGFR {n:15-90}.",
        "Echo: EF {n:25-65}%, no effusion.", "Foley catheter removed on POD {n:1-5}.",
        "Past history notable for {edx} and Parkinson disease.",
    ],
    "edx": [
        "Crohn's disease", "community-acquired pneumonia", "type 2 diabetes mellitus", "Hodgkin lymphoma",
        "NSTEMI (Killip II)", "Graves disease", "acute cholecystitis", "Wilson disease", "left MCA stroke",
    ],
    "edate": [
        "{n:1-12}/{n:1-28}/2021", "2022-0{n:1-9}-1{n:0-9}", "March {n:1-28}, 2020", "{n:10-28} Oct 2023",
        "Jan {n:1-28}, 2019",
    ],
    "edept": [
        "Cardiology", "Gastroenterology", "Neurology", "Orthopedic Surgery", "the Emergency Department", "Oncology",
    ],
    "ehosp": [
        "Massachusetts General Hospital", "West China Hospital", "St. Thomas' Hospital", "Mayo Clinic",
        "an outside hospital",
    ],
    "ehosp2": ["Riverside Community Hospital", "the county clinic", "Northside Medical Center"],
    "kin": [
        "其子", "其女", "其妻", "其夫", "患者之子", "患者女儿", "其母", "其父", "患者家属", "患者配偶", "家属",
        "其弟", "患者丈夫", "其儿媳", "监护人",
    ],
    "rel": ["父子", "夫妻", "母女", "兄弟", "配偶", "女儿", "儿子", "父亲", "同事"],
    "doc": [
        "主管医师", "主治医师", "住院医师", "经治医师", "管床医生", "主任医师", "手术医师", "责任护士", "记录者",
        "会诊医师", "接诊医师", "审核医师", "报告医师", "麻醉医师", "医师",
    ],
    "title": ["主任医师", "副主任医师", "主治医师", "主任", "医师", "医生", "教授", "护士长", "住院医师"],
}  # fmt: skip


class _Note:
    """Collects a text and the spans planted in it."""

    def __init__(self, rng: _R) -> None:
        self.rng = rng
        self.spans: list[Span] = []
        self._parts: list[str] = []
        self._length = 0
        self._slots: dict[str, tuple[str, str]] = {}
        self.male = rng.random() < 0.5
        year = rng.randint(1932, 2003) if rng.random() < 0.88 else rng.randint(2004, 2020)
        self.born = (year, rng.randint(1, 12), rng.randint(1, 28))
        first, middle, last = _en_parts(rng)
        self._english = (first, middle, last)

    def put(self, text: str, kind: str = "") -> None:
        if kind:
            self.spans.append((kind, self._length, self._length + len(text)))
        self._parts.append(text)
        self._length += len(text)

    def text(self) -> str:
        return "".join(self._parts)

    def fill(self, template: str) -> None:
        for piece in re.split(r"(\{[^{}]+\})", template):
            if piece.startswith("{") and piece.endswith("}"):
                self._word(piece[1:-1])
            elif piece:
                self.put(piece)

    def _word(self, word: str) -> None:
        base, _, argument = word.partition(":")
        stem = base.rstrip("0123456789")
        rng = self.rng
        if word == "H":
            _header(self)
        elif word == "EH":
            _english_header(self)
        elif base == "n":
            low, high = argument.split("-")
            self.put(str(rng.randint(int(low), int(high))))
        elif base == "f":
            low, high = argument.split("-")
            self.put(f"{rng.uniform(int(low) + 0.1, int(high)):.1f}")
        elif base == "digits":
            self.put(_digits(rng, int(argument)))
        elif base == "o":
            self.put(rng.choice(argument.split("~")))
        elif base == "han":
            self.put(rng.choice(_HAN))
        elif base in ("bad18", "bad15", "d11"):
            self.put(_FAKES[base](rng))
        elif base in _POOL:
            self.fill(rng.choice(_POOL[base]))
        elif stem in _SLOTS:
            if base not in self._slots:
                kind, make = _SLOTS[stem]
                self._slots[base] = (kind, make(self))
            kind, value = self._slots[base]
            self.put(value, kind)
        else:
            raise KeyError(word)

    def slot(self, base: str) -> str:
        if base not in self._slots:
            kind, make = _SLOTS[base]
            self._slots[base] = (kind, make(self))
        return self._slots[base][1]

    def english_name(self, form: str) -> str:
        first, middle, last = self._english
        if form == "surname":
            return last
        given = f"{first} {middle}".strip()
        if form == "comma":
            return self.rng.choice((f"{last}, {given}", f"{last.upper()}, {given}", f"{last.upper()}, {given.upper()}"))
        if form == "caret":
            return "^".join(part.strip(".").upper() for part in (last, first, middle) if part)
        if form == "any":
            return self.rng.choice((f"{given} {last}",) * 4 + (f"{last}, {given}", f"{first} {last.upper()}"))
        return f"{given} {last}"

    def stray(self) -> bool:
        """Whether something planted also stands somewhere unplanted, which would make the truth wrong."""
        text = self.text()
        for _, start, end in self.spans:
            needle = text[start:end]
            pattern = re.escape(needle)
            if needle.isascii():
                pattern = rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])"
            for hit in re.finditer(pattern, text):
                if not any(s <= hit.start() and hit.end() <= e for _, s, e in self.spans):
                    return True
        return False


def _spaced(note: _Note) -> str:
    name = note.slot("p")
    return note.rng.choice((" ", "　", "  ")).join(name) if len(name) == 2 else name


_SLOTS: dict[str, tuple[str, Callable[[_Note], str]]] = {
    "p": ("name", lambda note: _zh_name(note.rng)),
    "ps": ("name", _spaced),
    "r": ("name", lambda note: _zh_name(note.rng)),
    "d": ("name", lambda note: _zh_name(note.rng)),
    "x": ("name", lambda note: _zh_name(note.rng)),
    "id": ("id_card", lambda note: _id_card(note.rng, note.born, note.male)),
    "xid": (
        "id_card",
        lambda note: _id_card(note.rng, (note.rng.randint(1940, 2001), 3, note.rng.randint(1, 28)), True),
    ),
    "ph": ("phone", lambda note: _phone(note.rng)),
    "mob": ("phone", lambda note: _mobile(note.rng)),
    "tel": ("phone", lambda note: _landline(note.rng)),
    "mrn": ("record_number", lambda note: _record(note.rng)),
    "addr": ("address", lambda note: _address(note.rng)),
    "mail": ("email", lambda note: _email(note.rng)),
    "bd": ("birth_date", lambda note: _birth(note.rng, note.born)),
    "bdf": ("birth_date", lambda note: _birth_full(note.rng, note.born)),
    "nb": (
        "birth_date",
        lambda note: f"202{note.rng.randint(0, 4)}年{note.rng.randint(1, 12)}月{note.rng.randint(1, 28)}日",
    ),
    "cbd": ("birth_date", lambda note: f"{note.born[0]}{note.born[1]:02d}{note.born[2]:02d}"),
    "sex": ("", lambda note: "男" if note.male else "女"),
    "age": ("", lambda note: str(2021 - note.born[0])),
    "en": ("name", lambda note: note.english_name("full")),
    "eany": ("name", lambda note: note.english_name("any")),
    "es": ("name", lambda note: note.english_name("surname")),
    "ecm": ("name", lambda note: note.english_name("comma")),
    "eca": ("name", lambda note: note.english_name("caret")),
    "er": ("name", lambda note: _en_name(note.rng)),
    "ed": ("name", lambda note: _en_name(note.rng)),
    "eds": ("name", lambda note: _en_parts(note.rng)[2]),
    "ebd": ("birth_date", lambda note: _en_birth(note.rng, note.born)),
    "emrn": ("record_number", lambda note: _en_record(note.rng)),
    "eph": ("phone", lambda note: _en_phone(note.rng)),
    "eaddr": ("address", lambda note: _en_address(note.rng)),
    "esex": ("", lambda note: note.rng.choice(("M", "Male")) if note.male else note.rng.choice(("F", "Female"))),
    "he": ("", lambda note: "he" if note.male else "she"),
    "mr": ("", lambda note: "Mr." if note.male else note.rng.choice(("Mrs.", "Ms."))),
}


def _bad18(rng: _R) -> str:
    """Eighteen digits built like an identity number, whose check digit is wrong."""
    date = f"{rng.randint(1940, 2005)}{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}"
    body = rng.choice(_CITIES)[0] + date + _digits(rng, 3)
    return body + rng.choice([c for c in "0123456789" if c != _check_digit(body)])


_FAKES: dict[str, Callable[[_R], str]] = {
    "bad18": _bad18,
    "bad15": lambda rng: (
        f"{rng.choice('3589')}{_digits(rng, 7)}{rng.randint(13, 99)}{rng.randint(32, 99)}{_digits(rng, 3)}"
    ),
    "d11": lambda rng: rng.choice(_MOBILE) + _digits(rng, 8),
}

# ---------------------------------------------------------------------------------------------------------- headers

_FIELDS: tuple[tuple[str, str, float], ...] = (
    ("ln", "{p}", 1.0), ("=性别", "{sex}", 0.8), ("=年龄", "{age}岁", 0.7), ("lbd", "{bd}", 0.48),
    ("lid", "{id}", 0.58), ("lph", "{ph}", 0.5), ("lmrn", "{mrn}", 0.55), ("lad", "{addr}", 0.48),
    ("lem", "{mail}", 0.45), ("=科室", "{dept}", 0.35), ("=床号", "{n:1-60}床", 0.3), ("=入院日期", "{date}", 0.35),
    ("=民族", "{o:汉族~彝族~维吾尔族~藏族~回族}", 0.2), ("=婚姻", "{o:已婚~未婚~离异}", 0.2),
    ("=职业", "{o:农民~退休~教师~工人~学生}", 0.2), ("=联系人", "{r}", 0.25), ("=入院诊断", "{dx}", 0.2),
    ("=籍贯", "{o:四川成都~河南南阳~湖北武汉~安徽}", 0.15), ("=费别", "{o:城镇职工医保~新农合~自费}", 0.15),
)  # fmt: skip
_EN_FIELDS: tuple[tuple[str, str, float], ...] = (
    ("en_ln", "{eany}", 1.0), ("en_lbd", "{ebd}", 0.6), ("en_lmrn", "{emrn}", 0.6), ("=Sex", "{esex}", 0.6),
    ("=Age", "{age}", 0.4), ("en_lph", "{eph}", 0.5), ("en_lad", "{eaddr}", 0.5), ("en_lem", "{mail}", 0.45),
    ("en_lid", "{id}", 0.25), ("=Attending", "{ed}", 0.3), ("=Admitted", "{edate}", 0.35),
    ("=Room/Bed", "{n:100-600}-{o:A~B~2}", 0.25), ("=Next of kin", "{er}", 0.25), ("=Diagnosis", "{edx}", 0.25),
)  # fmt: skip


def _choose(note: _Note, fields: tuple[tuple[str, str, float], ...], native: bool = False) -> list[tuple[str, str]]:
    rng = note.rng
    chosen: list[tuple[str, str]] = []
    for label, value, chance in fields:
        if rng.random() >= chance:
            continue
        if label.startswith("="):
            chosen.append((label[1:], value))
            continue
        words = [word for word in _POOL[label] if not native or not (word[0].isascii() or word[-1].isascii())]
        chosen.append((rng.choice(words), value))
    if rng.random() < 0.35:
        rest = chosen[1:]
        rng.shuffle(rest)
        chosen = chosen[:1] + rest if rng.random() < 0.7 else rest + chosen[:1]
    return chosen


def _table(note: _Note, pairs: list[tuple[str, str]], bar: str, rule: bool) -> None:
    """Labels in one row, values in the row below."""
    edge = bar.strip() if bar.strip() == "|" else ""
    note.put(
        f"{edge} {bar.join(label for label, _ in pairs)} {edge}\n" if edge else bar.join(x for x, _ in pairs) + "\n"
    )
    if rule:
        note.put("|" + "---|" * len(pairs) + "\n")
    note.put(f"{edge} " if edge else "")
    for index, (_, value) in enumerate(pairs):
        note.put(bar if index else "")
        note.fill(value)
    note.put(f" {edge}" if edge else "")


def _labelled(note: _Note, label: str, value: str, colon: str, joiner: str) -> None:
    if not colon and label[-1].isascii():
        colon = ":"
    note.put(label + colon)
    note.fill(value)
    note.put(joiner)


def _header(note: _Note) -> None:
    rng = note.rng
    style = rng.randrange(17)
    pairs = _choose(note, _FIELDS, native=style == 5)
    colon = rng.choice(_POOL["c"])
    if style in (0, 1):
        for label, value in pairs:
            _labelled(note, label, value, colon if style == 0 else rng.choice(_POOL["c"]), "\n")
    elif style in (2, 3, 4):
        joiner = {2: rng.choice(("    ", "　　", "  ")), 3: rng.choice(("，", "；", ", ", ";")), 4: "\t"}[style]
        colon = colon if colon.strip() else "："
        for index, (label, value) in enumerate(pairs):
            wrap = "\n" if style == 2 and index % 4 == 3 else joiner
            _labelled(note, label, value, colon, wrap if index < len(pairs) - 1 else "\n")
    elif style == 5:
        for label, value in pairs:
            _labelled(note, label, value, "", "")
        note.put("\n")
    elif style == 6:
        opening, closing = rng.choice(
            (("【", "】"), ("[", "]"), ("［", "］"), ("《", "》"), ("**", "**："), ("(", ")"))
        )
        for label, value in pairs:
            _labelled(
                note, f"{opening}{label}{closing}", value, " " if rng.random() < 0.3 else "", rng.choice(("\n", " "))
            )
    elif style == 7:
        note.put("|")
        for label, value in pairs:
            note.put(f" {label} | ")
            note.fill(value)
            note.put(" |")
        note.put("\n")
    elif style == 8:
        _table(note, pairs, " | ", rng.random() < 0.5)
        note.put("\n")
    elif style == 9:
        _table(note, pairs, "\t", False)
        note.put("\n")
    elif style == 10:
        for label, value in pairs:
            _labelled(note, label, value, rng.choice(("\n", "：\n", ":\r\n")), "\n")
    elif style == 11:
        note.fill("{p}" + rng.choice(("（", "(")) + "{sex}，{age}岁，")
        rest = [pair for pair in pairs if pair[1] not in ("{p}", "{sex}", "{age}岁")]
        for index, (label, value) in enumerate(rest):
            _labelled(note, label, value, colon if colon != "\t" else "", "，" if index < len(rest) - 1 else "")
        note.put("）\n")
    elif style == 12:
        note.put("{")
        for index, (label, value) in enumerate(pairs):
            note.put(f'"{label}": "')
            note.fill(value)
            note.put('"' + (", " if index < len(pairs) - 1 else ""))
        note.put("}\n")
    elif style == 13:
        opened, closed = rng.choice((("<td>{}</td><td>", "</td>"), ("<{}>", "</{}>"), ("<p><b>{}：</b>", "</p>")))
        for label, value in pairs:
            tag = label.replace(" ", "").replace("　", "")
            note.put(opened.format(tag))
            note.fill(value)
            note.put(closed.format(tag) + rng.choice(("", "\n")))
        note.put("\n")
    elif style == 14:
        blank = rng.choice(("__", "_", "＿＿", "……", "___"))
        for label, value in pairs:
            if value == "{mail}":
                continue  # an underscore may belong to an e-mail address
            note.put(f"{label}{blank}")
            note.fill(value)
            note.put(f"{blank} ")
        note.put("\n")
    elif style == 15:
        for label, value in pairs:
            _labelled(
                note, label, "{ps}" if value == "{p}" else value, rng.choice(("：", ": ")), rng.choice(("  ", "\n"))
            )
        note.put("\n")
    else:
        for index, (label, value) in enumerate(pairs):
            _labelled(note, f"{index + 1}{rng.choice(('.', '、', '）'))}{label}", value, "：", "\n")


def _english_header(note: _Note) -> None:
    rng = note.rng
    pairs = _choose(note, _EN_FIELDS)
    style = rng.randrange(9)
    colon = rng.choice([c for c in _POOL["ec"] if c != " "])
    if style in (0, 1, 2):
        for label, value in pairs:
            _labelled(note, label, value, colon if style else rng.choice(_POOL["ec"]), "\n")
    elif style == 3:
        for index, (label, value) in enumerate(pairs):
            _labelled(note, label, value, ": ", rng.choice(("; ", "   ", " | ")) if index < len(pairs) - 1 else "\n")
    elif style == 4:
        note.put("|")
        for label, value in pairs:
            note.put(f" {label} | ")
            note.fill(value)
            note.put(" |")
        note.put("\n")
    elif style == 5:
        _table(note, pairs, rng.choice((" | ", "\t")), False)
        note.put("\n")
    elif style == 6:
        for label, value in pairs:
            _labelled(note, label.upper(), value, rng.choice((":\n", "\n")), "\n")
    elif style == 7:
        note.put("{")
        for index, (label, value) in enumerate(pairs):
            note.put(f'"{label.lower().replace(" ", "_")}": "')
            note.fill(value)
            note.put('"' + (", " if index < len(pairs) - 1 else ""))
        note.put("}\n")
    else:
        for label, value in pairs:
            _labelled(note, f"[{label}]", value, " ", "\n")


# ------------------------------------------------------------------------------------------------- planted: Chinese

_POOL |= {
    "hpi": [
        "现病史：患者{p}于{dur}前无明显诱因出现{cc}，为求进一步诊治，{date}来我院，门诊以“{dx}”收入{dept}。",
        "患者{p}，{sex}，{age}岁，因“{cc}{dur}”于{date}入院。",
        "{p}，{sex}性，{age}岁。因{cc}{dur}，加重{n:1-6}天入住我院{dept}。",
        "主诉：{cc}{dur}。\n现病史：{dur}前{p}受凉后出现{cc}，在{hosp}予{rx}，效果欠佳。",
        "患者 {p} {dur}前出现{cc}，{date}于{hosp}就诊，考虑{dx}，转入我科。",
        "病人{p}因反复{cc}{dur}、再发{n:1-9}小时，由{kin}{r}陪同入院。",
        "患者系{p}，{age}岁{sex}性，{bdf}生，{cc}{dur}。",
        "{kin}{r}代诉：患者{dur}前出现{cc}。",
        "患者{bdf}出生于{city}，{dur}前开始{cc}。",
    ],
    "later": [
        "今晨查房，{p}精神可，诉{cc}较前缓解。", "向{p}及{kin}{r}交代病情，二人表示理解。",
        "{p}于{date}在全麻下行手术，过程顺利。", "夜间{p}睡眠尚可，未诉特殊不适。", "予{rx}后，{p}症状好转。",
        "{date}，{p}复查：{lab}。", "考虑{p}年龄较大、合并{dx}，手术风险高。", "{r}要求保守治疗，并签署知情同意书。",
        "与{r}反复沟通后，同意转{dept}。", "查看{p}后示：{plan}", "经{dept}{d3}{title}会诊，建议予{rx}。",
        "已电话通知{r}（{mob}）。", "嘱{p}出院后{n:1-4}周复诊，{plan}", "{d2}{title}查房后指出：{Z}",
        "随访时{p}自述无不适。", "陪护{r}已知晓跌倒风险。", "治疗期间{p}未再出现{cc}。", "{r}到场后，{p}情绪平稳。",
    ],
    "S": [
        "{doc}：{d}\n{date}", "{doc}签名：{d}", "{doc}签字:{d}    {date}", "医师签名：{d}/{d2}",
        "上级医师：{d}　住院医师：{d2}", "                {d}", "{doc} {d}", "签名：{d}", "签名 {d}  日期 {date}",
        "记录者：{d}\n审签：{d2}", "（{d}）", "—— {d} {date}", "医师：{d}；护士：{d2}", "[{doc}] {d}",
        "{d} {title}\n{hosp}{dept}", "{doc}\t{d}", "{doc}|{d}|{date}",
        "报告医生：{d} 审核医生：{d2} 报告时间：{date}", "患者签名：{p}    与患者关系：本人",
        "家属签名：{r}（{rel}） {date}", "经治医师\n{d}", "电子签名:{d}@{date}", "{date} {d}", "{date}\n{d}",
        "医生签章：{d}（工号{n:1000-9999}）", "主刀：{d}，一助：{d2}，器械护士：{d3}",
    ],
    "pub": [
        "联系我们：{tel}，邮箱 {mail}。", "科室电话 {tel}", "如有不适请致电{tel}，或发邮件至{mail}。",
        "医院地址：{addr}，咨询电话{tel}", "预约复诊：{tel}", "病理切片请寄：{addr}，{d4}收，{mob}。",
        "报告请发至{mail}", "随访邮箱{mail}；随访护士{d4}，{mob}",
    ],
    # whole documents
    "ZH": [
        "入院记录\n{H}{hpi}\n{Z}\n{later}\n{S}", "{hosp}入院记录\n\n{H}\n{hpi}{Z}{later}\n{S}",
        "{H}{hpi}\n既往史：{Z}\n{S}", "首次病程记录\n{date}\n{hpi}\n{Z}\n诊断依据：{lab}。\n{S}", "{H}{Z}",
        "{H}\n{later}\n{S}\n", "{H}{later}{Z}",
        "出院小结\n{H}入院情况：{hpi}\n诊疗经过：{later}{Z}\n出院医嘱：{plan}\n{pub}\n{S}",
        "出院记录  {lmrn}{c}{mrn}\n{hpi}\n{later}\n出院诊断：{dx}\n{S}",
        "出院证明书\n兹有{p}，{sex}，{age}岁，{lid}{c}{id}，住{addr}，因{dx}于{date}入院，{date}出院。\n{S}",
        (
            "会诊申请单\n申请科室：{dept}　会诊科室：{dept}\n{H}{hpi}目前诊断：{dx}。{Z}请{d3}{title}协助诊治。"
            "\n申请医师：{d}"
        ),
        (
            "会诊意见：\n病史敬悉。查体：{exam}。考虑{dx}，建议{rx}。{p}如病情变化随时联系，{lph}{c}{ph}。"
            "\n会诊医师：{d}"
        ),
        (
            "院际会诊邀请函\n{hosp}：\n我院患者{p}（{lmrn}{c}{mrn}）诊断{dx}，特邀请贵院{d3}教授于{date}来院会诊。"
            "\n联系人：{d}　电话：{tel}　邮箱：{mail}\n地址：{addr}"
        ),
        "护理记录单\n{date} {p} {lmrn}{c}{mrn}\n{vit}\n{later}\n责任护士：{d}",
        "护理记录\n床号 {n:1-60} 姓名 {p} {lmrn}{c}{mrn}\n{date} 患者神清，{vit}。{later}\n护士签名 {d}",
        (
            "护理交班（{date}）\n{n:1-60}床 {p}：{dx}，{vit}。\n{n:1-60}床 {x1}：术后第{n:1-6}天，引流管通畅。"
            "\n{n:1-60}床{x2}，今日出院。\n交班者：{d}  接班者：{d2}"
        ),
        "床号|姓名|住院号|诊断\n{n:1-30}|{x1}|{mrn}|{dx}\n{n:1-30}|{x2}|{mrn2}|{dx}\n{n:1-30}|{x3}|{mrn3}|{dx}\n",
        "床号\t姓名\t年龄\t联系电话\n{n:1-30}\t{x1}\t{n:20-90}\t{mob}\n{n:1-30}\t{x2}\t{n:20-90}\t{mob2}\n",
        (
            "| 姓名 | 身份证号 | 手机 | 住址 |\n|---|---|---|---|\n| {x1} | {xid} | {mob} | {addr} |\n"
            "| {x2} | {xid2} | {ph2} | {addr2} |"
        ),
        "随访登记表\n序号,姓名,出生日期,电话,邮箱\n1,{p},{bd},{ph},{mail}\n2,{x1},{bd2},{ph2},{mail2}\n",
        "密切接触者名单：{x1}（{rel}，{mob}，{addr}）；{x2}（{rel}，{mob2}，{addr2}）。",
        "转诊单（存根）\n{H}因病情需要，将{p}转入{hosp}。\n{Z}\n转诊医师：{d}　联系电话：{ph2}\n{date}",
        (
            "双向转诊（转出）单\n{hosp}：\n现有患者{p} 性别{sex} 年龄{age} 因病情需要，需转入贵单位，请予以接诊。"
            "\n家庭住址{addr} 联系电话{ph}\n初步印象：{dx}\n转诊医生（签字）：{d}"
        ),
        (
            "尊敬的{d}{title}：\n您好！现将我院患者{p}（{bdf}生，{lmrn}{c}{mrn}）的情况介绍如下：{Z}{Z}\n"
            "盼复，{mail}。\n{d2}\n{date}"
        ),
        (
            "患者：医生您好，我叫{p}，今年{age}岁，{cc}{dur}了，要紧吗？\n医生：您好，检查做过吗？\n"
            "患者：做了，{lab}。\n医生：{plan}{p}您可以加我助理微信同号{mob}。"
        ),
        (
            "【图文咨询】\n患者（{p}，{sex}，{age}岁）：{cc}{dur}\n{d}医生：请问有发热吗？\n"
            "患者：没有。报告发您邮箱了，我的邮箱是{mail}\n{d}医生：收到，{plan}"
        ),
        (
            "用户：您好，我是{p}的{o:女儿~儿子~爱人}，我叫{r}，电话{ph}，想问一下{cc}挂什么科\n"
            "客服：请提供就诊卡号\n用户：{mrn}\n客服：好的，{r}女士/先生，建议挂{dept}。"
        ),
        "问：我爸{p}，{bdf}的，住{addr}，{dx}，能报销吗？我手机{mob}\n答：请携带身份证（{id}）到窗口办理。",
        (
            "患者:你好\n医生:你好，请描述病情\n患者:{cc}{dur}，之前在{hosp}是{d}看的\n医生:什么时候的事\n"
            "患者:{date}，住院号好像是{mrn}\n医生:{plan}"
        ),
        (
            "手术知情同意书\n患者姓名：{p}　性别：{sex}　年龄：{age}　{lmrn}{c}{mrn}\n术前诊断：{dx}\n"
            "患者授权亲属签名：{r}　与患者关系：{rel}　身份证号：{id}\n谈话医师：{d}"
        ),
        (
            "授权委托书\n本人{p}，{lid}{c}{id}，现委托{r}（{rel}），{lid}{c}{xid}，电话{ph}，代为签署医疗文书。"
            "\n委托人：{p}　受托人：{r}\n{date}"
        ),
        "手术记录\n患者姓名 {p} {lmrn}{c}{mrn}\n手术者 {d} 助手 {d2}、{d3} 麻醉者 {d4}\n术中见：{img}。{p}安返病房。",
        (
            "病理报告单\n病理号 {n:100000-999999}\n{H}肉眼所见：灰白组织一块，{f:1-4}×{f:1-3}×{f:0-1}cm。"
            "\n诊断：{dx}\n报告医师：{d} 复核：{d2}"
        ),
        "超声检查报告\n{H}超声所见：{img}。\n检查医师：{d}　记录：{d2}　{date}",
        (
            "居民死亡医学证明书\n死者姓名 {p} 性别 {sex} {lbd}{c}{bd} {lid}{c}{id}\n户籍地址 {addr}\n"
            "家属姓名 {r} 联系电话 {ph}\n医师签名 {d}"
        ),
        (
            "新生儿记录\n{p}之{o:子~女}，{nb}{n:1-23}时出生，出生体重{n:2400-4100}g，Apgar评分9-10-10。"
            "母亲{p}，{lmrn}{c}{mrn}，父亲{r}，{mob}。"
        ),
        (
            "出生医学证明（副页）\n新生儿姓名：{x1}\n出生时间：{nb}\n母亲姓名：{p}　身份证号：{id}\n"
            "父亲姓名：{r}　身份证号：{xid}\n住址：{addr}"
        ),
        "电话随访记录\n{date} 拨打{ph}，接听者为{kin}{r}，诉{p}目前一般情况可，{cc}已缓解。\n随访人：{d}",
        (
            "{date} 多学科讨论（MDT）\n参加人员：{d}（{dept}）、{d2}（{dept}）、{d3}（{dept}）\n"
            "患者{p}，{age}岁，{dx}。{Z}\n{d}：建议手术。\n{d2}：同意，{plan}"
        ),
        "急诊留观记录\n{date} 120送入，姓名{p}，身份证{id}，家住{addr}，报警人{r}（{mob}）。{vit}。\n{S}",
        "抢救记录\n{date}，{p}突发意识丧失，{vit}。参加抢救人员：{d}{title}、{d2}医师、护士{d3}。家属{r}在场。",
        "交接班记录\n{d}交班：{n:1-60}床{p}，{dx}，{lab}。\n{d2}接班。",
        "门诊病历\n{date} {dept}\n{p} {sex} {age}岁 {lmrn}{c}{mrn}\n主诉 {cc}{dur}\n处理 {rx}\n{d}",
        (
            "处方笺\n{lmrn}{c}{mrn}　姓名{p}　{sex}　{age}岁\n地址/电话：{addr}/{ph}\nRp.\n"
            "{rx}\n医师{d}　审核{d2}　调配{d3}"
        ),
        "特殊病种申请\n申请人{p}，{lbd}{c}{bd}，{lid}{c}{id}，邮寄地址{addr}，收件人{r}，{ph}，{mail}。\n病种：{dx}",
        (
            "知情同意（临床试验）\n受试者姓名：{p}（正楷）　日期：{date}\n研究者：{d}　24小时电话：{mob}　E-mail："
            "{mail}\n伦理委员会：{tel}"
        ),
        "远程会诊登记\n{H}申请医师邮箱：{mail2}\n会诊专家：{d}，{hosp}{dept}\n{Z}",
        (
            "发件人：{d} <{mail}>\n收件人：{d2} <{mail2}>\n主题：{p}的检查结果\n{d2}{title}：附件为{p}（{lmrn}{c}"
            "{mrn}）的报告，{lab}。谢谢！\n{d}\n{ph}"
        ),
        "投诉登记：{date}，{r}（{kin}，{ph}，{mail}，住{addr}）反映{p}住院期间护理不到位。\n登记人：{d}",
        "PID|1||{mrn}^^^HIS^MR||{p}||{cbd}|M|||{addr}||{mob}\nPV1|1|I|{dept}^{n:1-60}^2",
        (
            "(0010,0010) PN [{p}]\n(0010,0020) LO [{mrn}]\n(0010,0030) DA [{cbd}]\n(0008,0020) DA [20210{n:1-9}1"
            "{n:0-9}]\n(0008,0090) PN [{d}]"
        ),
        (
            "<patient><name>{p}</name><birthDate>{bd}</birthDate><telecom>{ph}</telecom><address>{addr}</address></pa"
            "tient>"
        ),
        "医保转外就医备案表\n{H}转往医院：{hosp}\n经办人：{d}（{tel}）",
        "疾病诊断证明\n姓名{c}{p} 出生{c}{bd} 就诊卡号{c}{mrn}\n诊断：{dx}。建议休息{n:1-4}周。\n{d}（章）",
        (
            "传染病报告卡\n患者姓名：{p}（患儿家长姓名：{r}）\n身份证号：{id}\n性别：{sex}　出生日期：{bd}\n"
            "联系电话：{ph}\n现住址（详填）：{addr}\n填卡医生：{d}　填卡日期：{date}"
        ),
        "抗肿瘤治疗小结\n{p}，{bdf}出生，{dx}，{date}起行化疗{n:2-8}周期。\n{later}\n{later}\n{S}",
        "{H}\n——————\n{hpi}\n{vit}\n{exam}\n{later}\n{later}\n{S}\n{pub}",
        (
            "住院病人一览\n{n:1-9}床 {x1} {age}岁 {dx} 主管{d}\n{n:10-19}床 {x2} {n:20-90}岁 {dx} 主管{d2}\n"
            "{n:20-29}床 {x3} {n:20-90}岁 {dx} 主管{d}"
        ),
        (
            "查房记录 {date}\n{d}{title}查房，{d2}、{d3}随诊。{n:1-60}床{p}诉{cc}好转。{Z}\n"
            "{d}分析：{dx}诊断明确，{plan}\n记录：{d2}"
        ),
        "家庭病床巡诊\n地点：{addr}\n{p}卧床{dur}，由{kin}{r}照护，{vit}。下次上门前先打{ph}。\n巡诊医生 {d}",
    ],
    # single lines and short pieces
    "ZS": [
        "患者{p}，{sex}，{age}岁，{cc}{dur}。", "家属{r}称患者有{dx}病史{dur}。", "其子{r}陪同就诊，联系电话{ph}。",
        "联系人{c}{r}，{lph}{c}{ph}", "联系人：{r}({rel}) {mob}", "主管医师{d}", "主管医师：{d}，责任护士：{d2}。",
        "{d}主任医师查房记录", "请{d}医师会诊。", "签名：{p}", "{ln}{c}{p}", "{ln}{c}{ps}\n性别：{sex}",
        "姓名{p}性别{sex}年龄{age}岁", "我叫{p}，女，想咨询一下{cc}怎么办", "我是{p}，上周在您这里看过的",
        "医生你好，这是我妈妈{p}的报告：{lab}", "{d}医生您好，我是{p}的家属，想问{p}什么时候能出院？",
        "谢谢{d}医生！", "转给{d}看一下，{p}的{lab}", "{p}\n{sex}\n{age}岁\n{dx}",
        "紧急联系人为{kin}{r}，手机{mob}。", "{kin}{r}签字同意手术。", "通知{kin}{r}，{r}表示知情。",
        "由{r}（{rel}）提供病史，可靠。", "{lid}{c}{id}", "{lid}{c}{id}，经核实无误",
        "身份证{id}，医保类型：{o:职工~居民}", "患者身份证号为{id}。", "证件类型：居民身份证　证件号：{id}",
        "办理人身份证号码（{id}）与登记不符", "刷身份证{id}挂号", "{p} {id}", "{p}，{id}，{mob}",
        "核酸检测：{p}/{id}/{mob}，结果阴性", "无法核实其身份证（自述{id}）", "旧身份证号{id}，已更新。",
        "身份证后附：{id}\n住院费用已结清", "{lph}{c}{ph}", "有事打我电话{mob}", "请拨{tel}联系{dept}",
        "患者留的电话{ph}打不通，改打{ph2}。", "回电：{ph}（{r}）", "微信同手机号{mob}", "座机{tel}，手机{mob}",
        "手机1：{mob} 手机2：{mob2}", "术后有问题随时打给我：{mob}，{d}", "家里电话是{tel}，白天打{mob}",
        "短信发至{mob}失败", "{date} 护士站电话{tel}通知{r}来院", "电话/传真：{tel}/{tel2}", "TEL:{tel}  FAX:{tel2}",
        "{lmrn}{c}{mrn}", "{lmrn}{c}{mrn}，{dept}{n:1-60}床", "患者(住院号{mrn})于{date}出院",
        "调阅病案号为{mrn}的病历", "上次住院号{mrn}，本次住院号{mrn2}", "住院号/病案号：{mrn}/{mrn2}",
        "门诊号{mrn}转住院号{mrn2}", "就诊卡（卡号{mrn}）余额不足", "({lmrn}{c}{mrn})", "MRN{c}{mrn}　{dx}",
        "见我院{lmrn} {mrn} 出院记录", "第2次住院，{lmrn}{c}\n{mrn}", "补卡：原就诊卡号{mrn}作废，新卡号{mrn2}",
        "{lad}{c}{addr}", "家住{addr}，独居。", "患者住在{addr}，务农。", "药品请寄到{addr}，{r}收，{mob}",
        "现居{addr}，近14天无外出。", "120出车至{addr}，患者{p}倒地。", "工作单位：市第三小学，住址：{addr}",
        "户口在{addr}，长期居住{addr2}。", "于{addr}家中跌倒", "租住于{addr}，室内有煤气热水器", "暂住地{c}{addr}",
        "出生于原籍，现住{addr}，无疫区接触史。", "快递单：{r}，{mob}，{addr}",
        "活动轨迹：居住于{addr}，{date}乘地铁到医院", "{lem}{c}{mail}", "报告发到{mail}即可",
        "请把病历复印件发我邮箱：{mail}，谢谢", "我的邮箱{mail}，QQ也行", "电子发票推送至{mail}。",
        "联系{d}（{mail}）获取方案", "抄送：{mail}; {mail2}", "<{mail}>", "邮箱是{mail}吗？",
        "E-mail:{mail}\n{lph}{c}{ph}", "通讯作者：{d}，{mail}", "随访问卷已发{mail}，未回复", "mailto:{mail}",
        "附件（{mail}）已退信", "投稿/咨询请联系{d}：{mail}，{tel}", "账号{mail}无法登录互联网医院",
        "邮件至{mail}，或致电{tel}", "{lbd}{c}{bd}", "患者{bdf}出生，足月顺产", "{bdf}生，{sex}，已婚",
        "患者出生于{bdf}", "生日是{bdf}，属{o:兔~龙~马}", "患儿，{sex}，{nb}出生，生后{n:1-28}天",
        "出生日期更正为{bd}", "（{bdf}生）", "{p}，{bdf}生人", "本人{bdf}出生，今年{age}了",
        "核对患者身份：{p}，出生日期{bd}", "患者自报生于{bdf}，与证件不符", "G1P1，于{nb}顺产一{o:男~女}婴",
        "{lbd}{c}{bd}　{lmrn}{c}{mrn}", "宝宝{nb}生的，现在黄疸{f:5-18}", "{p}（生于{bdf}），{o:四川人~河南人~回族}",
        "{n:1-60}床{p}明日手术", "{n:1-60}床，{p}，{dx}", "{p}已缴费", "{p}拒绝{o:输血~插管~手术}",
        "患者{p}与{x1}同病室", "陪护人员：{r}，{lid}{c}{xid}", "{p}的{o:母亲~丈夫}{r}有{dx}病史",
        "患者{p}，系{d}医生亲属", "执行护士{d} 核对护士{d2}", "手术医师：{d}、{d2}、{d3}", "麻醉：{d}；巡回：{d2}",
        "护士{d}遵医嘱予{rx}", "{d}/{d2}", "审核者:{d};打印时间:{date}", "带教老师{d}，实习生{d2}",
        "患者否认外伤史，{r}补充：{dur}前曾跌倒。", "经{d}医师同意，{p}外出检查。", "家属（{r}）要求出院",
        "患者家属{r}及{r2}均在场", "患者之妻{r}，{mob}", "{p}女士：您的复诊时间为{date}",
        "{p}先生您好，您的检查结果：{lab}", "寄件：{addr}；{d}；{mob}\n收件：{addr2}；{p}；{mob2}",
        "患者：{p}\n住院号：{mrn}\n{Z}", "送检医师 {d}　送检科室 {dept}\n受检者 {p}",
        "{p}，电话{ph}，邮箱{mail}，住址{addr}", "{p}{sex}{age}岁{mob}", "{date} {p} {dx} {d}",
        "患者\n{p}\n{lid}\n{id}", "登记：{p}，{bdf}，{addr}，{mail}", "病友群：@{p} 记得{n:1-9}号复诊",
        "护士：{p}在吗？{p}请到{n:1-9}号诊室",
    ],
}  # fmt: skip

# ------------------------------------------------------------------------------------------------- planted: English

_POOL |= {
    "eS": [
        "Electronically signed by {ed}, MD on {edate}", "{ed}, M.D.", "Dictated by: {ed}\nTranscribed: {edate}",
        "Attending physician: {ed}", "Signed: {ed}, RN", "Sincerely,\n\n{ed}\n{edept}\n{eph2}",
        "Dr. {ed} / Dr. {eds}", "cc: Dr. {eds}", "Resident: {ed}\tAttending: Dr. {eds}", "-{ed} MD, {edate}",
        "/s/ {ed}", "Reviewed with Dr. {eds}.", "Best wishes,\n{ed} ({mail2})",
    ],
    "el": [
        "{mr} {es} tolerated the procedure well.", "{en} was seen on rounds this morning.",
        "Discussed with {mr} {es} and family, who agree with the plan.", "{mr} {es}'s pain is controlled.",
        "Her husband, {er}, was at bedside.", "His daughter {er} can be reached at {eph3}.",
        "I had the pleasure of seeing {mr} {es} in {edept} clinic.", "Dr. {eds} from {edept} was consulted.",
        "{en} denies chest pain.", "Son ({er}) updated by phone.", "Plan reviewed with {ed}, NP.",
    ],
    "EN": [
        "ADMISSION NOTE\n{EH}\nHPI: {mr} {en} is a {age}-year-old presenting with abdominal pain. {E}\n{el}\n{eS}",
        "{EH}{E} {E}\n{eS}", "{EH}{el} {E}",
        "DISCHARGE SUMMARY\n{EH}Hospital course: {E} {el} {E}\nFollow-up: call {eph} or email {mail}.\n{eS}",
        (
            "Discharge Summary\n\nPatient: {ecm}   MRN: {emrn}   DOB: {ebd}\nDischarged: {edate}\n"
            "{E}\nDischarge address: {eaddr}\n{eS}"
        ),
        (
            "Dear Dr. {eds},\n\nRe: {en}, DOB {ebd}, {eaddr}\n\nThank you for referring {mr} {es}, who was admitted o"
            "n {edate}. {E} {E}\n\nKind regards,\n{ed}\nTel {eph}"
        ),
        "Dear Dr {eds}\nRE: {ecm} (d.o.b. {ebd}) Hospital No. {emrn}\n{E} {el}\nYours sincerely\n{ed}\n{mail}",
        (
            "CONSULT REQUEST\nFrom: {ed}   To: {edept}\nPt: {en}, {age} y/o {esex}, MRN {emrn}\n"
            "Reason: {edx}. {E}\nCallback {eph}"
        ),
        "Nursing note {edate}: {en} ambulating with assistance. {E} Family contact {er}, {eph}. -{ed}, RN",
        "NURSING: Pt {ecm} in bed 12A. Daughter {er} visiting. {E}",
        "Telephone encounter\nCaller: {er} (spouse of {en}). Callback number: {eph}. Email on file {mail}.\n{E}",
        "Patient {en} was born on {ebd} in {o:Chengdu~Boston~Lagos} and lives at {eaddr}. {E}",
        "{en} ({emrn}) was born {ebd}. Address on file: {eaddr}. {el}",
        (
            "OPERATIVE REPORT\nPATIENT: {ecm}\nMRN: {emrn}\nSURGEON: {ed}, MD\nASSISTANT: {er}, PA-C\n"
            "FINDINGS: {E}\n{mr} {es} was taken to recovery."
        ),
        "Name,DOB,MRN,Phone,Email\n{en},{ebd},{emrn},{eph},{mail}\n{er},{ebd2},{emrn2},{eph2},{mail2}\n",
        (
            "| Patient | DOB | MRN | Room |\n| {en} | {ebd} | {emrn} | {n:100-500} |\n| {er} | {ebd2} | {emrn2} | "
            "{n:100-500} |"
        ),
        (
            "From: {ed} <{mail}>\nTo: {er} <{mail2}>\nSubject: {mr} {es}\n\nHi, please see the labs for {en} (MRN "
            "{emrn}). {E} Thanks, {eph}"
        ),
        "PID|1||{emrn}^^^HOSP^MR||{eca}||{cbd}|{o:M~F}\nOBX|1|NM|WBC||{f:3-19}|10*9/L",
        (
            "PatientName: {eca}\nPatientID: {emrn}\nPatientBirthDate: {cbd}\nStudyDate: 202101{n:10-28}\n"
            "ReferringPhysicianName: {ed}"
        ),
        (
            "Patient: Hi doctor, my name is {en}, I was born {ebd}. My stomach hurts for {n:2-9} days.\n"
            "Doctor: Hello {en}, any fever?\nPatient: No. You can email me at {mail} or call {eph}."
        ),
        "Emergency contact: {er} (brother) {eph}\nHome: {eaddr}\n{E}",
        (
            "PATHOLOGY REPORT\nPatient: {ecm}\nDate of Birth: {ebd}\nHospital No.: {emrn}\n"
            "Diagnosis: {edx}\nPathologist: {ed}, MD"
        ),
        "Prescription sent to pharmacy for {en}, {eaddr}, DOB {ebd}. {E}\n{eS}",
        "{edate} MDT: {er}, {ed} and Dr. {eds} present. {mr} {es} discussed. {E}",
        "Please contact {ed} at {mail} or {eph} with any questions about {mr} {es}.",
        "International patient: {en} (Passport name {ecm}); Chinese ID card {id}; mobile {eph}; stays at {eaddr}.",
        "Contact: {er}, {eph}", "DOB {ebd}; MRN {emrn}", "Hospital No: {emrn} | Born: {ebd} | {eaddr}",
        "Lives with wife {er} at {eaddr}.", "Send records to {mail}.", "Next of kin {er} notified ({eph}).",
        "{mr} {es}, a {age}-year-old retired teacher, lives alone at {eaddr}.",
        "Pt identified by name ({en}) and DOB ({ebd}).", "MRN# {emrn} - {ecm}",
        "Seen with Dr. {eds}; {en} remains stable.",
        "Home health visit, {eaddr}: {mr} {es} alert. {E} Questions: {mail}",
        "Reply-to {mail}; phone {eph}; ID card number {id}.",
        "{en} was born on {ebd} at term to {er}, birth weight {f:2-4} kg.",
    ],
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------- hard negatives

_NEGATIVES: dict[str, list[str]] = {
    "laboratory": [
        "{lab}", "{lab}；{lab}", "{vit}", "{vit}。{lab}。",
        "血常规：WBC {f:3-19}×10⁹/L↑，HGB {n:60-165}g/L，PLT {n:20-480}×10⁹/L",
        "乙肝两对半：1、4、5阳性，HBV-DNA {f:1-9}×10^{n:3-7} IU/mL", "ALT/AST {n:20-900}/{n:20-900}",
        "血压 {n:90-200}/{n:50-120}mmHg（左），{n:90-200}/{n:50-120}mmHg（右）",
        "T{f:36-40}℃ P{n:50-130} R{n:14-30} BP{n:90-200}/{n:50-120}", "FT3 {f:1-9} FT4 {f:5-30} TSH 0.0{n:10-99}",
    ],
    "drug dose": [
        "予{rx}", "{rx}；{rx}", "长期医嘱：{rx}，{date}起。",
        "0.9%NS {n:50-500}ml+地塞米松{n:2-20}mg ivgtt，{n:20-60}滴/分", "华法林{f:1-4}mg qn，INR目标2.0-3.0",
        "多西他赛{n:100-140}mg d1 + 顺铂{n:30-60}mg d1-3 q21d", "布地奈德福莫特罗 160/4.5μg×{n:30-120}吸 1-2吸 bid",
        "口服补液盐Ⅲ，每袋兑水250ml，共{n:2-9}袋",
    ],
    "drug like a name": [
        "白芍{n:6-30}g 黄芪{n:10-60}g 王不留行{n:6-15}g 牛膝{n:6-15}g",
        "处方：何首乌{n:6-15}g、杜仲{n:6-15}g、石斛{n:6-15}g、徐长卿{n:6-15}g",
        "刘寄奴、马钱子粉慎用，{n:3-9}天后复诊", "患者服用白芍总苷胶囊{n:1-9}月", "患者白术过敏，{n:1-9}年前发现",
        "患者黄连素片自服{n:1-9}天", "马应龙麝香痔疮膏外用，每日{n:1-3}次", "华佗再造丸 {n:4-8}g bid",
        "高良姜{n:3-9}g 海桐皮{n:3-9}g 石菖蒲{n:3-9}g 安息香{n:1-3}g", "药师审方：黄芩{n:3-12}g与藜芦配伍禁忌",
        "联系药房：白及粉{n:3-9}g缺货", "主药：黄精{n:5-20}g 臣药：石膏{n:15-45}g", "患者服常山饮{n:1-9}剂后呕吐",
    ],
    "eponym": [
        "巴宾斯基征（{o:+~-}），戈登征（-），{exam}", "诊断：克罗恩病，{dur}", "考虑帕金森病Hoehn-Yahr {n:1-5}级",
        "Murphy征阳性，Charcot三联征（-），第{n:1-9}次查体", "霍奇金淋巴瘤，Ann Arbor {o:Ⅰ~Ⅱ~Ⅲ}期，{n:2-8}周期ABVD后",
        "Child-Pugh {o:A~B~C}级（{n:5-12}分）", "阿尔茨海默病，MMSE {n:8-26}分", "贝尔面瘫House-Brackmann {n:2-6}级",
        "患者雷诺现象{dur}", "患者马凡综合征？升主动脉{n:36-60}mm", "吉兰-巴雷综合征，病程{dur}",
        "唐氏筛查低风险 1/{n:1000-90000}", "海姆立克急救法宣教{n:1-3}次", "史密斯骨折复位术后{n:1-9}天",
        "金黄色葡萄球菌，布氏杆菌虎红试验1:{n:50-400}",
    ],
    "code": [
        "ICD-10：J{n:10-99}.{n:0-9}00，K{n:10-95}.{n:0-9}", "ICD-O-3: M{n:8000-9989}/{n:0-3}，C{n:10-80}.{n:0-9}",
        "TNM分期 pT{n:1-4}N{n:0-3}M{n:0-1}，cTNM Ⅲ{o:A~B}期", "手术编码 {n:10-99}.{digits:2}x00{n:1-9}",
        "DRG分组 {o:BR2~FM1~GB1}{n:1-9}，权重{f:0-9}", "医保目录编码 XJ01DDD{digits:8}",
        "LOINC {n:1000-99999}-{n:0-9}；SNOMED CT {digits:9}", "耗材编码C{digits:19}",
    ],
    "reference": [
        "参见 doi:10.{n:1000-1199}/j.cn{digits:6}-2021{digits:4}-00{digits:3}",
        "中国高血压防治指南（{n:2005-2024}年修订版）", "NCCN指南{n:2018-2024}.V{n:1-6}推荐（1类证据）",
        "PMID: {digits:8}；N Engl J Med {n:2000-2024};{n:340-390}:{n:100-2900}",
        "GB/T {n:10000-39999}-{n:1999-2023}《电子病历基本数据集》",
        "指南下载：https://www.nccn.org/guidelines/detail?category=1&id={n:1000-1999}",
        "https://guide.medlive.cn/guideline/{n:10000-29999}",
        "http://www.nhc.gov.cn/yzygj/s7653p/20210{n:1-9}/{digits:8}.shtml 第{n:3-9}版诊疗方案",
        "ISBN 978-7-117-{digits:5}-{n:0-9}，第{n:3-9}版，第{n:100-900}页", "国药准字H{n:1990-2020}{digits:4}",
        "注册证号 国械注准{n:2014-2023}3{digits:6}", "临床试验登记号 ChiCTR{n:1800-2400}0{digits:5}；NCT0{digits:7}",
    ],
    "other date": [
        "{date} 行冠脉造影，{img}", "2020-{n:1-12}-{n:1-28} 患者于{hosp}查CT示肺结节",
        "现病史：2020-{n:1-12}-{n:1-28}患者无明显诱因出现{cc}", "2020.{n:1-12}.{n:1-28}开始发热，最高{f:37-40}℃",
        "入院日期：{date}  出院日期：{date}", "手术日期{date}，报告时间{date}", "末次月经{date}，预产期{date}",
        "19{n:65-99}年{n:1-12}月患“肺结核”，已治愈", "19{n:65-99}年{n:1-12}月{n:1-28}日行阑尾切除术",
        "19{n:75-99}-0{n:1-9}-1{n:0-9} 外院行{o:剖宫产~脾切除~胆囊切除}", "末次透析{date}",
        "{date}接种新冠疫苗第{n:1-3}针", "结婚日期19{n:60-99}年{n:1-12}月", "有效期至203{n:0-5}-{n:1-12}-{n:1-28}",
        "死亡时间：{date}", "标本采集{date}，接收{date}", "{n:1988-2005}年{n:1-12}月起吸烟，{n:5-40}支/日",
        "自19{n:70-99}年{n:1-12}月工作于煤矿，粉尘接触史",
    ],
    "birth without a date": [
        "出生史：足月顺产，出生体重{n:2300-4200}g", "出生时Apgar评分{n:7-10}分，无窒息",
        "生于原籍，久居当地，饮酒{n:5-40}年", "出生日期：不详，推测{n:20-90}岁",
        "出生于{city}，无疫水接触史，吸烟{n:5-40}年", "出生地：{city}，年龄{n:20-90}",
        "出生后第{n:2-28}天黄疸，{n:5-20}mg/dl", "生日蛋糕进食后腹痛{n:1-9}小时", "出生孕周{n:28-41}+{n:1-6}周",
        "出生日期：    年    月    日  胎龄{n:28-41}周",
        "G{n:1-5}P{n:1-4}，新生儿出生体重{n:2400-4200}g，身长{n:46-54}cm",
    ],
    "age": [
        "{n:18-95}岁，{o:男~女}性，{cc}{dur}", "患者{o:男~女}，{n:18-95}岁，{cc}", "{n:1-11}月龄，体重{f:4-11}kg",
        "初潮{n:11-16}岁，绝经{n:45-56}岁", "吸烟{n:5-60}年，{n:5-40}支/日",
        "月经{n:11-16}（{n:3-7}/{n:25-35}）{n:45-55}", "患者，{o:女~男}，{n:18-95}岁，因“{cc}”入院",
    ],
    "measure": [
        "{img}", "甲状腺右叶{n:40-60}×{n:12-30}×{n:10-25}mm，峡部厚{f:1-6}mm，TI-RADS {n:2-5}类",
        "双顶径{f:7-10}cm，股骨长{f:5-7}cm，羊水指数{n:60-240}mm，S/D {f:1-4}",
        "左肾{n:80-120}×{n:35-60}mm，结石{n:3-20}mm", "右侧颈内动脉PSV {n:40-300}cm/s，RI 0.{n:40-95}",
        "矢状径{n:20-60}mm，前列腺体积{n:18-120}ml", "病灶{n:10-60}-{n:10-60}-{n:10-60}mm，SUVmax {f:1-20}",
    ],
    "specimen number": [
        "标本号 2021{n:10-12}{n:10-28}{digits:3}", "标本号：20{n:18-24}0426{digits:4}", "样本编号{d11}，溶血",
        "条码号 {d11}", "条形码：{digits:12}", "检验单号{digits:10}，已审核", "样本条码:{d11}  样本类型：血清",
        "病理标本号 {n:100000-999999}-{n:1-20}", "血袋编号 {digits:13}，A型RhD阳性", "试管条码号{d11} 采集时间{date}",
        "采血管批号 {digits:8}，失效期203{n:0-5}.{n:1-12}", "试剂批号：{digits:11}", "检验条码 {digits:14}",
        "质控品批号{n:10000-99999}，标准差{f:0-9}", "Barcode {d11} | serum | hemolysis 1+",
        "标本号\t{digits:11}\t全血", "仪器测试号 {d11}（复查）",
    ],
    "device number": [
        "起搏器序列号 {bad18}", "设备SN：{bad18}", "支架批号 {bad15}，型号3.0×{n:12-38}mm",
        "人工晶体序列号：{digits:17}", "胰岛素泵 S/N {bad15}", "植入物条码（01){digits:14}(17)25{digits:4}",
        "呼吸机编号 {bad18}，维护{date}", "追溯码 {digits:20}", "药品电子监管码{digits:20}",
        "监护仪资产编号{digits:16}", "输液泵 SN{bad15} 报警", "交易流水号 {digits:16}",
        "发票号码 {digits:8}，校验码 {digits:20}", "医嘱号 {digits:16}，组号{n:1-99}",
        "DICOM UID 1.2.840.113619.2.{n:10-400}.{digits:10}.{n:1-99}",
    ],
    "place": [
        "在{hosp}{dept}住院{n:2-30}天", "{n:3-20}天前去过{city}", "{dur}前由{city}转入{hosp}",
        "患者于{hosp}行手术，{date}", "发病前{n:2-14}天有{city}旅居史", "居住于{city}{n:2-40}年",
        "长期在{city}务工{n:2-40}年", "{hosp}影像：{img}", "患者从{hosp}转来，{n:1-20}天", "籍贯{city}，{n:20-90}岁",
        "住我院{dept}{n:1-12}病区", "武侯区、青羊区共报告{n:2-90}例", "出院后至{hosp}随访，{n:1-6}月/次",
        "地址不详，{n:20-90}岁，由120送入", "住址：不详；年龄约{n:30-90}岁", "华南海鲜市场接触史（-），{n:1-14}天内",
        "病区走廊{n:1-99}号储物柜", "门诊楼{n:2-9}层{n:1-30}号诊室", "请到{n:1-9}号楼{n:1-9}层抽血处",
        "住院部{n:1-20}楼{n:1-60}床", "{n:1-20}号手术间",
    ],
    "masked": [
        "患者张**，{n:18-95}岁", "姓名：李*，{n:18-95}岁", "王某，{o:男~女}，{n:18-95}岁，{cc}",
        "患者某某，{cc}{dur}", "电话：138****{digits:4}", "手机 1{n:30-99}****{digits:4}",
        "姓名：[姓名] 年龄：{n:18-95}", "身份证号：5101**********{digits:4}",
        "身份证：******************，{n:18-95}岁", "住院号：****{digits:2}", "地址：四川省***，{n:18-95}岁",
        "家住***小区**栋，{n:18-95}岁", "[患者] 于 [日期] 入院，{cc}", "邮箱：***@***，已脱敏{n:1-9}处",
        "出生日期：****-**-**，{n:18-95}岁", "联系人：赵某某，电话：<PHONE>，{n:1-9}次未接", "主管医师：XXX，{date}",
        "患者XXX，因{cc}{dur}入院", "{{姓名}}，{n:18-95}岁", "姓名：×××　性别：女　年龄：{n:18-95}",
        "[住院号]　[电话]　{n:18-95}岁", "李××，男，{n:18-95}岁，{dx}", "就诊卡号：XXXXXXXX，{dept}",
    ],
    "empty label": [
        "姓名：\n性别：{o:男~女}\n年龄：{n:18-95}", "姓名：        性别：{o:男~女}  年龄：{n:18-95}岁",
        "医师签名：\n日期：{date}", "患者签名：__________  日期：{date}", "联系人：无\n年龄：{n:18-95}",
        "联系电话：未留，{n:1-9}次询问", "住院号：/  床号：{n:1-60}", "身份证号：无（无名氏，约{n:20-80}岁）",
        "姓名|性别|年龄|诊断\n|{o:男~女}|{n:18-95}|{dx}", "邮箱：无　微信：无　{n:1-9}",
        "电话：    手机：    随访{n:1-9}次", "家属签字：拒签，{date}", "主管医师：待定，{n:1-60}床",
        "家庭住址：同上　年龄：{n:18-95}", "病案号：未建档，{date}", "姓名：不详  性别：{o:男~女}  约{n:20-80}岁",
        "姓名：无名氏　{n:1-60}床", "签名：（盖章）　{date}", "联系人：同前；关系：{rel}；{n:1-9}",
        "证件号码：未提供；{n:18-95}岁", "护士签名______ 时间 {n:8-20}:{n:10-59}", "记录者：\t{date}",
    ],
    "label as a word": [
        "患者高血压病史{n:2-30}年", "患者平素体健，{n:18-95}岁", "患者安静入睡，心率{n:55-90}次/分",
        "患者何时发病不详，约{n:1-9}小时前", "患者于今日{n:8-20}时返回病房", "患者常规消毒铺巾，取{n:3-20}cm切口",
        "患者时有咳嗽，{n:1-20}天", "患者金属植入物{n:1-9}年", "患者左侧肢体肌力{n:1-5}级", "患者全身皮肤黄染{dur}",
        "患者强烈要求出院，{date}", "患者明确诊断{dx}{dur}", "患者连续{n:2-9}天发热", "患者方便面进食后腹泻{n:2-9}次",
        "患者车祸伤后{n:1-12}小时", "患者房颤病史{n:1-20}年", "患者石膏固定{n:2-8}周", "患者毛发稀疏{dur}",
        "患者白细胞{f:1-19}", "患者黄疸{n:2-30}天", "患者温度{f:36-40}", "患者向心性肥胖，BMI {n:26-40}",
        "患者冷汗、面色苍白{n:5-50}分钟", "患者易疲劳{dur}", "患者计划{n:1-9}日出院", "患者解大便{n:1-9}次",
        "患者强直发作{n:1-9}次", "家属代诉：{cc}{dur}", "家属要求转院，{date}", "家属拒绝有创操作，{n:1-9}次沟通",
        "家属于{n:8-20}时到场", "家属明白风险，{n:1-9}人签字", "家属全程陪同{n:1-9}天", "其子高血压{n:2-20}年",
        "其父因肺癌去世，享年{n:50-90}岁", "其母健在，{n:60-95}岁", "其女体健，{n:10-60}岁",
        "其兄白血病，{n:20-60}岁确诊", "其妹平素体健，{n:20-60}岁", "医师建议{n:1-6}月后复查",
        "医师签署后生效，{n:1-9}日内", "主管医师查房，{plan}", "主任医师查房：{plan}", "值班医师常规巡视，{n:8-23}时",
        "护士长督查，{n:1-9}项不合格", "护士安慰患者，{n:8-23}:{n:10-59}", "护士时刻观察，{n:8-23}:00",
        "联系人电话关机，{n:2-9}次", "联系内科会诊，{date}", "签名后归档，{n:1-9}份", "记录时间{date}",
        "麻醉方式：全麻，{n:1-5}小时", "手术医师资质：{n:1-4}级", "责任护士交接{n:1-60}床",
        "姓名带核对无误，{n:8-23}:{n:10-59}", "手机辐射与肿瘤关系不明，{n:1-9}级证据", "电话通知{dept}，{date}",
        "患者：医生，我{cc}{dur}了怎么办", "医生：您好，{cc}多久了？有没有量体温？{n:1-9}",
        "患者:好的谢谢，那我{n:1-9}天后再来", "医生：{plan}", "患者：{lab}，严重吗",
        "患者提问：{dx}能治好吗？病程{dur}", "医生回复：建议查{o:CT~胃镜~血常规}，{n:1-9}天内",
        "住院号查询请至{n:1-9}号窗口", "门诊号源已满，{n:1-30}日再约", "地址变更请到{n:1-9}号窗口",
        "邮箱验证失败{n:1-9}次", "身份证明复印件{n:1-4}份",
    ],
    "percentage and score": [
        "LVEF {n:25-70}%，FS {n:15-40}%", "5年生存率{f:10-95}%（95%CI {n:5-40}-{n:41-99}）",
        "ADL {n:20-100}分，MMSE {n:5-30}分，NRS {n:0-10}分", "HR=0.{n:10-99}，P=0.0{n:10-99}",
        "Ki-67（{n:5-90}%+），ER（{n:5-95}%），HER2（{n:0-3}+）", "烧伤面积{n:5-90}%TBSA，Ⅲ度{n:2-30}%",
        "TIMI评分{n:0-7}，GRACE {n:60-220}分", "病死率由{f:5-20}%降至{f:0-5}%",
    ],
    "bed and time": [
        "{n:1-60}床 {n:8-23}:{n:10-59} {vit}", "+{n:1-9}床，{dx}", "{n:1-60}床转{n:1-60}床",
        "抢救{n:1-9}床，{n:10-80}分钟", "{n:100-999}病房{n:1-9}床，{dx}",
        "夜班：{n:1-60}床发热{f:37-40}℃，{n:1-60}床失眠", "ICU-{n:1-20}，{vit}",
        "{n:8-20}:{n:10-59} 返回病房；{n:8-20}:{n:10-59} {vit}", "入量{n:1000-3500}ml，出量{n:800-3500}ml",
        "床号{n:1-60} 护理级别 一级 饮食 禁食",
    ],
    "public number": [
        "如有不适请拨打120，{n:1-9}天后复诊", "挂号请拨{o:114~12320~12345}，提前{n:1-7}天",
        "医院等级：三甲，床位{n:800-5000}张，编码{digits:9}", "工号{n:1000-99999}登录，{date}",
        "费用合计{f:100-90000}元，自付{f:10-9000}元", "分组{n:1-9}，随机号{n:100-999}，盲底编号{n:1000-9999}",
        "系统版本V{n:1-9}.{n:0-20}.{n:0-9}，IP 192.168.{n:0-254}.{n:1-254}", "第{n:1-30}页，共{n:30-60}页",
    ],
    "progress note": [
        "{Z}{Z}", "{Z}\n{Z}\n{Z}", "{date} {dept}查房：{Z}{Z}",
        "主诉：{cc}{dur}。\n现病史：{dur}前无明显诱因出现{cc}，{date}于{hosp}就诊，{Z}\n查体：{exam}。",
        "患者今日一般情况可，{Z}{plan}", "出院诊断：1.{dx} 2.{dx}\n出院医嘱：{plan}{rx}。",
        "入院后完善检查：{lab}；{img}。治疗：{rx}。患者及家属表示理解。",
        "会诊意见：病史敬悉，{exam}。考虑{dx}，{plan}", "护理记录 {n:8-20}:{n:10-59} {vit}，遵医嘱予{rx}，护士签名：",
        "{cc}{dur}，{city}旅居史，{Z}", "问：{dx}{dur}，{lab}，需要手术吗？\n答：{plan}",
        "现病史：{date}患者出现{cc}，家属未予重视，{date}加重，遂至{hosp}。",
    ],
    "English label as a word": [
        "Patient: denies fever, {n:1-9} days of cough", "Name of drug: aspirin {n:75-325} mg",
        "Name:\nAge: {n:18-95}", "Name: ________ Date: {edate}", "Doctor: to be assigned, bed {n:1-60}",
        "Address pain control with {n:2-10} mg oxycodone", "Address: not on file, age {n:18-95}",
        "Phone: not provided x{n:1-9}", "Contact precautions for {n:3-14} days",
        "Contact: none listed; age {n:18-95}", "Signed: electronically {edate}",
        "Patient Name: [REDACTED], {n:18-95} y/o", "MRN: pending, arrived {edate}",
        "DOB: unknown, approx. {n:20-90} years", "Email: declined ({n:1-9})",
        "Patient will follow up in {n:1-12} weeks", "Mark the site; time out at {n:8-18}:{n:10-59}",
        "Referred by: self, {edate}", "Attending: on call, pager {n:1000-9999}", "Pt. White count {f:3-19}",
        "Patient Long-standing hypertension, {n:2-30} years", "Dr. to review CT on {edate}",
        "Patient reports Grade {n:1-4} neuropathy", "Hospital day {n:1-30}, POD {n:1-20}",
        "Hospital No. of beds: {n:100-2000}",
        "Patient: Hi doctor, I have had a rash for {n:2-20} days.\nDoctor: Any new drugs?", "Doctor: {E}",
        "Patient Young and previously healthy, {n:18-35}M", "Mr. *** was seen on {edate}",
        "Next of kin: none; lives in {o:Chengdu~Boston~Texas}; age {n:18-95}",
        "Born at term, birth weight {f:2-4} kg", "Born in {o:Sichuan~Boston~London}, moved {n:1-40} years ago",
        "Name and dose checked by two nurses at {n:8-20}:{n:10-59}",
    ],
    "English clinical": [
        "{E}", "{E} {E}", "{E} {E} {E}", "Assessment: {edx}. {E}", "Follow-up in {edept} in {n:1-12} weeks. {E}",
        "Transferred from {ehosp} on {edate}. {E}", "Seen at {ehosp2} {n:1-20} days ago. {E}",
        "Wilson disease, ceruloplasmin {n:2-20} mg/dL; Kayser-Fleischer rings present",
        "Graves disease on methimazole {n:5-30} mg", "Whipple procedure on {edate}, EBL {n:100-900} mL",
        "Swan-Ganz catheter: PCWP {n:8-30} mmHg", "Hartmann's solution {n:250-1500} mL over {n:1-8} h",
        "King's College criteria not met, INR {f:1-4}", "Gleason {n:3-5}+{n:3-5}, PSA {f:1-90} ng/mL",
        "Vancomycin {n:500-2000} mg IV q12h, trough {f:8-25}",
        "Per {n:2015-2024} ACC/AHA guideline, doi:10.1161/CIR.0000000000{digits:6}",
        "https://www.nice.org.uk/guidance/ng{n:10-240}",
        "PMID {digits:8}; JAMA {n:2000-2024};{n:280-330}({n:1-24}):{n:100-2900}",
        "ICD-10 K{n:20-90}.{n:0-9}; ICD-O C{n:10-80}.{n:0-9}, M-{n:8000-9900}/3", "Specimen {digits:11} hemolyzed",
        "Pacemaker S/N {bad15}", "Device serial {bad18}, model {n:100-999}", "Accession barcode {d11}",
        "{n:2-9} French Foley, 12-lead ECG at {n:10-22}:{n:10-59}",
        "Walked {n:50-400} feet, 2 Drains in place, 4 Way stopcock", "Lot {digits:8}, exp 03/{n:10-28}/2030",
        "Surgery {n:1-12}/{n:1-28}/2019; last colonoscopy {edate}",
        "Weaned to {n:1-6} L @ {n:8-20}:{n:10-59}; SpO2 {n:88-99}%@RA", "LMP {edate}, EDD {edate}",
        "Room {n:100-600}, Bed {n:1-4}: {E}", "Clinic on {n:2-9}th floor, Suite hours 8-{n:4-6}",
        "Study ID NCT0{digits:7}, arm {o:A~B}", "ST elevation V1-V4, troponin {f:1-90}",
        "O'Brien test and Phalen's sign positive at {n:20-60} s",
    ],
}  # fmt: skip


class _Decks:
    """Deals each pool's templates in shuffled rounds, so that none is left out or comes far more often than another."""

    def __init__(self, rng: _R) -> None:
        self._rng = rng
        self._left: dict[str, list[str]] = {}

    def deal(self, pool: str) -> str:
        if not self._left.get(pool):
            self._left[pool] = self._rng.sample(_POOL[pool], len(_POOL[pool]))
        return self._left[pool].pop()


def _positive(rng: _R, decks: _Decks) -> Text:
    """One planted text; drawn again while something planted also stands in it unplanted."""
    pool = "EN" if rng.random() < ENGLISH_SHARE else ("ZH" if rng.random() < 0.58 else "ZS")
    template = decks.deal(pool)
    while True:
        note = _Note(rng)
        note.fill(template)
        if note.spans and not note.stray():
            return note.text(), note.spans


def _negative(rng: _R, family: str) -> str:
    note = _Note(rng)
    note.fill(rng.choice(_NEGATIVES[family]).replace("{{", "［").replace("}}", "］"))
    if note.spans:
        raise AssertionError(f"an identifier in a negative template of {family!r}")
    return note.text()


def _negatives(rng: _R, count: int) -> list[tuple[str, str]]:
    """Unlike texts with their family: lines of one family, and notes put together from several."""
    families = list(_NEGATIVES)
    weights = [len(_NEGATIVES[family]) for family in families]
    chinese = [family for family in families if not family.startswith("English")]
    seen: dict[str, str] = {}
    while len(seen) < count:
        family = rng.choices(families, weights)[0]
        if family in chinese and rng.random() < 0.22:
            family, names = "mixed", rng.choices(chinese, weights[: len(chinese)], k=rng.randint(2, 5))
            text = rng.choice(("\n", "。", "；\n", "。 ")).join(_negative(rng, name).rstrip("。") for name in names)
        else:
            text = _negative(rng, family)
        seen.setdefault(text, family)
    return [(text, family) for text, family in seen.items()]


def planted() -> list[Text]:
    """The whole set: texts with the spans `(kind, start, end)` of their identifiers, and hard negatives with none."""
    rng = random.Random(SEED)
    decks = _Decks(rng)
    texts: list[Text] = [_positive(rng, decks) for _ in range(POSITIVES)]
    texts += [(text, []) for text, _ in _negatives(rng, NEGATIVES)]
    rng.shuffle(texts)
    return texts


def _malformed(kind: str, value: str) -> bool:
    """Whether the text of a span is not what its kind must look like, checked apart from how it was made."""
    plain = value.translate({0xFF10 + i: str(i) for i in range(10)})
    digits = re.sub(r"[^0-9]", "", plain)
    if not value or value != value.strip():
        return True
    if kind == "id_card":
        card = re.sub(r"[ -]", "", plain).upper()
        modern = re.fullmatch(r"\d{17}[\dX]", card) and _check_digit(card[:17]) == card[17]
        return not (modern or re.fullmatch(r"\d{15}", card))
    if kind == "phone":
        return not 10 <= len(digits) <= 18
    if kind == "email":
        return not re.fullmatch(r"[\w.+-]+[@＠][\w-]+(\.[\w-]+)+", value)
    if kind == "birth_date":
        return not (digits or "年" in value)
    if kind == "record_number":
        return len(digits) < 6
    if kind == "name":
        return bool(digits) or not 2 <= len(value) <= 40
    return len(value) < 5


def main() -> None:
    texts = planted()
    assert texts == planted(), "not deterministic"
    counts: Counter[str] = Counter()
    for text, spans in texts:
        last = 0
        for kind, start, end in spans:
            assert kind in KINDS and last <= start < end <= len(text), (kind, text)
            assert not _malformed(kind, text[start:end]), (kind, text[start:end])
            last = end
            counts[kind] += 1
        if not spans:
            for run in re.findall(r"(?<!\d)\d{17}[\dXx](?!\d)", text):
                assert _check_digit(run[:17]) != run[17].upper(), text
            assert not re.search(r"\w@\w+\.\w", text), text
    empty = sum(not spans for _, spans in texts)
    assert all(counts[kind] >= 500 for kind in KINDS) and empty >= 2000
    english = sum(not re.search(r"[\u4e00-\u9fff]", text) for text, spans in texts if spans)
    print(f"{len(texts)} texts: {len(texts) - empty} planted ({english} English), {empty} hard negatives")
    for kind in KINDS:
        print(f"{kind:14} {counts[kind]:6}")


if __name__ == "__main__":
    main()
